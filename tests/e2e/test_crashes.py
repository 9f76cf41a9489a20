"""The controller is killed at every seam while the cloud misbehaves; the next passes make it good.

Real processes with real files, in front of moto's server, with a proxy between them that does to single
calls what clouds do. The worker is played, and outlives its controller as a real one does.

Each crash point and each fault is met once in every run of the suite; the deep tests cross them all, and
have the other points of a lost ledger and of quiet ticks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import cycle, product, repeat

import pytest

from support.cli import wait_for
from support.emulated import Case
from support.faults import Drop, Fault, Hang, Refusal
from support.set_up_hosts import pin_host_key

pytestmark = pytest.mark.e2e

POINTS = (
    "ledger.save_run:planned:after",
    "store.create:intent:after",
    "guard.arm:after",
    "store.replace:instance:after",
    "ledger.save_run:provisioning:after",
    "compute.start:after",
    "store.create:manifest:after",
    "launcher.launch:before",
    "launcher.launch:after",
    "compute.stop:before",
    "compute.stop:after",
    "guard.disarm:after",
    "compute.release:after",
    "store.create:settlement:after",
)
LOST_LEDGER = (
    "store.create:intent:after",
    "launcher.launch:after",
    pytest.param("compute.start:after", marks=pytest.mark.deep),
    pytest.param("compute.stop:after", marks=pytest.mark.deep),
    pytest.param("store.create:settlement:after", marks=pytest.mark.deep),
)
QUIET = (
    "compute.stop:after",
    pytest.param("guard.arm:after", marks=pytest.mark.deep),
    pytest.param("store.create:settlement:after", marks=pytest.mark.deep),
)
LOOKS = ("GET ", "HEAD ", "Describe", "GetSchedule", "ListSchedules")
CHANGES = ("CreateTags", "StartInstances", "StopInstances", "CreateSchedule", "DeleteSchedule")
CONTROL = ("PUT intent.json", "PUT manifest.json", "PUT exit.json", "PUT settlement.json")
PUBLISHED = ("PUT transcription-chunk-001.json", "PUT transcription-chunk-002.json")
MODES: Mapping[str, Mapping[str, tuple[Fault, ...]]] = {
    "nothing": {},
    "refused": dict.fromkeys(CHANGES, (Refusal("InternalError", 500), Refusal("RequestLimitExceeded", 503)))
    | {"DescribeInstances": (None, None, Refusal("RequestLimitExceeded", 503)) * 3},
    "replies-lost": dict.fromkeys((*CHANGES, *CONTROL, *PUBLISHED), (Drop.AFTER,)),
    "silence": dict.fromkeys(("StartInstances", "StopInstances", "CreateSchedule"), (Hang(done=True),)),
    "expired": dict.fromkeys(("StopInstances", "DeleteSchedule"), (Refusal("ExpiredToken", 403),) * 3),
    "no-capacity": {"StartInstances": (Refusal("InsufficientInstanceCapacity", 500),)},
}
"""What the first calls of each name meet: those of the tick that dies, or of a pass after it."""
NEXT = ("tick", "watchdog")
EACH_ONCE = tuple(zip(POINTS, cycle(MODES), cycle(NEXT[:1] * 6 + NEXT[1:] * 6), strict=False))
"""The crash point, the faults, and the command whose passes come next."""
CASES = (
    *EACH_ONCE,
    *(
        pytest.param(point, mode, NEXT[(number + other) % 2], marks=pytest.mark.deep)
        for (number, point), (other, mode) in product(enumerate(POINTS), enumerate(MODES))
        if (point, mode) not in {case[:2] for case in EACH_ONCE}
    ),
)


@pytest.mark.parametrize(("point", "mode", "following"), CASES)
def test_killed_at_any_seam_the_next_passes_make_it_good(
    case: Case, point: str, mode: str, following: str
) -> None:
    for name, faults in MODES[mode].items():
        case.aws.proxy.plan(name, *faults)
    case.killed_at(point)
    told = case.watch() if following == "watchdog" else [case.tick()]
    if case.problems():
        case.aws.proxy.plans.clear()
        told.append(case.tick())
    assert not case.problems(), told
    assert len(case.paid) == 1, "a crash is a pause, not another start"


@pytest.mark.parametrize("point", LOST_LEDGER)
def test_the_ledger_is_lost_and_the_store_knows_it_all(case: Case, point: str) -> None:
    case.killed_at(point)
    for path in case.ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    told = [case.tick()]
    if case.problems():
        told.append(case.tick())
    assert not case.problems(), told
    assert len(case.intents) <= 2, "what was started is finished; what was not is planned again"


@pytest.mark.parametrize("point", ["compute.start:after", "launcher.launch:after"])
def test_the_whole_disk_is_lost_and_a_user_adopts_its_run(case: Case, point: str) -> None:
    case.killed_at(point)
    shutil.rmtree(case.ledger.parent)
    pin_host_key(case.home, case.instance)  # by another set-up
    (run,) = [key.split("/")[2] for key in case.intents]
    if point == "launcher.launch:after":  # the worker is a process here: no instance ends it
        wait_for(any(key.endswith("/exit.json") for key in case.objects()) for _ in repeat(None))
    assert case.tick().document["decision"] == "hold"
    assert case.described()["State"]["Name"] == "running", "another id is another scheduler"
    adopted = case.command("reconcile", "--adopt", run)
    assert [each["run"] for each in adopted.document["released"]] == [run], adopted
    if case.problems():
        case.tick()
    assert not case.problems()


@pytest.mark.parametrize("point", QUIET)
def test_when_all_is_good_ticks_are_quiet(case: Case, point: str) -> None:
    case.killed_at(point)
    case.tick()
    before = case.objects()
    case.aws.proxy.calls.clear()
    after = case.tick()
    assert after.document["decision"] == "hold", after
    assert not [name for name in case.aws.proxy.calls if not name.startswith(LOOKS)]
    assert case.objects() == before
