"""A real sshd whose connections die and freeze while a run begins: it goes on, and ends well, once.

The tick, the launcher, ssh, sshd, the host, its agent and its worker are real processes and real files; only
the cloud is a double, on this machine's clock.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.adapters.host_access.client import SshHost
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.adapters.host_access.ssh import Ssh
from batchscribe.adapters.machine.clock import Interrupts, SystemClock
from batchscribe.controller.context import RunConfig, Waits, World
from batchscribe.controller.scan import Scanner
from batchscribe.controller.tick import tick
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import Manifest
from batchscribe.core.run.outcomes import Outcome
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from batchscribe.wiring.stores import open_store
from support.crashing import PLAYED_WORKER
from support.host_python import host_python
from support.sshd import Sshd, sshd
from support.world import INSTANCE, stage

pytestmark = pytest.mark.e2e
CHUNKS = 3
QUICK = Waits(poll=0.05, describe=0.05, up=60.0, reach=60.0, silence=120.0, grace=5.0, stop=60.0)
_BOX = """\
#!/bin/sh
# The first three arguments are `-I -m MODULE`; the fourth is the request.
plan={plan}/$4
fault=$(head -n 1 "$plan" 2>/dev/null)
if [ -s "$plan" ]; then sed -i 1d "$plan"; fi
cat {plan}/* | grep -q . || rm -f {hold}
meet() {{
  case $fault in
    killed-$1) kill -KILL $PPID; exit 0 ;;
    frozen-$1) kill -STOP $PPID; while kill -0 $PPID 2>/dev/null; do sleep 0.1; done; exit 0 ;;
  esac
}}
meet before
answer=$({python} "$@")
code=$?
meet after
printf '%s\\n' "$answer"
exit $code
"""


@dataclass(frozen=True)
class Line:
    """A scheduler, and a GPU host at the other end of its connections."""

    world: World
    config: RunConfig
    compute: FakeCompute
    server: Sshd
    folder: Path

    def plan(self, **requests: str) -> None:
        """What the connections of each request meet, in order; `-` is nothing."""
        for word, faults in requests.items():
            (self.folder / "plan" / word).write_text("".join(f"{fault}\n" for fault in faults.split()))

    @property
    def met(self) -> bool:
        return not any(path.read_text() for path in (self.folder / "plan").iterdir())

    @property
    def workers(self) -> list[str]:
        """The logs of the workers that were started on the host."""
        logs = self.server.home.glob(".batchscribe/runs/*/*/worker.log")
        return [line for log in logs for line in log.read_text().splitlines()]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with sshd(tmp_path / "sshd") as server, _world(tmp_path, server) as made:
        yield made


@contextmanager
def _world(folder: Path, server: Sshd) -> Iterator[Line]:
    plan, hold = folder / "plan", folder / "hold"
    plan.mkdir()
    hold.touch()
    inner = host_python(folder, [sys.executable, str(PLAYED_WORKER), str(hold)])
    words = {"plan": plan, "hold": hold, "python": inner}
    program = folder / "faulty-python"
    program.write_text(_BOX.format(**{name: shlex.quote(str(path)) for name, path in words.items()}))
    program.chmod(0o700)
    bucket = folder / "bucket"
    (bucket / "s").mkdir(parents=True)
    for number in range(CHUNKS):
        (bucket / "s" / f"chunk-{number:03}.wav").write_bytes(b"played, not heard")
    store = open_store(bucket.as_uri())
    interrupts = Interrupts()
    clock = SystemClock(interrupts)
    compute = FakeCompute(FakeClock(clock.now()), pending=timedelta(0), stopping=timedelta(0))
    compute.add(INSTANCE, instance_type="g4dn.xlarge")
    options = replace(
        server.options(folder / "known_hosts", trusted=INSTANCE), host="127.0.0.1", alive_count=1
    )
    doubles = stage(folder, policy=Policy(name=PolicyName.NOW), waits=QUICK)
    with doubles.ledger:
        world = replace(
            doubles.world,
            clock=clock,
            source=store,
            output=store,
            home=store,
            capacity=replace(doubles.capacity, compute=compute),
            launcher=AgentLauncher(store, SshHost(Ssh(options), remote_python=str(program))),
            shield=interrupts,
            scanner=lambda _manual: Scanner(
                store, store, clock=clock, min_age=timedelta(0), live_lock=lambda: None, decoder=None
            ),
        )
        yield Line(world, doubles.config, compute, server, folder)


@pytest.mark.parametrize(
    "requests",
    [
        {
            "version": "killed-before killed-after",
            "start": "killed-before killed-after killed-after",
        },
        {"version": "frozen-before", "start": "frozen-after"},
        {"version": "- frozen-after", "start": "killed-after frozen-before"},
    ],
    ids=["killed", "frozen", "both"],
)
def test_connections_die_and_the_run_does_not(line: Line, requests: dict[str, str]) -> None:
    line.plan(**requests)
    ended_well(line, line.world)


def test_ssh_that_is_gone_for_good_after_the_start_is_not_missed(line: Line) -> None:
    launcher = line.world.launcher

    class Once(AgentLauncher):
        def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
            launcher.launch(instance, manifest, url)
            line.server.kill()

    once = Once(line.world.output, launcher._host)  # type: ignore[attr-defined]
    ended_well(line, replace(line.world, launcher=once))


def ended_well(line: Line, world: World) -> None:
    ticked = tick(world, line.config)
    (run,) = ticked.runs
    assert line.met, "every fault came to pass"
    assert (run.outcome, ticked.errors) == (Outcome.COMPLETED, ()), run.detail
    assert (run.chunks_done, run.chunks_failed) == (CHUNKS, 0)
    assert line.workers == ["at work"], "asked again, a host starts nothing twice"
    assert len(run.manifests) == 1
    assert line.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert [call for call, _ in line.compute.calls if call == "start"] == ["start"]
