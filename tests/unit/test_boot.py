"""A box that boots: which claims it takes up, which of them once only, and which it lets go of again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from batchscribe.agent.boot import EARLY_RETRY_SECONDS, Boot
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, HostWaits
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from support.box_agent import RUN, Awake

WAITS = HostWaits()
LOOK = 10.0
"""At most so long is between two looks of the box, and the dead-man's."""


@pytest.fixture
def box() -> Awake:
    return Awake()


def untouched(box: Awake) -> bool:
    """It took up nothing, started nothing, and has no marker that a dead-man would act on."""
    return not (box.taken_by() or box.workers.requests or box.deadman_files.taken or box.deadman_files.off_at)


def test_a_box_works_its_manifest_and_powers_itself_off_with_nobody_there(box: Awake) -> None:
    box.claimed()
    box.at(3, box.give)
    box.at(60, lambda: box.progress(1))
    box.at(100, box.finish)
    off = box.live()
    assert [(each.run, each.worker) for each in box.workers.requests] == [(RUN, 0)]
    assert box.workers.requests[0].url == f"memory://double/{keys.manifest(RUN, 0)}"
    assert off is not None
    assert 100 + WAITS.linger <= off <= 100 + WAITS.linger + LOOK
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "work ended")
    assert box.taken_by() == "boot-1"


