"""Builds the ssh access to a GPU host, and checks this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

from batchscribe import __version__
from batchscribe.adapters.aws.ec2 import Ec2Compute
from batchscribe.adapters.host_access.client import SilentHost, SshHost
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.adapters.host_access.setup import CHECK_SECONDS, HostSetup
from batchscribe.adapters.host_access.ssh import Ssh, SshOptions
from batchscribe.agent.host import run_aside
from batchscribe.control_place import find_control_url
from batchscribe.controller.commands.manual_control import ManualCompute
from batchscribe.core.bounds import EARLIEST
from batchscribe.core.run import host
from batchscribe.core.run.host import CheckRequest, Finding, failed, passed
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError
from batchscribe.protocols import Clock, Launcher, Store
from batchscribe.settings import Settings
from batchscribe.wiring.engines import known_factory


def open_ssh(settings: Settings) -> Ssh:
    """Ssh with the settings' options."""
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
    """A launcher through the host's agent; created machines start theirs at boot."""
    return AgentLauncher(output, SilentHost() if settings.creates_machines else SshHost(open_ssh(settings)))


def open_host_setup(
    settings: Settings,
    clock: Clock,
    compute: ManualCompute,
    output: Store,
    spec: EngineSpec,
    *,
    besides: Iterable[EngineSpec] = (),
) -> HostSetup:
    """Builds the set-up and check of the GPU host, `besides` further engines."""
    ssh = open_ssh(settings)
    cloud = compute if isinstance(compute, Ec2Compute) else None
    factory = known_factory(spec.engine)
    return HostSetup(
        client=SshHost(ssh),
        ssh=ssh,
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
        extra=factory.extra,
        packages=factory.packages,
        besides=tuple((each, known_factory(each.engine).extra) for each in besides),
    )


def check_local(request: CheckRequest, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Loads the engine and lists the stores, as a local worker does."""
    yield passed("worker", f"version {__version__}")
    command = (sys.executable, "-P", "-m", host.MODULE)
    try:
        reply = run_aside(command, "inspect", request, environment=environment, seconds=CHECK_SECONDS)
    except EngineError as error:
        yield failed("self-test", str(error), "`batchscribe engines` shows what it needs")
    else:
        yield from reply.findings
