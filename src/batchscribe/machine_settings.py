"""Settings of the machines that transcribe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from batchscribe.core import setting_parsers as parse
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import IfRunning, InstanceChoice
from batchscribe.core.decide.offers import EC2, FLEET, LOCAL, RAY, Market
from batchscribe.core.run.cloud_account import FurtherRegion
from batchscribe.core.setting_parsers import Name
from batchscribe.text_settings import TextSettings, as_path

PROVIDERS = (LOCAL, EC2, FLEET, RAY)
"""Values of GPU_PROVIDER."""
_MARKETS = {
    "spot": (Market.SPOT, Market.ON_DEMAND),
    "spot-only": (Market.SPOT,),
    "on-demand": (Market.ON_DEMAND,),
}
"""Values of GPU_MARKET."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings(TextSettings):
    """Each field declares its setting's name and parser."""

    provider: Annotated[str, Name("GPU_PROVIDER", parse.one_of(*PROVIDERS), ", ".join(PROVIDERS))] = LOCAL
    instance_id: Annotated[
        str, Name("GPU_INSTANCE_ID", parse.matching(r"i-[0-9a-f]{8,17}"), "an ID, e.g. i-0123456789abcdef0")
    ] = ""
    instance_type: Annotated[
        str, Name("GPU_INSTANCE_TYPE", parse.matching(r"[a-z0-9.-]+"), "a type such as g4dn.xlarge")
    ] = ""
    instance_types: Annotated[
        tuple[str, ...], Name("GPU_INSTANCE_TYPES", parse.words, "types such as g4dn.xlarge,g5.xlarge")
    ] = ()
    instance_choice: Annotated[
        InstanceChoice,
        Name("GPU_INSTANCE_CHOICE", parse.member(InstanceChoice), " or ".join(InstanceChoice)),
    ] = InstanceChoice.ORDERED
    if_running: Annotated[
        IfRunning, Name("GPU_IF_RUNNING", parse.member(IfRunning), " or ".join(IfRunning))
    ] = IfRunning.HOLD
    hourly_cost: Annotated[Usd | None, Name("GPU_HOURLY_COST", parse.dollars, "dollars, e.g. 0.526")] = None
    ssh_key_path: Annotated[Path | None, Name("GPU_SSH_KEY_PATH", as_path, "a file", placed=True)] = None
    ssh_user: Annotated[
        str, Name("GPU_SSH_USER", parse.matching(r"[A-Za-z_][A-Za-z0-9_.-]*"), "a user name")
    ] = "ubuntu"
    ssh_port: Annotated[int, Name("GPU_SSH_PORT", parse.whole(1, 65_535), "a port from 1 to 65535")] = 22
    ssh_host: Annotated[
        str, Name("GPU_SSH_HOST", parse.matching(r"[A-Za-z0-9][A-Za-z0-9.:-]*"), "public, private or a host")
    ] = "public"
    launch_template: Annotated[str, Name("GPU_LAUNCH_TEMPLATE", parse.launch_template, "an ID or a name")] = (
        ""
    )
    subnets: Annotated[
        tuple[str, ...], Name("GPU_SUBNETS", parse.words, "subnets such as subnet-0a1b,subnet-2c3d")
    ] = ()
    further_regions: Annotated[
        tuple[FurtherRegion, ...],
        Name("GPU_FURTHER_REGIONS", parse.further_regions, "regions, each with its launch template and role"),
    ] = ()
    market: Annotated[
        str,
        Name("GPU_MARKET", parse.one_of(*_MARKETS), "spot, spot-only or on-demand"),
    ] = "spot"
    max_machines: Annotated[int, Name("GPU_MAX_MACHINES", parse.whole(1, 100), "1 to 100")] = 1
    ray_address: Annotated[
        str,
        Name("BATCH_RAY_ADDRESS", parse.matching(r"[A-Za-z0-9.:/_-]+"), "auto, host:port or ray://host:port"),
    ] = ""

    @property
    def markets(self) -> tuple[Market, ...]:
        """Markets in which machines are created, in order of preference."""
        return _MARKETS[self.market]

    @property
    def host_record(self) -> str:
        """Name of the machines' set-up record: an instance or a template."""
        return self.launch_template if self.provider == FLEET else self.instance_id

    @property
    def creates_machines(self) -> bool:
        """True if each run has its own machines, which end with it."""
        return self.provider in {FLEET, RAY}
