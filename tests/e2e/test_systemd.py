"""The schedule under real systemd: one pass begins a run, passes of a timer bring it to its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchscribe import __version__
from batchscribe.adapters.machine.schedule import (
    LANE_UNITS,
    SERVICE,
    TIMER,
    UNITS,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
)
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.text.transcripts import encode
from batchscribe.errors import TransientError
from batchscribe.ledger import Ledger
from batchscribe.testing.guard import ROLE
from support.aws import make_schedule_group, make_stopped_instance
from support.cli import Desk, local_desk, put_speech, spoken
from support.forked import ENGINES
from support.nspawn import UNITS as UNIT_DIR
from support.nspawn import Container, container
from support.s3 import CREDENTIALS, aws_client, aws_environment, create_bucket, moto_server, s3_client
from support.set_up_hosts import pin_host_key

pytestmark = pytest.mark.e2e
PROGRAM = str(Path(sys.executable).with_name("batchscribe"))


@dataclass
class Host:
    """The machine with the schedule, as `install systemd` leaves it; no timer comes by itself."""

    machine: Container
    desk: Desk
    before: dict[str, str]
    """What the units said in other tests."""

    def install(self) -> None:
        """The schedule; the watchdog's timer makes a pass each two seconds, once it is started."""
        self.batchscribe("install", "systemd")
        self.machine.run("systemctl", "stop", TIMER, WATCHDOG_TIMER)
        self._add(WATCHDOG_TIMER, "quick", "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\nAccuracySec=1ms\n")

    def uninstall(self) -> None:
        for unit in (*UNITS, f"{WATCHDOG_TIMER}.d"):
            self.machine.run("rm", "-rf", f"{UNIT_DIR}/{unit}")
        self.machine.run("systemctl", "daemon-reload")

    def start_timer(self) -> None:
        self.machine.run("systemctl", "start", WATCHDOG_TIMER)

    def _add(self, unit: str, name: str, text: str) -> None:
        path = f"{UNIT_DIR}/{unit}.d/{name}.conf"
        self.machine.run("mkdir", "-p", str(Path(path).parent))
        self.machine.run("tee", path, given=text)
        self.machine.run("systemctl", "daemon-reload")

    def batchscribe(self, *words: str) -> str:
        return self.machine.run(
            PROGRAM, *words, cwd=self.desk.home, environment={"PYTHONPATH": ENGINES}
        ).stdout

    def tick(self) -> None:
        """One pass of the scheduler's unit, to its end."""
        self.machine.run("systemctl", "start", SERVICE)

    def service(self, name: str) -> str:
        return self.machine.shows(SERVICE, name)[name]

    @property
    def ledger(self) -> Path:
        return self.desk.home / ".batchscribe" / "ledger.sqlite"

    def runs(self) -> tuple[Run, ...]:
        with suppress(TransientError):
            if self.ledger.exists():
                with Ledger(self.ledger) as ledger:
                    return ledger.runs(datetime(2020, 1, 1, tzinfo=UTC))
        return ()

    def at_work(self, state: RunState = RunState.TRANSCRIBING) -> Run:
        """The run, as soon as it has come so far."""
        until(lambda: any(run.state is state for run in self.runs()))
        return self.runs()[-1]

    def workers(self) -> list[str]:
        """The numbers of the workers that live."""
        return self.machine.run("pgrep", "-f", "batchscribe.* worker ", check=False).stdout.split()

    def log(self, unit: str) -> str:
        """What this unit said in this test."""
        return self.machine.journal(unit)[len(self.before.get(unit, "")) :]


def until(condition: Callable[[], bool]) -> None:
    """Looks until it holds; a bound against hanging, not a measure."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never happened")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One machine for all: what is tested of it is where the tick's process ends, not the boot."""
    shared = tmp_path_factory.mktemp("desks")
    with container(tmp_path_factory.mktemp("machine") / "of", shared) as made:
        environment = f"PYTHONPATH={ENGINES} SCRIPTED_SECONDS=1"
        made.write(
            "/etc/systemd/system.conf.d/engines.conf", f"[Manager]\nDefaultEnvironment={environment}\n"
        )
        made.boot()
        yield made


