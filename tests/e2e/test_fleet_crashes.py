"""The controller of created machines is killed at every seam; the next passes make it good.

As test_crashes.py, on EC2 Fleet: at the end no machine is left, and each chunk was done once.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest

from batchscribe.adapters.aws.schedules import GROUP
from support.created import CreatedCase, new_created_case
from support.emulated import Aws
from support.faults import Drop, Fault, Hang, Refusal

pytestmark = pytest.mark.e2e

CALLS = (
    "guard.arm",
    "capacity.list_created",
    "capacity.poll",
    "capacity.acquire",
    "capacity.announce",
    "capacity.teardown",
    "guard.disarm",
)
POINTS = tuple(f"{call}:{when}" for call, when in product(CALLS, ("before", "after")))
CHANGES = ("CreateFleet", "CreateTags", "TerminateInstances", "CreateSchedule", "DeleteSchedule")
MODES: Mapping[str, Mapping[str, tuple[Fault, ...]]] = {
    "nothing": {},
    "refused": dict.fromkeys(CHANGES, (Refusal("InternalError", 500), Refusal("RequestLimitExceeded", 503))),
    "replies-lost": dict.fromkeys(CHANGES, (Drop.AFTER,)),
    "silence": dict.fromkeys(("CreateFleet", "TerminateInstances", "CreateSchedule"), (Hang(done=True),)),
    "expired": dict.fromkeys(("TerminateInstances", "DeleteSchedule"), (Refusal("ExpiredToken", 403),) * 3),
    "no-capacity": {"CreateFleet": (Refusal("InsufficientInstanceCapacity", 500),)},
}
"""What the first calls of each name meet: those of the tick that dies, or of a pass after it."""
QUICK = {
    ("capacity.acquire:after", "nothing"),
    ("capacity.announce:before", "refused"),
    ("capacity.teardown:after", "replies-lost"),
    ("guard.disarm:before", "no-capacity"),
}
CASES = [
    pytest.param(point, mode, marks=() if (point, mode) in QUICK else pytest.mark.deep)
    for point, mode in product(POINTS, MODES)
]


@pytest.fixture
def created(aws: Aws, tmp_path: Path) -> CreatedCase:
    # Terminated instances of other cases would make each answer of moto slower.
    urllib.request.urlopen(f"{aws.endpoint}/moto-api/reset", data=b"").close()
    aws.scheduler.create_schedule_group(Name=GROUP)
    home = tmp_path / "home"
    home.mkdir()
    return new_created_case(aws, home)


@pytest.mark.parametrize(("point", "mode"), CASES)
def test_killed_at_any_seam_the_next_passes_make_it_good(created: CreatedCase, point: str, mode: str) -> None:
    for name, faults in MODES[mode].items():
        created.aws.proxy.plan(name, *faults)
    created.killed_at(point)
    ended = created.watch()
    if created.problems():
        created.aws.proxy.plans.clear()
        ended.append(created.tick())
    assert not created.problems(), ended
    assert len(created.paid) == 1, "a crash is a pause, not another start"


@pytest.mark.parametrize(
    "point",
    [
        "capacity.acquire:after",
        pytest.param("capacity.announce:after", marks=pytest.mark.deep),
        pytest.param("capacity.teardown:after", marks=pytest.mark.deep),
        pytest.param("guard.disarm:after", marks=pytest.mark.deep),
    ],
)
def test_the_ledger_is_lost_and_the_store_names_the_machines(created: CreatedCase, point: str) -> None:
    created.killed_at(point)
    for path in created.ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    ended = [created.tick(lands=1.0)]
    if created.problems():
        ended.append(created.tick(lands=1.0))
    assert not created.problems(), ended
    assert len(created.intents) <= 2, "what was started is finished; what was not is planned again"
