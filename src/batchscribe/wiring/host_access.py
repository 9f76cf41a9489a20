"""Builds the ssh access to a GPU host; none is needed if the GPU is in this machine."""

from __future__ import annotations

from collections.abc import Iterable

from batchscribe.adapters.aws.ec2 import Ec2Compute
from batchscribe.adapters.host_access.client import SilentHost, SshHost
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.adapters.host_access.setup import HostSetup
from batchscribe.adapters.host_access.ssh import Ssh, SshOptions
from batchscribe.adapters.local.launcher import LocalHost
from batchscribe.control_place import find_control_url
from batchscribe.controller.commands.manual_control import ManualCompute
from batchscribe.core.bounds import EARLIEST
from batchscribe.core.run.host import CheckRequest
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.machine_settings import LOCAL
from batchscribe.protocols import Clock, Launcher, Store
from batchscribe.settings import Settings
from batchscribe.wiring.engines import known_factory


def open_ssh(settings: Settings) -> Ssh | None:
    """Ssh with the settings' options; None if the GPU is in this machine."""
    if settings.provider == LOCAL:
        return None
    return Ssh(
        SshOptions(
            known_hosts=settings.state_dir / "known_hosts",
            user=settings.ssh_user,
            port=settings.ssh_port,
            key=settings.ssh_key_path,
            host=settings.ssh_host,
        )
    )


def open_host_launcher(settings: Settings, output: Store) -> Launcher:
    """A launcher that starts workers through the host's agent; that of a created machine starts at boot."""
    ssh = None if settings.creates_machines else open_ssh(settings)
    return AgentLauncher(output, SshHost(ssh) if ssh else SilentHost())


def open_host_setup(
    settings: Settings,
    clock: Clock,
    compute: ManualCompute,
    output: Store,
    spec: EngineSpec,
    *,
    besides: Iterable[EngineSpec] = (),
) -> HostSetup:
    """Builds the set-up and check of the GPU host of these settings, with further engines `besides`."""
    ssh = open_ssh(settings)
    cloud = compute if isinstance(compute, Ec2Compute) else None
    factory = known_factory(spec.engine)
    return HostSetup(
        client=SshHost(ssh) if ssh else LocalHost(settings.child_environment()),
        clock=clock,
        request=CheckRequest(
            now=EARLIEST,  # each check sets the time: a wrong clock must not prevent `gpu stop`
            engine=spec,
            gpu=spec.device == "cuda",
            source=settings.source,
            output=settings.output,
            control=find_control_url(output),
            region=settings.region,
            endpoint=settings.endpoint_url,
        ),
        output=output,
        published=cloud.host_key_fingerprints if cloud else lambda _id: frozenset(),
        shows_tags=cloud.shows_tags if cloud else lambda _id: False,
        show_tags=cloud.show_tags if cloud else lambda _id: None,
        shutdown=cloud.shutdown_behaviour if cloud else lambda _id: "",
        parked_parts=cloud.parked_parts if cloud else lambda _id: None,
        ssh=ssh,
        extra=factory.extra,
        packages=factory.packages,
        besides=tuple((each, known_factory(each.engine).extra) for each in besides),
    )