def test_the_next_manifest_is_worked_too(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(30, box.finish)
    box.at(30 + WAITS.linger - 5, lambda: box.give(1))
    box.at(300, lambda: box.finish(1))
    off = box.live()
    assert [each.worker for each in box.workers.requests] == [0, 1]
    assert off is not None
    assert off >= 300 + WAITS.linger


def test_a_worker_gets_the_hash_that_the_tag_announces(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(30, box.finish)
    box.live()
    assert [each.sha256 for each in box.workers.requests] == [box.announced]


@pytest.mark.parametrize("announced", [None, "", "0" * 64])
def test_a_manifest_that_no_tag_announces_is_never_begun(box: Awake, announced: str | None) -> None:
    box.claimed()
    box.give_unannounced()
    box.announced = announced
    off = box.live()
    assert box.workers.requests == []
    end = box.end()
    assert end is not None
    assert ("announced" if announced else "by its tag") in end.why
    assert off is not None
    assert off <= WAITS.first + LOOK


def test_a_manifest_that_is_replaced_after_it_was_announced_is_never_begun(box: Awake) -> None:
    box.claimed()
    box.give()
    box.give_unannounced(source="file:///root")
    box.live()
    assert box.workers.requests == []


def test_a_tag_that_lags_behind_the_next_manifest_is_waited_for(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(30, box.finish)
    box.at(40, lambda: box.give_unannounced(1))
    box.at(130, lambda: setattr(box, "announced", box.give_unannounced(1)))
    box.at(300, lambda: box.finish(1))
    box.live()
    assert [each.worker for each in box.workers.requests] == [0, 1]


def test_over_ssh_the_hash_of_the_request_counts_and_not_the_tag(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    wanted = box.give_unannounced()
    box.start_over_ssh(sha256="0" * 64)
    box.at(60, lambda: box.start_over_ssh(sha256=wanted))
    box.at(90, box.finish)
    box.live()
    assert [each.sha256 for each in box.workers.requests] == [wanted]


def test_a_request_of_an_earlier_version_has_no_hash(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    box.give_unannounced()
    box.start_over_ssh()
    box.at(90, box.finish)
    box.live()
    assert [each.sha256 for each in box.workers.requests] == [""]


def test_no_work_that_ever_comes_is_waited_for(box: Awake) -> None:
    box.claimed()
    off = box.live()
    assert off is not None
    assert WAITS.first <= off <= WAITS.first + LOOK
    end = box.end()
    assert end is not None
    assert end.why == "no work came"


@pytest.mark.parametrize("after", [None, "run-2"])
@pytest.mark.parametrize("launch", [ClaimLaunch.BOOT, ClaimLaunch.SSH])
def test_a_claim_that_was_taken_back_before_any_work_came_lets_go_of_the_box(
    box: Awake, launch: ClaimLaunch, after: str | None
) -> None:
    """Its controller's start failed, and left the box to whoever had started it meanwhile."""
    box.claimed(launch)
    box.at(30, lambda: box.record(box.claim(run=after) if after else None))
    assert box.live() is None
    assert not box.deadman_files.taken
    assert box.end() is None
    assert box.clock.monotonic() - box.began <= WAITS.first + LOOK


def test_a_record_that_is_gone_lets_go_of_the_box_too(box: Awake) -> None:
    box.claimed()
    box.at(30, lambda: box.store.delete(keys.instance(box.place.instance)))
    assert box.live() is None
    assert not box.deadman_files.taken


def test_a_record_that_cannot_be_read_as_no_work_came_has_a_bound(box: Awake) -> None:
    box.claimed()

    def refuse(_method: str, key: str) -> None:
        if key == keys.instance(box.place.instance):
            raise StoreUnavailableError("503")

    box.at(30, lambda: setattr(box.store, "before", refuse))
    off = box.live()
    assert off is not None
    assert WAITS.silence <= off <= WAITS.silence + LOOK


def test_a_claim_that_is_taken_back_from_under_its_work_ends_no_work(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(30, lambda: box.record(None))
    box.at(700, box.finish)
    box.steady(3, every=200)
    off = box.live()
    assert off is not None
    assert off >= 700 + WAITS.linger


def test_a_box_that_a_person_started_does_nothing(box: Awake) -> None:
    box.record(None)
    assert box.live() is None
    assert untouched(box)


def test_a_box_that_was_never_recorded_does_nothing(box: Awake) -> None:
    assert box.live() is None
    assert untouched(box)


@pytest.mark.parametrize(
    ("created", "deadline", "meant"),
    [(-60, 7200, True), (-60, -5, False), (280, 7200, True), (320, 7200, False), (-7200, -1, False)],
)
def test_a_claim_counts_for_the_boots_between_its_intent_and_its_deadline(
    box: Awake, created: float, deadline: float, meant: bool
) -> None:
    """Seconds from the boot on; what is a little younger than the boot is a matter of clocks."""
    at = box.boot.at
    box.claimed(created=at + timedelta(seconds=created), deadline=at + timedelta(seconds=deadline))
    off = box.live()
    assert (off is not None) is meant
    assert untouched(box) is not meant


@pytest.mark.parametrize("behind", [6 * 60.0, -3 * 3600.0])
def test_a_clock_that_is_set_after_the_boot_makes_the_claim_count(box: Awake, behind: float) -> None:
    """`behind` in seconds: the boot's own time moves with the clock that it was taken by."""
    box.claimed()
    box.give()
    box.clock.jump(-behind)
    box.boot = Boot(id="boot-1", at=box.boot.at - timedelta(seconds=behind))
    box.at(60, lambda: box.clock.jump(behind))
    box.at(200, box.finish)
    assert box.live() is not None
    assert [each.worker for each in box.workers.requests] == [0]
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


def test_the_time_that_passes_is_not_added_to_the_boot(box: Awake) -> None:
    """Else any claim would be of this boot, sooner or later."""
    box.claimed(created=box.boot.at + timedelta(seconds=310))
    assert box.live() is None
    assert box.clock.monotonic() - box.began >= WAITS.store
    assert untouched(box)


def test_a_claim_that_follows_one_of_another_boot_is_for_another_boot_too(box: Awake) -> None:
    box.claimed(deadline=box.boot.at - timedelta(seconds=5))
    box.at(60, lambda: box.record(box.claim(run="run-2", created=box.clock.now())))
    box.store.create(keys.intent("run-2"), b"{}")
    assert box.live() is None
    assert box.clock.monotonic() - box.began <= 60 + LOOK
    assert untouched(box)
    assert not [*box.store.list(keys.boot("run-2"))]


def test_a_claim_without_an_intent_is_left_alone(box: Awake) -> None:
    box.record(box.claim())
    assert box.live() is None
    assert untouched(box)


def test_the_claim_of_a_settled_run_is_left_alone(box: Awake) -> None:
    box.claimed()
    box.settle()
    assert box.live() is None
    assert untouched(box)


def test_a_claim_that_holds_the_box_back_is_obeyed(box: Awake) -> None:
    box.claimed(ClaimLaunch.HELD)
    box.give()
    assert box.live() is None
    assert untouched(box)


def test_a_second_boot_leaves_the_claim_to_the_first(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(60, box.finish)
    assert box.live() is not None
    again = Awake()
    again.store, again.clock = box.store, box.clock
    again.boot = Boot(id="boot-2", at=box.clock.now() - timedelta(seconds=5))
    assert again.live() is None
    assert not again.workers.requests
    assert not again.deadman_files.moved  # nor for a moment
    assert box.taken_by() == "boot-1"


def test_a_claim_that_another_boot_takes_up_at_the_same_moment_is_let_go_of(box: Awake) -> None:
    box.claimed()
    box.give()

    def other(method: str, key: str) -> None:
        if (method, key) == ("create", keys.boot(RUN)):
            box.store.before = lambda _method, _key: None
            box.store.create(
                key, b'{"run":"run-1","boot":"boot-9","at":"2026-11-23T12:00:00Z","release":"0"}'
            )
            box.store.create(keys.host_end(RUN), b"{}")

    box.store.before = other
    assert box.live() is None
    assert untouched_but_for_the_boot(box, "boot-9")


def untouched_but_for_the_boot(box: Awake, boot: str) -> bool:
    acted = box.workers.requests or box.deadman_files.taken or box.deadman_files.off_at
    return not acted and box.taken_by() == boot


def test_a_claim_of_which_the_dead_man_cannot_be_told_is_not_taken_up(
    box: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.claimed()
    box.give()

    def full(_run: str, *, limit: float, now: float) -> float:
        raise MisconfiguredError(f"no room at {now} for {limit}")

    monkeypatch.setattr(box.deadman_files, "record_claim", full)
    assert box.live() is None
    assert untouched(box)


def test_a_boot_after_another_s_is_not_noted_before_the_dead_man_knows(
    box: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.claimed()
    box.give()
    again = rebooted(box)

    def full(_run: str, *, limit: float, now: float) -> float:
        raise MisconfiguredError(f"no room at {now} for {limit}")

    monkeypatch.setattr(again.deadman_files, "record_claim", full)
    assert again.live() is None
    assert not [*box.store.list(keys.later_boot(RUN, "boot-2"))]


def test_a_box_that_may_not_write_leaves_its_power_to_the_dead_man(box: Awake) -> None:
    """It was started for a run, and can do nothing for it."""
    box.claimed()
    box.give()

    def refuse(method: str, _key: str) -> None:
        if method != "get":
            raise MisconfiguredError("no right to write")

    box.store.before = refuse
    with capture_logs() as logs:
        assert box.live() is None
    assert logs[-1]["then"] == "the dead-man powers off"
    assert box.deadman_files.taken
    assert box.deadman_files.moved[-1] - box.began <= LOOK
    assert not box.workers.requests


def rebooted(box: Awake) -> Awake:
    """The same box, some looks later, after a boot that nobody asked for."""
    agent = box.agent()
    for _ in range(20):
        box.clock.sleep(agent.step() or 0.0)
    again = Awake()
    again.store, again.clock, again.began = box.store, box.clock, box.clock.monotonic()
    again.deadman_files.clock = box.clock
    again.boot = Boot(id="boot-2", at=box.clock.now() - timedelta(seconds=5))
    return again


def test_a_box_that_is_booted_again_under_its_run_works_nothing_and_powers_itself_off(box: Awake) -> None:
    box.claimed()
    box.give()
    again = rebooted(box)
    off = again.live()
    assert again.workers.requests == []
    assert off is not None
    assert off <= WAITS.after_report + LOOK
    assert again.deadman_files.taken
    end = again.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "the GPU host was rebooted during the run")
    assert [*box.store.list(keys.later_boot(RUN, "boot-2"))]
    assert box.taken_by() == "boot-1"
    # Whoever starts it now has it to themselves.
    again.deadman_files.limit = None
    again.boot = Boot(id="boot-3", at=box.clock.now())
    again.live()
    assert not again.deadman_files.taken


def test_a_box_that_is_booted_again_after_its_second_manifest_names_that_one(box: Awake) -> None:
    box.claimed()
    box.give()
    box.finish()
    box.give(1)
    again = rebooted(box)
    again.live()
    end = again.end()
    assert end is not None
    assert end.worker == 1


def test_a_box_that_is_booted_again_before_any_manifest_names_no_worker(box: Awake) -> None:
    box.claimed()
    again = rebooted(box)
    off = again.live()
    end = again.end()
    assert off is not None
    assert end is not None
    assert end.worker is None


@pytest.mark.parametrize("call", range(1, 11))
def test_a_second_boot_s_agent_that_dies_at_any_call_of_the_store_still_ends_the_power(
    box: Awake, call: int
) -> None:
    box.claimed()
    box.give()
    again = rebooted(box)
    calls = 0

    def die(_method: str, _key: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SystemExit(9)

    box.store.before = die
    with pytest.raises(SystemExit):
        again.live()
    box.store.before = lambda _method, _key: None
    # The same boot, as another process reckons it.
    again.boot = Boot(id="boot-2", at=again.boot.at + timedelta(microseconds=7))
    off = again.live()
    assert off is not None
    assert off <= 2 * WAITS.after_report + LOOK
    assert not again.workers.requests
    end = again.end()
    assert end is not None
    assert end.worker == 0


def test_a_second_boot_s_agent_that_dies_after_its_word_still_ends_the_power(box: Awake) -> None:
    box.claimed()
    box.give()
    again = rebooted(box)
    agent = again.agent()
    assert agent.step() == 0.0
    assert agent.step() == WAITS.after_report
    assert again.deadman_files.off_at is None
    assert again.live() is not None


def test_a_run_cannot_name_another_s_folder(box: Awake) -> None:
    run = "../../escape"
    box.claimed(run=run)
    box.store.create(keys.intent(run), b"{}")
    assert box.live() is None
    assert untouched(box)
    assert not [*box.store.list(keys.boot(run))]


@pytest.mark.parametrize("error", [StoreUnavailableError("503"), MisconfiguredError("no role yet")])
def test_a_store_that_cannot_be_read_is_tried_again_for_a_while(box: Awake, error: Exception) -> None:
    box.claimed()
    box.give()
    broken = True

    def refuse(_method: str, _key: str) -> None:
        if broken:
            raise error

    def fix() -> None:
        nonlocal broken
        broken = False

    box.store.before = refuse
    box.at(300, fix)
    box.at(400, box.finish)
    assert box.live() is not None
    assert box.workers.requests


def test_a_box_that_never_gets_to_see_its_record_does_nothing(box: Awake) -> None:
    box.claimed()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("503")

    box.store.before = refuse
    with capture_logs() as logs:
        assert box.live() is None
    assert logs[-1]["then"] == "nothing is done, and nothing powered off"
    assert box.clock.monotonic() - box.began <= WAITS.store + 2 * LOOK
    box.store.before = lambda _method, _key: None
    assert untouched(box)


def test_a_network_that_comes_up_after_the_agent_costs_no_long_wait(box: Awake) -> None:
    box.claimed()
    box.give()
    up = box.clock.monotonic() + 3.0
    taken: list[float] = []

    def refuse(method: str, key: str) -> None:
        if box.clock.monotonic() < up:
            raise StoreUnavailableError("no answer")
        if (method, key) == ("create", keys.boot(RUN)):
            taken.append(box.clock.monotonic())

    box.store.before = refuse
    box.at(60, box.finish)
    assert box.live() is not None
    assert up <= taken[0] <= up + EARLY_RETRY_SECONDS


def test_a_lost_reply_to_its_own_record_is_no_other_boot(box: Awake) -> None:
    box.claimed()
    box.give()
    calls = 0

    def lose(method: str, key: str) -> None:
        nonlocal calls
        if (method, key) == ("create", keys.boot(RUN)) and not calls:
            calls += 1
            box.store.before = lambda _method, _key: None
            box.store.create(
                key, b'{"run":"run-1","boot":"boot-1","at":"2026-11-23T12:00:00Z","release":"0"}'
            )
            box.store.before = lose
            raise StoreUnavailableError("the reply was lost")

    box.store.before = lose
    box.at(60, box.finish)
    assert box.live() is not None
    assert box.workers.requests
