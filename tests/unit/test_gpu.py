"""`batchscribe gpu` on a simulated cloud: what a person sees, and what is left running afterwards."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.no_guard import NoGuard
from batchscribe.cli.gpu import TOOLS, gpu
from batchscribe.core import keys
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.run.host import CREDENTIALS, CheckRequest, Finding, HostReply, InstanceRecord
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, decode
from batchscribe.core.run.runs import Machine, Run
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    HostTimeoutError,
    InterruptedRunError,
    LaunchError,
    LockHeldError,
    MisconfiguredError,
    NoCapacityError,
    NotOursError,
    NotStoppedError,
    PortClosedError,
    RefusedError,
    StoreUnavailableError,
)
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute, Fault
from batchscribe.testing.guard import FakeGuard
from batchscribe.testing.lock import FakeLock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.gpu import GpuTools
from batchscribe.wiring.preflight import describe_limits
from support.host_setup import PlayedSetup
from support.world import Notes

ID = "i-0123456789abcdef0"


class FakeGpuHost:
    """Answers as a host would; `findings` is what its self-test finds."""

    def __init__(self) -> None:
        self.release = __version__
        self.asked: list[str] = []
        self.causes: list[LaunchError] = []
        """Of the next connections, which fail."""
        self.checks: list[CheckRequest] = []
        self.findings: tuple[Finding, ...] = (Finding(what="engine", ok=True, detail="loads"),)
        self.error: BatchscribeError | None = None

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
        self.asked.append(word)
        if word == "check":
            self.checks.append(decode(data, CheckRequest))
        if self.error:
            raise self.error
        findings = self.findings if word == "check" else ()
        return HostReply(release=self.release, findings=findings)


class DeskSetup(PlayedSetup):
    """A set-up whose first connections fail."""

    def reach(self, instance: Instance) -> None:
        assert isinstance(self.client, FakeGpuHost)
        if self.client.causes:
            raise self.client.causes.pop(0)


class Desk:
    """Everything around the commands, and the commands."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cloud = FakeCompute(self.clock)
        self.cloud.add(ID)
        self.guard = FakeGuard(self.clock, self.cloud.stop, plan=self.clock.at)
        self.sessions = itertools.count(1)
        self.lock = FakeLock()
        self.host = FakeGpuHost()
        self.view = Notes()
        self.store = MemoryStore(self.clock)
        self.instance = ID
        self.provider = "ec2"
        self.run_open: Run | None = None
        self.read_run: Callable[[str], Run | None] = lambda _instance: self.run_open
        self.unsupported = ""
        self.prepared: EngineSpec | None = None
        self.preflight: Callable[[], None] = lambda: None
        self.others: tuple[str, ...] = ()
        """Instances of open runs of another provider."""
        self.request = CheckRequest(now=self.clock.now(), engine=EngineSpec(engine="pocketsphinx"), gpu=False)

    def tools(self) -> GpuTools:
        setup = DeskSetup(
            client=self.host,
            clock=self.clock,
            request=self.request,
            output=self.store,
            published=lambda _instance: frozenset(),
        )
        return GpuTools(
            provider=self.provider,
            instance=self.instance,
            compute=self.cloud,
            guard=self.guard,
            clock=self.clock,
            shield=self.clock,
            view=self.view,
            lock=self.lock,
            open_run=self.read_run,
            new_session=lambda: f"hand-{next(self.sessions)}",
            output=self.store,
            setup=setup,
            absence=f"{self.instance} was not found in us-east-2",
            preflight=self.preflight,
            unsupported=self.unsupported,
            find_prepared=lambda: self.prepared,
            list_others=lambda at: [replace(at, provider="ec2", instance=other) for other in self.others],
        )

    def __call__(self, *words: str) -> Result:
        @click.group()
        @click.pass_context
        def front(ctx: click.Context) -> None:
            ctx.meta[TOOLS] = self.tools

        front.add_command(gpu)
        return CliRunner().invoke(front, ["gpu", *words])

    def refused(self, kind: type[BatchscribeError], *words: str) -> str:
        result = self(*words)
        assert type(result.exception) is kind, (result.exception, result.output)
        return str(result.exception)

    @property
    def state(self) -> InstanceState:
        return self.cloud.describe(ID).state

    def running(self) -> None:
        self.cloud.start_unclaimed(ID)
        self.clock.sleep(60)

    def claimed(self, run: str) -> None:
        deadline = self.clock.now() + timedelta(hours=1)
        self.cloud.start(Claim(instance=ID, run=run, deadline=deadline))
        self.clock.sleep(60)

    def open(self) -> None:
        now = self.clock.now()
        self.run_open = Run(
            id="run-7",
            provider="ec2",
            machines=(Machine(id=ID),),
            policy="now",
            reason="",
            created=now,
            deadline=now + timedelta(hours=1),
            rate=FREE,
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_start_by_hand_claims_nothing_and_says_so(desk: Desk) -> None:
    result = desk("start")
    assert result.exit_code == 0
    assert "the scheduler leaves it alone" in result.output.lower()
    seen = desk.cloud.describe(ID)
    assert (seen.state, seen.run) == (InstanceState.RUNNING, None)
    assert desk.lock.taken == 1


def test_starting_a_running_instance_says_that_it_was_running(desk: Desk) -> None:
    desk.running()
    assert "was running already" in desk("start").output


def test_a_start_waits_for_a_stop_that_is_under_way(desk: Desk) -> None:
    desk.running()
    desk.cloud.stop(ID)
    assert desk("start").exit_code == 0
    assert desk.state is InstanceState.RUNNING


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_reply_to_a_start_is_looked_after(desk: Desk, applied: bool) -> None:
    start, lost = desk.cloud.start_unclaimed, [True]

    def once_lost(instance: str) -> None:
        if lost and lost.pop():
            if applied:
                start(instance)
            raise ComputeUnavailableError("no reply")
        start(instance)

    desk.cloud.start_unclaimed = once_lost  # type: ignore[method-assign]
    assert desk("start").exit_code == 0
    assert desk.state is InstanceState.RUNNING


def test_an_open_run_a_tick_or_a_strange_claim_refuses_a_start(desk: Desk) -> None:
    desk.open()
    assert "run-7" in desk.refused(RefusedError, "start")
    desk.run_open = None
    desk.lock.held_by = "4711"
    assert "4711" in desk.refused(LockHeldError, "start")
    desk.lock.held_by = None
    desk.claimed("foreign-1")
    desk.cloud.stop(ID)
    desk.clock.sleep(60)
    assert "foreign-1" in desk.refused(NotOursError, "start")
    assert desk.state is InstanceState.STOPPED


def test_no_capacity_is_said_and_not_tried_again(desk: Desk) -> None:
    calls: list[str] = []

    def full(instance: str) -> None:
        calls.append(instance)
        raise NoCapacityError("no capacity")

    desk.cloud.start_unclaimed = full  # type: ignore[method-assign]
    desk.refused(NoCapacityError, "start")
    assert len(calls) == 1


def test_an_instance_that_falls_back_is_not_waited_for(desk: Desk) -> None:
    desk.cloud.break_boot(ID)
    assert "broken boot" in desk.refused(ComputeUnavailableError, "start")


def test_an_instance_that_hangs_while_starting_is_named_in_the_end(desk: Desk) -> None:
    desk.cloud.hold(ID)
    assert "gpu stop" in desk.refused(ComputeUnavailableError, "start")


def test_an_interrupted_start_leaves_nothing_running(desk: Desk) -> None:
    desk.clock.at(12, desk.clock.interrupt)
    desk.refused(InterruptedRunError, "start")
    assert desk.state is InstanceState.STOPPED


def test_a_start_for_a_while_is_stopped_in_time(desk: Desk) -> None:
    result = desk("start", "--for", "2h", "--wait")
    assert result.exit_code == 0
    assert desk.state is InstanceState.STOPPED
    assert desk.cloud.billed_seconds(ID) == pytest.approx(7200, abs=60)


def test_a_start_for_a_while_is_stopped_when_the_person_goes(desk: Desk) -> None:
    desk.clock.at(600, desk.clock.interrupt)
    desk.refused(InterruptedRunError, "start", "--for", "2h", "--wait")
    assert desk.state is InstanceState.STOPPED


def test_what_was_started_again_by_somebody_else_is_left_alone(desk: Desk) -> None:
    desk.clock.at(600, lambda: desk.cloud.stop(ID))
    desk.clock.at(700, lambda: desk.cloud.start_unclaimed(ID))
    result = desk("start", "--for", "1h", "--wait")
    assert "not stopped" in result.output
    assert desk.state is InstanceState.RUNNING


@pytest.mark.parametrize("text", ["2", "two hours", "-1h", "1d"])
def test_a_time_that_is_none_is_wrong_usage(desk: Desk, text: str) -> None:
    assert desk("start", "--for", text).exit_code == 2
    assert desk.cloud.calls == []


def test_a_stop_is_told_when_it_was_seen(desk: Desk) -> None:
    desk.running()
    desk.cloud.fail("stop", Fault(ComputeUnavailableError("throttled")))
    result = desk("stop")
    assert (result.exit_code, desk.state) == (0, InstanceState.STOPPED)
    assert "stopped" in result.output


def test_a_stop_while_it_starts_is_repeated_until_it_is_taken(desk: Desk) -> None:
    desk.cloud.start_unclaimed(ID)
    assert desk("stop").exit_code == 0
    assert desk.state is InstanceState.STOPPED


def test_a_stop_that_is_never_seen_is_an_alarm(desk: Desk) -> None:
    desk.running()
    desk.cloud.hold(ID)
    message = desk.refused(NotStoppedError, "stop")
    assert "stopping" in message
    assert desk.state is InstanceState.STOPPING


def test_a_stuck_stop_can_be_forced(desk: Desk) -> None:
    desk.running()
    desk.cloud.hold(ID)
    assert desk("stop", "--force").exit_code == 0
    assert desk.state is InstanceState.STOPPED


def test_a_cloud_that_does_not_answer_never_counts_as_stopped(desk: Desk) -> None:
    desk.running()
    desk.cloud.fail("describe", None, *[Fault(ComputeUnavailableError("silence"))] * 500)
    assert "silence" in desk.refused(NotStoppedError, "stop")


@pytest.mark.parametrize("words", [("stop",), ("stop", "--force")])
@pytest.mark.parametrize("call", ["describe", "stop"])
def test_a_stop_without_the_right_to_it_is_no_stop(desk: Desk, call: str, words: tuple[str, ...]) -> None:
    desk.running()
    desk.cloud.fail(call, Fault(MisconfiguredError(f"the right to {call} is missing")))
    assert f"the right to {call} is missing" in desk.refused(NotStoppedError, *words)
    assert desk.state is InstanceState.RUNNING


def test_a_stop_that_is_interrupted_is_not_taken_for_one(desk: Desk) -> None:
    desk.running()
    desk.cloud.hold(ID)
    desk.clock.at(30, desk.clock.interrupt)
    desk.refused(NotStoppedError, "stop")


def test_an_instance_that_is_not_here_is_a_setting_to_mend_at_once(desk: Desk) -> None:
    begin = desk.clock.now()
    desk.instance = "i-0elsewhere"
    assert "GPU_INSTANCE_ID" in desk.refused(MisconfiguredError, "stop")
    assert desk.clock.now() == begin


def test_what_we_started_and_cannot_find_again_is_not_stopped(desk: Desk) -> None:
    def elsewhere(instance: str) -> Instance:
        return Instance(id=instance, state=InstanceState.MISSING)

    desk.clock.at(600, lambda: setattr(desk.cloud, "describe", elsewhere))
    assert "missing" in desk.refused(NotStoppedError, "start", "--for", "1h", "--wait")


def test_a_stop_for_a_while_that_may_not_look_any_more_is_no_stop(desk: Desk) -> None:
    fault = Fault(MisconfiguredError("the credentials ran out"))
    desk.clock.at(600, lambda: desk.cloud.fail("describe", fault))
    assert "ran out" in desk.refused(NotStoppedError, "start", "--for", "1h", "--wait")


def test_a_run_a_tick_and_strangers_are_asked_for_force(desk: Desk) -> None:
    desk.claimed("run-7")
    desk.open()
    assert "--force" in desk.refused(RefusedError, "stop")
    desk.run_open, desk.lock.held_by = None, "4711"
    assert "--force" in desk.refused(RefusedError, "stop")
    desk.lock.held_by = None
    assert "--force" in desk.refused(NotOursError, "stop")
    assert desk.state is InstanceState.RUNNING


@pytest.mark.parametrize("provider", ["local", "ec2"])
def test_a_machine_of_another_provider_s_run_is_shown_and_stopped(desk: Desk, provider: str) -> None:
    desk.provider, desk.others = provider, ("i-0other",)
    desk.cloud.add("i-0other")
    desk.cloud.start_unclaimed("i-0other")
    desk.clock.sleep(60)
    document = json.loads(desk("status", "--json").output)
    assert [row["instance"] for row in document["other_machines"]] == ["i-0other"]
    assert "i-0other" in desk("status").output
    assert "i-0other is stopped (observed)" in desk("stop", "--force").output
    assert desk.cloud.describe("i-0other").state is InstanceState.STOPPED


def test_force_stops_a_run_under_way(desk: Desk) -> None:
    desk.claimed("run-7")
    desk.open()
    desk.lock.held_by = "4711"
    assert desk("stop", "--force").exit_code == 0
    assert desk.state is InstanceState.STOPPED


def test_the_status_is_one_document(desk: Desk) -> None:
    desk.claimed("run-7")
    document = json.loads(desk("status", "--json").output)
    assert (document["state"], document["claimed_by"], document["worker"]) == ("running", "run-7", None)
    assert document["billable"] is True
    shown = desk("status").output
    assert "run-7" in shown


def test_the_status_has_no_raw_values(desk: Desk) -> None:
    desk.claimed("run-7")
    desk.lock.held_by = "4711 2026-11-29T02:17:14+00:00"
    rows = {line[:17].strip(): line[17:] for line in desk("status").output.splitlines()}
    assert rows["billable"] == "yes"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", rows["launched at"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", rows["deadline"])
    assert rows["lock"] == "held by process 4711 since 2026-11-29 02:17:14 UTC"