@pytest.fixture
def host(machine: Container, request: pytest.FixtureRequest) -> Iterator[Host]:
    desk = local_desk(machine.shared[0] / request.node.name, BATCH_THRESHOLD="1")
    made = Host(machine, desk, {unit: machine.journal(unit) for unit in (SERVICE, WATCHDOG_SERVICE)})
    yield made
    for unit in (TIMER, WATCHDOG_TIMER):
        machine.run("systemctl", "stop", unit, check=False)
    for unit in (SERVICE, WATCHDOG_SERVICE):
        machine.run("systemctl", "kill", "--signal=KILL", unit, check=False)
        until(lambda unit=unit: machine.shows(unit, "ActiveState")["ActiveState"] in {"inactive", "failed"})  # type: ignore[misc]
        machine.run("rm", "-rf", f"{UNIT_DIR}/{unit}.d")
    made.uninstall()
    machine.run("systemctl", "reset-failed", check=False)


def much_work(desk: Desk) -> None:
    """A minute of it."""
    put_speech(desk.bucket, "team-meeting", "morning-walk", "notes")


def settled(host: Host) -> Run:
    (run,) = host.runs()
    assert run.state is RunState.SETTLED
    assert run.machines[0].meter.stopped is not None
    assert not (host.desk.home / ".batchscribe" / "local-instance.json").exists(), "the instance runs"
    assert host.workers() == []
    return run


def closed(host: Host) -> Run:
    """The run, as soon as passes of the timer have closed it."""
    host.start_timer()
    until(lambda: any(not run.open for run in host.runs()))
    host.machine.run("systemctl", "stop", WATCHDOG_TIMER)
    return settled(host)


def test_one_pass_begins_a_run_and_the_timer_finishes_it(host: Host) -> None:
    (host.desk.bucket / "talk.wav").write_bytes(spoken())
    host.install()
    host.tick()
    assert (host.service("Result"), host.service("ActiveState")) == ("success", "inactive")
    assert [run.open for run in host.runs()] == [True]
    run = closed(host)
    assert (run.outcome, run.chunks_failed) == (Outcome.COMPLETED, 0)
    assert f"closed run {run.id}: completed" in host.log(WATCHDOG_SERVICE)


@pytest.mark.parametrize("unit", [SERVICE, WATCHDOG_SERVICE])
def test_a_worker_outlives_the_unit_whose_pass_started_it(host: Host, unit: str) -> None:
    much_work(host.desk)
    host.install()
    host.tick()
    while not host.workers():
        host.machine.run("systemctl", "start", unit)
    assert host.machine.shows(unit, "ActiveState") == {"ActiveState": "inactive"}
    (worker,) = host.workers()
    until(lambda: len(list(host.desk.bucket.rglob("transcription-*.json"))) > 1)
    assert host.workers() == [worker]
    host.machine.run("systemctl", "start", WATCHDOG_SERVICE)
    assert host.machine.shows(WATCHDOG_SERVICE, "Result") == {"Result": "success"}
    assert host.workers() == [worker]
    assert len(host.at_work().workers) == 1


def test_a_pass_that_is_killed_is_followed_by_the_next_one(host: Host) -> None:
    (host.desk.bucket / "talk.wav").write_bytes(spoken())
    host.install()
    host.machine.run("systemctl", "start", "--no-block", SERVICE)
    until(lambda: bool(host.runs()))
    host.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", SERVICE, check=False)
    assert closed(host).outcome is Outcome.COMPLETED


def test_a_worker_that_is_killed_ends_its_run(host: Host) -> None:
    much_work(host.desk)
    host.install()
    host.tick()
    host.start_timer()
    host.at_work()
    until(lambda: bool(host.workers()))
    host.machine.run("kill", "-KILL", *host.workers())
    run = closed(host)
    assert run.outcome is Outcome.WORKER_LOST
    assert f"closed run {run.id}: worker-lost" in host.log(WATCHDOG_SERVICE)


