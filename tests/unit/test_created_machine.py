"""The agent of a machine that was created for a run: its name, its manifests, its power, its interruption."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.agent.state_files import StateFiles
from batchscribe.core import keys
from batchscribe.core.run.host import BootRecord, ClaimLaunch, HostPlace, HostWaits
from batchscribe.core.run.instances import MACHINE_TAG
from batchscribe.core.run.manifest import WorkerEnd, encode
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError
from batchscribe.wiring import host_boot
from support.host_agent import RUN, Awake
from support.metadata import metadata_service

MACHINE = f"{RUN}-1"
WAITS = HostWaits()
POLL = 10.0
"""At most so long is between two polls of the agent."""


@pytest.fixture
def host() -> Awake:
    return Awake(machine=MACHINE)


def test_it_works_for_the_claim_with_its_name_and_powers_itself_off(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(60, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 60 + WAITS.linger
    assert [each.worker for each in host.workers.requests] == [0]
    assert host.taken_by() == "boot-1"
    assert not [*host.store.list(keys.boot(RUN))], "the run's other machines have boots of their own"


def test_each_machine_takes_the_manifest_that_was_announced_to_it(host: Awake) -> None:
    """The numbers are the run's: others' manifests come before, between and after its own."""
    host.claimed()
    for worker in range(3):
        host.give_unannounced(worker)
    host.announced = host.give_unannounced(3)
    host.at(30, partial(host.give_unannounced, 4))
    host.at(60, partial(host.finish, 3))
    host.at(80, partial(host.give, 5))
    host.at(120, partial(host.finish, 5))
    host.live()
    assert [each.worker for each in host.workers.requests] == [3, 5]
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "work ended")


def test_a_forged_manifest_that_its_controller_replaces_keeps_no_work_back(host: Awake) -> None:
    host.claimed()
    host.give()
    host.give_unannounced(source="file:///root")
    host.at(60, host.give)
    host.at(300, host.finish)
    host.live()
    assert [each.sha256 for each in host.workers.requests] == [host.announced]


def test_work_of_other_machines_is_none_of_its_own(host: Awake) -> None:
    host.claimed()
    host.give_unannounced(0)
    host.at(5, partial(host.finish, 0))
    off = host.live()
    assert off is not None
    assert WAITS.first <= off <= WAITS.first + POLL
    assert host.workers.requests == []


def test_a_restarted_agent_follows_its_worker_on(host: Awake) -> None:
    host.claimed()
    for worker in range(2):
        host.give_unannounced(worker)
    host.give(2)
    host.workers.begin(2)
    host.call_off(2)
    host.workers.on_end = lambda _request: host.finish(2, WorkerEnd.STOPPED)
    host.live()
    assert host.workers.requests == []
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "work ended")


@pytest.mark.parametrize("launch", [*ClaimLaunch])
def test_a_claim_that_is_not_for_it_ends_in_its_power_off(host: Awake, launch: ClaimLaunch) -> None:
    host.claimed(launch, machine=f"{RUN}-7")
    assert host.live() == 0.0
    assert host.taken_by() is None


def test_without_a_record_it_powers_itself_off(host: Awake) -> None:
    assert host.live() == 0.0


def test_without_a_claim_it_powers_itself_off(host: Awake) -> None:
    host.record(None)
    assert host.live() == 0.0


def test_after_its_run_was_settled_it_powers_itself_off(host: Awake) -> None:
    host.claimed()
    host.settle()
    assert host.live() == 0.0


def test_a_rehearsal_s_claim_on_hold_does_nothing(host: Awake) -> None:
    host.claimed(ClaimLaunch.HELD)
    assert host.live() is None
    assert not host.deadman_files.taken, "the dead-man does nothing, either"


def test_a_claim_revoked_before_any_work_powers_it_off(host: Awake) -> None:
    host.claimed()
    host.at(300, partial(host.record, None))
    off = host.live()
    assert off is not None
    assert WAITS.first <= off <= WAITS.first + POLL


@pytest.mark.parametrize("error", [ComputeUnavailableError("away"), MisconfiguredError("no tag")])
def test_a_machine_that_cannot_find_out_its_name_powers_itself_off(host: Awake, error: Exception) -> None:
    def fail() -> str:
        raise error

    host.claimed()
    host.named = fail
    off = host.live()
    assert off is not None
    assert WAITS.store <= off <= WAITS.store + POLL


def test_its_dead_man_powers_off_an_agent_that_dies_before_its_claim(host: Awake) -> None:
    def fail() -> str:
        raise ComputeUnavailableError("away")

    host.named = fail
    host.agent().step()
    assert host.deadman_files.limit == host.began + WAITS.store + WAITS.overtime


def test_the_limit_of_its_claim_replaces_that_of_the_wait(host: Awake) -> None:
    host.claimed()
    host.agent().step()
    assert host.deadman_files.limit is not None
    assert host.deadman_files.limit > host.began + 3600


def test_an_existing_instance_is_not_powered_off_for_what_it_has_no_claim_for() -> None:
    assert Awake().live() is None


def test_a_second_instance_of_the_name_ends_itself_and_nothing_else(host: Awake) -> None:
    host.claimed()
    host.give()
    first = BootRecord(run=RUN, boot="boot-0", at=host.boot.at, release="0")
    host.store.create(keys.boot(RUN, MACHINE), encode(first))
    assert host.live() == 0.0
    assert host.end() is None, "the first one is at work"
    assert host.workers.requests == []


def test_an_interrupted_worker_publishes_what_is_in_the_engine(host: Awake) -> None:
    host.claimed()
    host.give()
    host.workers.on_end = lambda _request: host.at(20, partial(host.finish, 0, WorkerEnd.STOPPED))
    host.at(100, partial(setattr, host, "interruption", "EC2 revokes this spot instance"))
    off = host.live()
    assert off is not None
    assert 120 <= off <= 120 + 2 * POLL
    assert [request.force for request in host.workers.asked] == [False]
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "EC2 revokes this spot instance")


def test_an_interrupted_worker_that_does_not_end_is_killed_before_the_power_goes(host: Awake) -> None:
    host.claimed()
    host.give()
    host.workers.deaf = True
    host.at(100, partial(setattr, host, "interruption", "EC2 revokes this spot instance"))
    off = host.live()
    assert off is not None
    assert 100 + WAITS.grace <= off <= 100 + WAITS.grace + 2 * POLL <= 100 + 120
    assert [request.force for request in host.workers.asked] == [False, True]


def test_an_interrupted_machine_begins_nothing_more(host: Awake) -> None:
    host.claimed()
    host.at(20, partial(setattr, host, "interruption", "EC2 revokes this spot instance"))
    host.at(20, host.give)
    off = host.live()
    assert off is not None
    assert off <= 20 + POLL
    assert host.workers.requests == []


def test_a_metadata_service_that_fails_ends_no_work(host: Awake) -> None:
    def fail() -> str:
        raise ComputeUnavailableError("away")

    host.claimed()
    host.give()
    host.at(60, host.finish)
    agent = host.agent()
    agent._seams = replace(agent._seams, interruption=fail)
    while (wait := agent.step()) is not None:
        host.clock.sleep(wait)
    assert host.deadman_files.off_at is not None
    assert host.deadman_files.off_at - host.began >= 60 + WAITS.linger


PLACE = HostPlace(instance="i-0123456789abcdef0", home="s3://home", created=True)


@pytest.mark.parametrize(
    ("tag", "created"), [(PLACE.instance, False), ("i-0fedcba9876543210", True), (None, True)]
)
def test_only_the_instance_that_the_image_was_made_on_is_no_created_machine(
    tmp_path: Path, tag: str | None, created: bool
) -> None:
    path = tmp_path / "board_asset_tag"
    if tag is not None:
        path.write_text(f"{tag}\n")
    assert host_boot.is_created(PLACE, path) is created
    assert not host_boot.is_created(msgspec.structs.replace(PLACE, created=False), path)


def test_its_name_comes_from_its_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_service({MACHINE_TAG: MACHINE}) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        assert host_boot.read_machine_name() == MACHINE
        service.tags = None
        with pytest.raises(MisconfiguredError, match="InstanceMetadataTags"):
            host_boot.read_machine_name()


def test_the_process_of_a_created_machine_requests_its_power_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata shows no tags: the agent cannot find out its name, and its time is over."""
    markers = tmp_path / "markers"
    markers.mkdir()
    clock = SystemClock()
    place = msgspec.structs.replace(PLACE, waits=HostWaits(store=0.0))
    monkeypatch.setattr(host_boot, "STATE_FOLDER", markers)
    with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        host_boot._run_agent(place, GpuHost(tmp_path, clock), clock)
    assert {path.name for path in markers.iterdir()} == {"alive", "claim", "off"}


def test_a_claim_after_the_wait_has_its_own_limit(tmp_path: Path) -> None:
    marks = StateFiles(tmp_path)
    assert marks.record_claim("unclaimed", limit=100.0, now=1.0) == 100.0
    assert marks.record_claim(RUN, limit=9000.0, now=2.0) == 9000.0