def test_the_status_says_which_record_cannot_be_read(desk: Desk) -> None:
    desk.running()
    desk.store.place(keys.instance(ID), b'{"instance": "i-')
    said = desk.refused(MisconfiguredError, "status")
    assert "\n" not in said
    assert all(part in said for part in (f"{ID} is running", keys.instance(ID), "gpu setup"))
    done = desk("status", "--json")
    document = json.loads(done.output)
    assert (document["state"], document["error"], done.exit_code) == ("running", said, 2)


def test_the_status_shows_a_machine_without_its_ledger_and_store(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailableError("no answer")

    desk.running()
    desk.read_run = refuse
    monkeypatch.setattr(desk.store, "get", refuse)
    done = desk("status", "--json")
    document = json.loads(done.output)
    assert (document["state"], document["open_run"], document["worker"]) == ("running", None, None)
    assert (document["error"], done.exit_code) == ("no answer", 1)
    assert "running" in desk("status").output


@pytest.mark.parametrize("provider", ["ec2", "local"])
def test_a_machine_that_cannot_be_polled_hides_no_other(desk: Desk, provider: str) -> None:
    desk.provider, desk.others = provider, ("i-0absent", "i-0other")
    desk.cloud.add("i-0other")
    desk.cloud.start_unclaimed("i-0other")
    desk.clock.sleep(60)
    desk.instance = "i-0elsewhere"
    done = desk("status", "--json")
    document = json.loads(done.output)
    assert [row["instance"] for row in document["other_machines"]] == ["i-0other"]
    assert (document["instance"], done.exit_code) == ("i-0elsewhere", 2)
    shown = desk("status")
    assert "i-0other" in shown.output
    assert shown.exception is not None
    assert "was not found" in str(shown.exception)


def test_a_check_of_a_stopped_instance_says_what_it_could_not_look_at(desk: Desk) -> None:
    result = desk("check")
    assert result.exit_code == 0, "stopped is its usual state"
    assert "ok    state              stopped" in result.output
    assert "not checked while it is not running: ssh, worker, engine and stores" in result.output
    assert "check --start" in result.output
    assert desk.host.asked == []


def test_a_check_starts_and_stops_when_asked_to(desk: Desk) -> None:
    result = desk("check", "--start")
    assert result.exit_code == 0, result.output
    assert "ok    engine" in result.output
    assert "is stopped again" in result.output
    assert desk.state is InstanceState.STOPPED


def test_a_wait_for_the_host_shows_the_cause_and_ends_when_it_answers(desk: Desk) -> None:
    desk.host.causes = [HostTimeoutError("ssh to 1.2.3.4:22: connection timed out")] * 2
    assert desk("check", "--start").exit_code == 0
    assert f"starting {ID} (g5.xlarge), 0:00 of 10:00" in desk.view.waits
    assert "ssh to 1.2.3.4:22: connection timed out, 0:05 of 10:00" in desk.view.waits
    assert any(line.startswith(f"stopping {ID}") for line in desk.view.waits)


@pytest.mark.parametrize(
    ("cause", "billed", "fix"),
    [
        (HostTimeoutError("ssh to 1.2.3.4:22: connection timed out"), 600, "check its security group"),
        (PortClosedError("ssh to 1.2.3.4:22: connection refused"), 90, "GPU_SSH_PORT"),
    ],
)
def test_a_host_that_cannot_be_reached_is_stopped_with_its_cause(
    desk: Desk, cause: LaunchError, billed: float, fix: str
) -> None:
    desk.host.causes = [cause] * 1000
    error = desk.refused(LaunchError, "setup", "--start")
    assert str(cause) in error
    assert fix in error
    assert desk.cloud.billed_seconds(ID) == pytest.approx(billed, abs=20)
    assert desk.state is InstanceState.STOPPED


def test_a_check_that_breaks_stops_what_it_started(desk: Desk) -> None:
    desk.host.error = LaunchError("the box fell silent")
    result = desk("check", "--start")
    assert result.exit_code == 1
    assert "fell silent" in result.output
    assert desk.state is InstanceState.STOPPED


def test_a_check_leaves_a_running_instance_running(desk: Desk) -> None:
    desk.running()
    assert desk("check", "--start").exit_code == 0
    assert desk.state is InstanceState.RUNNING


def test_a_check_beside_a_run_loads_no_second_model(desk: Desk) -> None:
    desk.running()
    assert desk("check").exit_code == 0
    assert desk.host.checks[-1].busy is False
    desk.open()
    assert desk("check").exit_code == 0
    assert desk.host.checks[-1].busy is True


def test_a_check_beside_another_scheduler_s_run_loads_no_second_model(desk: Desk) -> None:
    desk.claimed("foreign-1")
    assert desk("check").exit_code == 0
    assert desk.host.checks[-1].busy is True
    desk.clock.sleep(7200)
    assert desk("check").exit_code == 0
    assert desk.host.checks[-1].busy is False, "its deadline is past"


def test_a_check_stops_nothing_that_it_did_not_start(desk: Desk) -> None:
    desk.claimed("foreign-1")
    desk.cloud.stop(ID)
    desk.clock.sleep(60)
    # Between the look and the start, its owner starts it.
    describe, looks = desk.cloud.describe, [0]

    def meanwhile(instance: str) -> Instance:
        looks[0] += 1
        if looks[0] == 2:
            desk.claimed("foreign-2")
        return describe(instance)

    desk.cloud.describe = meanwhile  # type: ignore[method-assign]
    desk("check", "--start")
    assert describe(ID).state is InstanceState.RUNNING


@pytest.mark.parametrize("release", ["0.0.1"])
def test_another_version_is_a_failure_with_its_mend(desk: Desk, release: str) -> None:
    desk.running()
    desk.host.release = release
    result = desk("check")
    assert result.exit_code == 1
    assert "batchscribe gpu setup" in result.output


def test_an_instance_that_does_not_exist_ends_the_check(desk: Desk) -> None:
    desk.cloud.terminate(ID)
    desk.clock.sleep(60)
    result = desk("check")
    assert result.exit_code == 1
    assert "GPU_INSTANCE_ID" in result.output


def test_a_setup_wants_a_running_instance_and_no_run_on_it(desk: Desk) -> None:
    assert "--start" in desk.refused(MisconfiguredError, "setup")
    desk.running()
    desk.open()
    desk.refused(RefusedError, "setup")


def test_a_setup_is_recorded_only_when_all_is_well(desk: Desk) -> None:
    desk.running()
    desk.host.findings = (Finding(what="engine", ok=False, detail="no model"),)
    result = desk("setup")
    assert result.exit_code == 1
    assert "not recorded" in result.output
    assert list(desk.store.list()) == []
    desk.host.findings = ()
    assert desk("setup").exit_code == 0
    record = json.loads(desk.store.get(keys.instance(ID)).data)
    assert (record["instance"], record["release"]) == (ID, __version__)
    assert json.loads(desk("status", "--json").output)["worker"] == __version__


class FakeImages:
    """An account in which an image takes a minute."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.made: list[str] = []

    def plan_image(self, instance: str, now: datetime) -> dict[str, object]:
        return {"InstanceId": instance, "Name": f"made at {now:%H:%M}"}

    def plan_template(self, template: str, instance: str, image: str) -> dict[str, object]:
        return {"LaunchTemplateName": template, "LaunchTemplateData": {"ImageId": image}}

    def create_image(self, request: dict[str, object]) -> str:
        self.made.append(f"image of {request['InstanceId']}")
        return "ami-1"

    def await_image(self, image: str, clock: FakeClock) -> None:
        clock.sleep(60)

    def save_template(self, request: dict[str, object], image: str) -> int:
        self.made.append(f"template {request['LaunchTemplateName']} of {image}")
        return 7


@pytest.fixture
def images(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> FakeImages:
    made, tools = FakeImages(desk.clock), desk.tools
    monkeypatch.setattr(desk, "tools", lambda: replace(tools(), images=made))  # type: ignore[arg-type]
    return made


def test_an_image_is_made_of_a_stopped_instance_that_was_set_up(desk: Desk, images: FakeImages) -> None:
    result = desk("image", "--start")
    assert result.exit_code == 0, result.output
    assert desk.state is InstanceState.STOPPED
    assert images.made == [f"image of {ID}", "template batchscribe of ami-1"]
    assert "version 7, now the default" in result.output
    assert "GPU_LAUNCH_TEMPLATE=batchscribe" in result.output
    record = decode(desk.store.get(keys.instance("ami-1")).data, InstanceRecord)
    assert (record.instance, record.release, record.boots) == ("ami-1", __version__, True)


def test_no_image_is_made_of_a_host_that_fails_its_checks(desk: Desk, images: FakeImages) -> None:
    desk.running()
    desk.host.findings = (Finding(what="engine", ok=False, detail="no model"),)
    result = desk("image")
    assert (result.exit_code, images.made, list(desk.store.list())) == (1, [], [])
    assert "no image was made" in result.output


def test_the_commands_of_an_image_can_be_printed(desk: Desk, images: FakeImages) -> None:
    desk.running()
    result = desk("image", "--print")
    assert (result.exit_code, images.made) == (0, [])
    lines = [line for line in result.output.splitlines() if line.startswith("aws ")]
    assert [shlex.split(line)[1:3] for line in lines] == [
        ["ec2", "create-image"],
        ["ec2", "create-launch-template"],
    ]
    assert json.loads(shlex.split(lines[0])[-1])["InstanceId"] == ID
    assert list(desk.store.list()) == []
    assert "gpu image --made IMAGE_ID" in result.output
    assert desk("image", "--made", "ami-7").exit_code == 0
    assert [info.key for info in desk.store.list()] == [keys.instance("ami-7")]


def test_an_image_wants_a_running_instance(desk: Desk, images: FakeImages) -> None:
    assert "--start" in desk.refused(MisconfiguredError, "image")
    assert images.made == []


def test_there_is_nothing_to_log_in_to_on_this_machine(desk: Desk) -> None:
    desk.refused(MisconfiguredError, "ssh")


@pytest.mark.parametrize(
    "words", [("start",), ("stop",), ("setup",), ("image",), ("check",), ("start", "--for", "2h")]
)
def test_a_gpu_in_this_machine_is_neither_started_nor_held(desk: Desk, words: tuple[str, ...]) -> None:
    desk.provider = "local"
    result = desk(*words)
    assert (result.exit_code, desk.cloud.calls) == (0, [("describe", ID)] * (words == ("check",)))
    assert "the GPU is in this machine: nothing to" in result.output
    assert ("engine pocketsphinx" in result.output) == (words == ("check",)), "a check needs no start"
    assert desk.host.asked == []
    assert list(desk.store.list()) == []


def test_a_check_of_this_machine_reports_what_fails(desk: Desk) -> None:
    desk.provider = "local"
    desk.request = structs.replace(desk.request, engine=EngineSpec(engine="no-such-engine"))
    assert desk("check").exit_code == 1


def stale(desk: Desk, run: str) -> None:
    desk.guard.arm(Claim(instance=ID, run=run, deadline=desk.clock.now() + timedelta(hours=3)))


def test_a_session_of_some_hours_is_guarded_from_before_its_start_until_it_was_seen_stopped(
    desk: Desk,
) -> None:
    orders: list[tuple[InstanceState, frozenset[str]]] = []
    start, stop = desk.cloud.start_unclaimed, desk.cloud.stop

    def started(instance: str) -> None:
        orders.append((desk.state, desk.guard.standing(ID)))
        start(instance)

    def asked(instance: str, *, force: bool = False) -> None:
        orders.append((desk.state, desk.guard.standing(ID)))
        stop(instance, force=force)

    desk.cloud.start_unclaimed, desk.cloud.stop = started, asked  # type: ignore[method-assign]
    assert desk("start", "--for", "2h", "--wait").exit_code == 0
    standing = frozenset({"hand-1"})
    assert orders == [(InstanceState.STOPPED, standing), (InstanceState.RUNNING, standing)]
    assert desk.guard.standing(ID) == frozenset()


def test_a_session_whose_process_died_is_stopped_by_the_guard(desk: Desk) -> None:
    desk.clock.at(600, desk.clock.interrupt)
    desk.cloud.fail("stop", Fault(MisconfiguredError("no right any more")))
    desk.refused(NotStoppedError, "start", "--for", "1h", "--wait")
    desk.clock.signal = None
    assert desk.guard.standing(ID) == {"hand-1"}
    desk.clock.sleep(75 * 60)
    assert desk.state is InstanceState.STOPPED


def test_a_start_for_a_while_returns_and_the_guard_ends_it(desk: Desk) -> None:
    begin = desk.clock.now()
    result = desk("start", "--for", "2h")
    assert result.exit_code == 0
    assert desk.clock.now() - begin < timedelta(minutes=2)
    assert f"at the latest {begin + timedelta(hours=2):%Y-%m-%d %H:%M} UTC" in result.output
    desk.clock.sleep(7100 - (desk.clock.now() - begin).total_seconds())
    before = desk.state
    desk.clock.sleep(200)
    assert (before, desk.state) == (InstanceState.RUNNING, InstanceState.STOPPED)


def test_another_start_for_a_while_replaces_the_time(desk: Desk) -> None:
    desk("start", "--for", "1h")
    assert desk("start", "--for", "3h").exit_code == 0
    assert desk.guard.standing(ID) == {"hand-2"}
    desk.clock.sleep(2 * 3600)
    assert desk.state is InstanceState.RUNNING
    assert desk("stop").exit_code == 0
    assert desk.guard.standing(ID) == frozenset(), "it must not stop the next session"


def test_without_a_guard_a_start_for_a_while_is_refused(desk: Desk) -> None:
    desk.guard = NoGuard()  # type: ignore[assignment]
    assert "BATCH_CLOUD_GUARD=off" in desk.refused(MisconfiguredError, "start", "--for", "2h")
    assert desk.cloud.calls == []
    assert desk("start", "--for", "2h", "--wait").exit_code == 0
    assert desk.state is InstanceState.STOPPED


def test_waiting_without_a_time_is_wrong_usage(desk: Desk) -> None:
    assert desk("start", "--wait").exit_code == 2
    assert desk.cloud.calls == []


def test_without_an_order_nothing_is_started_for_some_hours(desk: Desk) -> None:
    desk.guard.fail("arm", Fault(ComputeUnavailableError("no answer"), applied=True))
    assert "no answer" in desk.refused(ComputeUnavailableError, "start", "--for", "2h", "--wait")
    assert ("start", ID) not in desk.cloud.calls
    assert desk.state is InstanceState.STOPPED
    assert desk.guard.standing(ID) == frozenset()


def test_a_start_that_was_refused_leaves_no_order(desk: Desk) -> None:
    def refuse(instance: str) -> None:
        raise NoCapacityError("no capacity")

    desk.cloud.start_unclaimed = refuse  # type: ignore[method-assign]
    desk.refused(NoCapacityError, "start", "--for", "2h", "--wait")
    assert desk.guard.standing(ID) == frozenset()


def test_no_session_is_begun_on_what_another_scheduler_claims(desk: Desk) -> None:
    desk.claimed("run-9")
    stale(desk, "run-9")
    desk.refused(NotOursError, "start", "--for", "1h", "--wait")
    assert desk.guard.standing(ID) == {"run-9"}


@pytest.mark.parametrize("words", [("start",), ("stop",), ("check", "--start")])
def test_what_nothing_stands_behind_is_taken_back_and_said(desk: Desk, words: tuple[str, ...]) -> None:
    stale(desk, "run-3")
    stale(desk, "hand-0")
    assert "hand-0, run-3" in desk(*words).output
    assert desk.guard.standing(ID) == frozenset()


def test_a_second_start_leaves_the_order_of_the_session_that_goes_on(desk: Desk) -> None:
    desk.running()
    stale(desk, "hand-0")
    stale(desk, "run-3")
    desk("start")
    assert desk.guard.standing(ID) == {"hand-0"}


def test_a_forced_stop_leaves_the_order_of_the_run_to_its_tick(desk: Desk) -> None:
    desk.open()
    desk.running()
    stale(desk, "run-7")
    assert desk("stop", "--force").exit_code == 0
    assert desk.guard.standing(ID) == {"run-7"}


def test_an_instance_borrowed_for_a_check_is_guarded_meanwhile(desk: Desk) -> None:
    seen: list[frozenset[str]] = []
    start = desk.cloud.start_unclaimed

    def started(instance: str) -> None:
        seen.append(desk.guard.standing(ID))
        start(instance)

    desk.cloud.start_unclaimed = started  # type: ignore[method-assign]
    assert desk("check", "--start").exit_code == 0
    assert seen == [{"hand-1"}]
    assert desk.guard.standing(ID) == frozenset()


@pytest.mark.parametrize("words", [("check", "--start"), ("setup", "--start")], ids=lambda words: words[0])
def test_a_model_that_cannot_do_what_is_asked_starts_nothing(desk: Desk, words: tuple[str, ...]) -> None:
    desk.unsupported = describe_limits(EngineSpec(engine="faster-whisper", model="small.en", language="fr"))
    assert "WHISPER_MODEL=small" in desk.refused(MisconfiguredError, *words)
    assert not [call for call in desk.cloud.calls if call[0].startswith("start")]
    assert desk.host.asked == []


@pytest.mark.parametrize(
    "words", [("start",), ("start", "--for", "1h", "--wait"), ("check", "--start"), ("setup", "--start")]
)
def test_a_start_that_is_bound_to_be_useless_is_refused(desk: Desk, words: tuple[str, ...]) -> None:
    def refuse() -> None:
        raise MisconfiguredError("/nope.pem cannot be used")

    desk.preflight = refuse
    assert "/nope.pem" in desk.refused(MisconfiguredError, *words)
    assert desk.cloud.calls == []
    assert desk.guard.standing(ID) == frozenset()


@pytest.mark.parametrize("words", [("status",), ("check",)])
def test_an_instance_that_is_not_there_is_named_with_its_region(desk: Desk, words: tuple[str, ...]) -> None:
    desk.instance = "i-0elsewhere"
    assert desk.refused(MisconfiguredError, *words) == "i-0elsewhere was not found in us-east-2"


def set_up_record(desk: Desk) -> InstanceRecord:
    return decode(desk.store.get(keys.instance(ID)).data, InstanceRecord)


def test_a_set_up_records_what_it_prepared(desk: Desk) -> None:
    desk.request = structs.replace(desk.request, engine=EngineSpec(engine="faster-whisper", model="small.en"))
    assert desk("setup", "--start").exit_code == 0
    made = set_up_record(desk)
    assert (made.engine, made.model, made.credentials) == ("faster-whisper", "small.en", True)


def test_a_check_loads_what_the_host_was_set_up_for_and_a_set_up_what_it_prepares(desk: Desk) -> None:
    best = EngineSpec(engine="faster-whisper", model="large-v3-turbo")
    desk.request = structs.replace(desk.request, engine=best)
    desk.prepared = EngineSpec(engine="faster-whisper", model="small.en")
    assert desk("check", "--start").exit_code == 0
    assert desk("setup", "--start").exit_code == 0
    assert [asked.engine for asked in desk.host.checks] == [desk.prepared, best]
    assert set_up_record(desk).model == "large-v3-turbo"


def test_a_host_without_credentials_is_recorded_so_that_no_start_is_paid_for_it(desk: Desk) -> None:
    desk("setup", "--start")
    missing = Finding(what=CREDENTIALS, ok=False, detail="no AWS credentials on the host")
    desk.host.findings = (*desk.host.findings, missing)
    assert desk("setup", "--start").exit_code == 1
    assert not set_up_record(desk).credentials
    desk.host.findings = desk.host.findings[:1]
    desk("setup", "--start")
    assert set_up_record(desk).credentials


def test_a_host_with_another_failure_keeps_its_record(desk: Desk) -> None:
    desk("setup", "--start")
    before = set_up_record(desk)
    broken = (CREDENTIALS, "engine")
    desk.host.findings = tuple(Finding(what=what, ok=False, detail="broken") for what in broken)
    assert desk("setup", "--start").exit_code == 1
    assert set_up_record(desk) == before


def test_a_remote_command_has_its_own_options(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[object] = []

    def argv(_instance: Instance, command: tuple[str, ...]) -> list[str]:
        commands.append(command)
        return ["ssh"]

    ssh: Any = SimpleNamespace(argv=argv)
    tools = replace(desk.tools(), ssh=ssh)
    monkeypatch.setattr(desk, "tools", lambda: tools)
    monkeypatch.setattr("os.execvp", lambda *_argv: None)
    assert desk("ssh", "uname", "-s", "--all").exit_code == 0
    assert commands == [("uname", "-s", "--all")]


def test_a_manual_session_has_its_price(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    priced = replace(desk.tools(), find_rate=lambda _type: Rate(per_hour=Usd.parse("0.526"), source="test"))
    monkeypatch.setattr(desk, "tools", lambda: priced)
    assert json.loads(desk("status", "--json").output)["dollars_so_far"] is None, "it is stopped"
    assert "it costs $0.526/h until `batchscribe gpu stop`" in desk("start").output
    desk.clock.sleep(3600)
    document = json.loads(desk("status", "--json").output)
    assert document["hourly_dollars"] == 0.526
    assert 0.526 <= document["dollars_so_far"] < 0.54
    assert re.search(r"^dollars so far +\$0\.5\d", desk("status").output, re.MULTILINE)


@pytest.mark.parametrize("words", [("start",), ("setup", "--start")])
def test_a_start_of_an_instance_that_is_not_there_names_its_region(
    desk: Desk, words: tuple[str, ...]
) -> None:
    desk.instance = "i-0fedcba9876543210"
    message = desk.refused(MisconfiguredError, *words)
    assert message == "i-0fedcba9876543210 was not found in us-east-2"