def test_the_units_come_and_go_under_real_systemd(host: Host) -> None:
    for unit in UNITS:
        assert host.machine.run("test", "-e", f"{UNIT_DIR}/{unit}", check=False).returncode != 0
    host.batchscribe("install", "systemd")
    timers = host.machine.run("systemctl", "list-timers", "--all", "batch-transcribe-*").stdout
    assert TIMER in timers
    assert WATCHDOG_TIMER in timers
    assert "watchdog active" in host.batchscribe("status")
    units = [unit for unit in UNITS if unit not in LANE_UNITS]
    verified = host.machine.run("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", *units)
    assert verified.stderr == ""
    host.batchscribe("uninstall")
    assert (
        host.machine.run("systemctl", "list-unit-files", "batch-transcribe-*", check=False).stdout.count(
            "batch-transcribe"
        )
        == 0
    )


@dataclass
class Cloud:
    """EC2 and S3 as moto plays them outside the container: its network is the machine's."""

    endpoint: str
    bucket: str
    instance: str

    def client(self, service: str) -> Any:
        return aws_client(self.endpoint, service)

    @property
    def state(self) -> str:
        found = self.client("ec2").describe_instances(InstanceIds=[self.instance])
        name: str = found["Reservations"][0]["Instances"][0]["State"]["Name"]
        return name

    def orders(self) -> int:
        return len(self.client("scheduler").list_schedules(NamePrefix=self.instance)["Schedules"])


@pytest.fixture
def cloud(host: Host) -> Iterator[Cloud]:
    with moto_server() as endpoint, aws_environment():
        make_schedule_group(endpoint)
        made = Cloud(endpoint, f"audio-{os.urandom(4).hex()}", make_stopped_instance(endpoint))
        create_bucket(endpoint, made.bucket)
        record = InstanceRecord(instance=made.instance, release=__version__, at=datetime.now(UTC))
        for key, data in ((keys.instance(made.instance), encode(record)), ("s/chunk-001.wav", spoken())):
            s3_client(endpoint).put_object(Bucket=made.bucket, Key=f"audio/{key}", Body=data)
        host.desk.configure(
            **CREDENTIALS,
            AWS_ENDPOINT_URL=endpoint,
            BATCH_SOURCE=f"s3://{made.bucket}/audio",
            BATCH_ENGINE="pocketsphinx",
            BATCH_MIN_AGE_MINUTES="0",
            BATCH_THRESHOLD="1",
            BATCH_POLL_SECONDS="0.3",
            BATCH_GUARD_ROLE_ARN=ROLE,
            GPU_INSTANCE_ID=made.instance,
            GPU_HOURLY_COST="1",
            GPU_SSH_HOST="127.0.0.1",
            GPU_SSH_PORT="9",
        )
        pin_host_key(host.desk.home, made.instance)
        yield made


def test_a_deadline_is_kept_in_the_cloud_whatever_the_settings_are_by_then(host: Host, cloud: Cloud) -> None:
    host.install()
    host.tick()
    host.start_timer()
    host.at_work(RunState.DISPATCHING)
    assert (cloud.state, cloud.orders()) == ("running", 1)
    host.machine.run("systemctl", "stop", WATCHDOG_TIMER)
    until(lambda: host.machine.shows(WATCHDOG_SERVICE, "ActiveState")["ActiveState"] != "activating")
    with Ledger(host.ledger) as ledger:
        (run,) = ledger.open_runs()
        ledger.save_run(replace(run, deadline=run.created), at=run.created)
    env = host.desk.home / ".env"
    env.write_text(env.read_text().replace(cloud.instance, "i-0fedcba9876543210") + "BATCH_TRESHOLD=5\n")
    host.start_timer()
    until(lambda: not any(run.open for run in host.runs()))
    host.machine.run("systemctl", "stop", WATCHDOG_TIMER)
    (run,) = host.runs()
    assert run.outcome is Outcome.TIMED_OUT
    assert (cloud.state, cloud.orders()) == ("stopped", 0)
    assert "BATCH_TRESHOLD" in host.log(WATCHDOG_SERVICE)
