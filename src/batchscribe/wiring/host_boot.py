"""`python -m batchscribe.wiring.host_boot`: the agent of a GPU host.

Its unit starts it at every boot, without arguments; it takes on the workers' environment, which has the
credentials for the stores. A controller starts `live RUN` over ssh, in that environment and for that run
only. Only one agent runs on a host: a second one exits at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import structlog

from batchscribe import aws_environment
from batchscribe.adapters.aws.metadata import read_interruption, read_tag
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.boot import AgentSeams, Boot, HostAgent, run_agent
from batchscribe.agent.host import WORKER_COMMAND, GpuHost
from batchscribe.agent.state_files import NoDeadman, StateFiles
from batchscribe.agent.supervisor import DeadmanFiles
from batchscribe.control_place import combine_stores
from batchscribe.core.run.host import ClaimLaunch, HostClaim, HostPlace
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG
from batchscribe.detached import boot_id, process_start, try_lock
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.page_cache import read_ahead
from batchscribe.protocols import Store
from batchscribe.wiring.host_log import configure_host_log
from batchscribe.wiring.stores import open_store

STATE_FOLDER = Path("/run/batchscribe")
"""The unit's RuntimeDirectory: in memory, so that it does not survive a stop."""
ASSET_TAG = Path("/sys/devices/virtual/dmi/id/board_asset_tag")
"""The instance ID on newer EC2 instances."""
LOG = structlog.get_logger()


def main(words: Sequence[str] | None = None, *, command: Sequence[str] = WORKER_COMMAND) -> int:
    """Runs this boot's agent; returns 2 for errors that operators must fix."""
    os.umask(0o077)
    os.chdir(Path.home())
    configure_host_log()
    clock = SystemClock()
    host = GpuHost(Path.home(), clock, command=command)
    given = list(sys.argv[1:] if words is None else words)
    try:
        if len(given) == 2:
            _run_agent(_read_place_over_ssh(host), host, clock, run=given[1])
            return 0
        place = host.read_place()
        if (another := find_copied_id(place)) and not place.created:
            LOG.warning("host.is_a_copy", here=another, recorded=place.instance)
            return 0
        aws_environment.replace_environment(
            host.build_environment(region=place.region, endpoint=place.endpoint)
        )
        configure_host_log()  # the environment has secrets of its own
        _run_agent(place, host, clock)
    except BatchscribeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _run_agent(place: HostPlace, host: GpuHost, clock: SystemClock, *, run: str = "") -> None:
    with try_lock(host.agent_lock) as alone:
        if not alone:
            LOG.info("agent.already_alive", run=run)
            return
        read_ahead(host.read_model_files())
        boot = Boot(id=boot_id(), at=clock.booted(), agent=process_start())
        seams = open_seams(place, host, clock, STATE_FOLDER)
        if is_created(place) and not run:
            seams = replace(seams, machine=read_machine_name, unclaimed=StateFiles(STATE_FOLDER))
        run_agent(HostAgent(place, boot, seams, run=run), clock)


def _read_place_over_ssh(host: GpuHost) -> HostPlace:
    """The host's place; empty without units: the start permit has the details."""
    try:
        return host.read_place()
    except MisconfiguredError:
        return HostPlace(instance="", home="")


def read_machine_name() -> str:
    """The run's name of this machine, from its tag.

    Raises ComputeUnavailableError, and MisconfiguredError if the metadata service does not show the tag.
    """
    name = read_tag(MACHINE_TAG, aws_environment.find_metadata_url())
    if not name:
        raise MisconfiguredError(
            f"this machine has no tag {MACHINE_TAG}, or its metadata service does not show tags: set "
            "InstanceMetadataTags to enabled in the launch template (`batchscribe gpu image` does)"
        )
    return name


def find_copied_id(place: HostPlace, tag: Path = ASSET_TAG) -> str:
    """This instance's ID if its disk is another's copy, else empty."""
    here = _read_instance_id(tag)
    return here if here != place.instance else ""


def is_created(place: HostPlace, tag: Path = ASSET_TAG) -> bool:
    """True on a machine that a run created from an image."""
    return place.created and _read_instance_id(tag) != place.instance


def _read_instance_id(tag: Path) -> str:
    """The ID of this instance; empty if unknown."""
    try:
        here = tag.read_text().strip()
    except OSError:
        return ""
    return here if here.startswith("i-") else ""


def open_seams(place: HostPlace, host: GpuHost, clock: SystemClock, state: Path) -> AgentSeams:
    """The agent's seams on this machine; each store is opened once."""

    @cache
    def opened(url: str, region: str, endpoint: str) -> Store:
        there, at = aws_environment.find_place(region=region, endpoint=endpoint)
        store = open_store(url, region=there, endpoint=at)
        control = place.control_of(url)
        return combine_stores(store, open_store(control, region=there, endpoint=at)) if control else store

    def runs(claim: HostClaim) -> Store:
        return opened(claim.output, claim.region or place.region, claim.endpoint or place.endpoint)

    return AgentSeams(
        clock=clock,
        workers=host,
        deadman_files=lambda claim: open_state_files(claim, state),
        permit=host.read_permit,
        announced=lambda: read_tag(MANIFEST_TAG, aws_environment.find_metadata_url()),
        interruption=lambda: read_interruption(aws_environment.find_metadata_url()),
        home=lambda: opened(place.home, place.region, place.endpoint),
        runs=runs,
    )


def open_state_files(claim: HostClaim, folder: Path) -> DeadmanFiles:
    """The dead-man's state files; none without units or on borrowed instances."""
    over_ssh = claim.launch is not ClaimLaunch.BOOT
    if claim.borrowed or (over_ssh and not os.access(folder, os.W_OK)):
        return NoDeadman()
    return StateFiles(folder)


if __name__ == "__main__":
    raise SystemExit(main())
