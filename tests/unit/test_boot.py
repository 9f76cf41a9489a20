"""A box that boots: which claims it takes up, what it does for them, and when it asks for its power off."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from batchscribe.core import keys
from batchscribe.core.box import BoxReply, BoxWaits, ClaimLaunch, StartRequest, WorkerName
from batchscribe.core.manifest import Phase, Tally, WorkerEnd
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from batchscribe.worker.boot import Boot
from batchscribe.worker.markers import MarkerFiles
from batchscribe.worker.watching import POLL_SECONDS
from support.box_agent import RUN, Awake

WAITS = BoxWaits()
LOOK = 10.0
"""At most so long is between two looks of the box, and the dead-man's."""


@pytest.fixture
def box() -> Awake:
    return Awake()


def untouched(box: Awake) -> bool:
    """It took up nothing, started nothing, and has no marker that a dead-man would act on."""
    return not (box.taken_by() or box.workers.requests or box.marks.taken or box.marks.off_at)


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
    assert not box.marks.taken
    assert box.end() is None
    assert box.clock.monotonic() - box.began <= WAITS.first + LOOK


def test_a_record_that_is_gone_lets_go_of_the_box_too(box: Awake) -> None:
    box.claimed()
    box.at(30, lambda: box.store.delete(keys.instance(box.place.instance)))
    assert box.live() is None
    assert not box.marks.taken


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
    assert not again.marks.moved  # nor for a moment
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
            box.store.create(keys.box_end(RUN), b"{}")

    box.store.before = other
    assert box.live() is None
    assert untouched_but_for_the_boot(box, "boot-9")


def untouched_but_for_the_boot(box: Awake, boot: str) -> bool:
    acted = box.workers.requests or box.marks.taken or box.marks.off_at
    return not acted and box.taken_by() == boot


def test_a_claim_of_which_the_dead_man_cannot_be_told_is_not_taken_up(
    box: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.claimed()
    box.give()

    def full(_run: str, *, limit: float, now: float) -> float:
        raise MisconfiguredError(f"no room at {now} for {limit}")

    monkeypatch.setattr(box.marks, "take", full)
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

    monkeypatch.setattr(again.marks, "take", full)
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
    assert box.marks.taken
    assert box.marks.moved[-1] - box.began <= LOOK
    assert not box.workers.requests


def rebooted(box: Awake) -> Awake:
    """The same box, some looks later, after a boot that nobody asked for."""
    agent = box.agent()
    for _ in range(20):
        box.clock.sleep(agent.step() or 0.0)
    again = Awake()
    again.store, again.clock, again.began = box.store, box.clock, box.clock.monotonic()
    again.marks.clock = box.clock
    again.boot = Boot(id="boot-2", at=box.clock.now() - timedelta(seconds=5))
    return again


def test_a_box_that_is_booted_again_under_its_run_works_nothing_and_powers_itself_off(box: Awake) -> None:
    box.claimed()
    box.give()
    again = rebooted(box)
    off = again.live()
    assert again.workers.requests == []
    assert off is not None
    assert off <= WAITS.told + LOOK
    assert again.marks.taken
    end = again.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "the box was booted again in the middle of the run")
    assert [*box.store.list(keys.later_boot(RUN, "boot-2"))]
    assert box.taken_by() == "boot-1"
    # Whoever starts it now has it to themselves.
    again.marks.limit = None
    again.boot = Boot(id="boot-3", at=box.clock.now())
    again.live()
    assert not again.marks.taken


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
    assert off <= 2 * WAITS.told + LOOK
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
    assert agent.step() == WAITS.told
    assert again.marks.off_at is None
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

    def mend() -> None:
        nonlocal broken
        broken = False

    box.store.before = refuse
    box.at(300, mend)
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


def test_a_dead_worker_is_named_and_its_controller_gets_a_moment(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(50, box.workers.die)
    off = box.live()
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "worker 0 died without a last word")
    assert off is not None
    assert 50 + WAITS.told <= off <= 50 + WAITS.told + LOOK


def test_a_worker_that_says_its_last_word_as_it_is_looked_at_did_not_die(box: Awake) -> None:
    box.claimed()
    box.give()
    looks = 0

    def between(method: str, key: str) -> None:
        nonlocal looks
        if key == keys.exit_record(RUN, 0):
            looks += 1
            if looks == 3:
                box.finish()

    box.store.before = between
    box.live()
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


def test_a_worker_that_stands_still_is_killed_and_the_power_goes_at_once(box: Awake) -> None:
    """Its reporter goes on counting, which is no progress."""
    box.workers.deaf = True
    box.claimed()
    box.give()
    for number in range(1, 2000):
        box.at(number * 5, partial(box.progress, min(number, 4), sequence=number))
    off = box.live()
    assert off is not None
    assert 20 + WAITS.silence <= off <= 20 + WAITS.silence + LOOK <= 20 + 900
    assert box.workers.asked[-1].force
    end = box.end()
    assert end is not None
    assert end.worker == 0


def test_work_that_goes_on_is_never_cut_short(box: Awake) -> None:
    """However long no controller looks: a window comes back every ten minutes."""
    box.claimed()
    box.give()
    box.steady(10, every=600)
    box.at(6100, box.finish)
    off = box.live()
    assert off is not None
    assert off >= 6100 + WAITS.linger
    assert max(b - a for a, b in zip(box.marks.moved, box.marks.moved[1:], strict=False)) < 900


def test_chunks_without_a_window_are_progress_too(box: Awake) -> None:
    """Nobody speaks in them, or they cannot be decoded."""
    box.claimed()
    box.give()
    for number in range(1, 10):
        box.at(number * 600, partial(box.progress, 0, tally=Tally(failed=number)))
    box.at(6000, box.finish)
    off = box.live()
    assert off is not None
    assert off >= 6000 + WAITS.linger


def test_another_phase_of_the_work_is_progress_too(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(10, partial(box.progress, 0, phase=Phase.LOADING))
    box.at(800, partial(box.progress, 0, phase=Phase.WORKING))
    box.at(1500, box.finish)
    off = box.live()
    assert off is not None
    assert off >= 1500 + WAITS.linger


def test_a_worker_is_told_where_the_claim_s_store_is(box: Awake) -> None:
    box.claimed(region="eu-west-1", endpoint="http://own")
    box.give()
    box.at(60, box.finish)
    box.live()
    assert [(each.region, each.endpoint) for each in box.workers.requests] == [("eu-west-1", "http://own")]


def test_at_the_deadline_a_box_that_waits_for_another_manifest_waits_no_longer(box: Awake) -> None:
    box.claimed()
    box.give()
    box.steady(11, every=600)
    box.at(7150, box.finish)
    off = box.live()
    assert off is not None
    assert 7200 <= off <= 7200 + LOOK
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "the deadline passed")


def test_at_the_deadline_a_store_that_is_away_gains_no_time(box: Awake) -> None:
    box.claimed()
    box.give()
    box.workers.deaf = True
    box.steady(11, every=600)
    box.at(7000, lambda: cut(box))
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False, True]
    assert off is not None
    assert 7200 + WAITS.grace <= off <= 7200 + WAITS.grace + LOOK


def test_the_box_s_first_word_of_why_it_ends_stays(box: Awake) -> None:
    """The agent died over it; the next one finds a worker that this one killed."""
    box.workers.deaf = True
    box.claimed()
    box.give()
    agent = box.agent()
    while box.end() is None:
        box.clock.sleep(agent.step() or 0.0)
    first = box.end()
    assert first is not None
    assert "no progress" in first.why
    assert box.live() is not None
    assert box.end() == first


def test_at_the_deadline_a_worker_is_asked_to_end_and_waited_for(box: Awake) -> None:
    box.claimed()
    box.give()
    box.steady(12, every=600)
    box.workers.on_end = lambda request: box.at(20, lambda: box.finish(request.worker, WorkerEnd.STOPPED))
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False]
    assert off is not None
    assert 7200 <= off <= 7200 + WAITS.grace + LOOK
    end = box.end()
    assert end is not None
    assert end.why == "the deadline passed"


def test_a_deaf_worker_is_killed_after_the_deadline(box: Awake) -> None:
    box.workers.deaf = True
    box.claimed()
    box.give()
    box.steady(12, every=600)
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False, True]
    end = box.end()
    assert end is not None
    assert end.worker == 0
    assert off is not None
    assert off <= 7200 + WAITS.grace + LOOK
    assert box.marks.limit is not None
    assert box.marks.limit - box.began == pytest.approx(7200 + WAITS.overtime)


def test_a_wall_clock_that_jumps_moves_no_deadline(box: Awake) -> None:
    box.claimed()
    box.give()

    def jump() -> None:
        box.clock._now -= timedelta(hours=5)

    box.steady(29, every=600)
    agent = box.agent()
    assert agent.step() == 0.0
    jump()
    while (wait := agent.step()) is not None:
        box.clock.sleep(wait)
        if box.clock.monotonic() - box.began > 3600:
            break
    assert agent._watch is not None
    assert agent._watch._deadline - box.began == pytest.approx(7200)


def test_a_controller_may_call_a_worker_off_through_the_store(box: Awake) -> None:
    box.claimed()
    box.give()
    box.workers.on_end = lambda request: box.finish(request.worker, WorkerEnd.STOPPED)
    box.at(60, box.call_off)
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False]
    assert off is not None
    assert 60 <= off <= 60 + WAITS.linger + 2 * LOOK


def test_each_worker_may_be_called_off(box: Awake) -> None:
    box.claimed()
    box.workers.on_end = lambda request: box.finish(request.worker, WorkerEnd.STOPPED)
    for worker in (0, 1):
        box.at(100 * worker + 1, partial(box.give, worker))
        box.at(100 * worker + 60, partial(box.call_off, worker))
    box.live()
    assert [(each.worker, each.force) for each in box.workers.asked] == [(0, False), (1, False)]


def test_a_deaf_worker_is_killed_where_its_controller_insists(box: Awake) -> None:
    box.workers.deaf = True
    box.claimed()
    box.give()
    box.at(60, box.call_off)
    box.at(90, lambda: box.call_off(force=True))
    box.live()
    assert [each.force for each in box.workers.asked] == [False, True]
    end = box.end()
    assert end is not None
    assert end.why == "worker 0 was killed, as its controller asked"


def test_a_worker_that_was_called_off_is_not_begun(box: Awake) -> None:
    box.claimed()
    box.call_off()
    box.give()
    assert box.live() is not None
    assert box.workers.requests == []


def test_a_worker_that_cannot_be_started_is_a_last_word(box: Awake) -> None:
    box.claimed()
    box.give()
    box.workers.error = MisconfiguredError("chmod 600 your env")
    off = box.live()
    end = box.end()
    assert end is not None
    assert end.worker == 0
    assert "chmod 600" in end.why
    assert off is not None
    assert off <= WAITS.told + LOOK


def test_over_ssh_the_box_starts_nothing_and_still_powers_off(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    box.at(60, box.give)
    box.at(65, box.workers.begin)
    box.at(200, box.finish)
    off = box.live()
    assert box.workers.requests == []
    assert off is not None
    assert 200 + WAITS.linger <= off <= 200 + WAITS.linger + LOOK


def test_over_ssh_a_worker_that_nobody_starts_has_a_bound(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    box.at(60, box.give)
    off = box.live()
    assert off is not None
    assert off <= 60 + WAITS.silence + LOOK
    end = box.end()
    assert end is not None
    assert end.worker is None


def test_a_store_that_goes_away_under_the_work_has_a_bound(box: Awake) -> None:
    box.claimed()
    box.give()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    def cut() -> None:
        box.store.before = refuse

    box.at(100, cut)
    off = box.live()
    assert off is not None
    assert off <= 100 + WAITS.silence + LOOK
    assert box.workers.asked[-1].force


@pytest.mark.parametrize("seen", [False, True], ids=["its last word unseen", "its last word seen"])
def test_a_worker_that_ended_under_a_store_that_went_away_is_waited_for_no_longer_than_any(
    box: Awake, seen: bool
) -> None:
    box.claimed()
    box.give()
    box.at(60, lambda: box.progress(1))
    box.at(100, box.finish)
    box.at(101 + (POLL_SECONDS if seen else 0.0), lambda: cut(box))
    off = box.live()
    assert off is not None
    assert 100 + WAITS.linger - POLL_SECONDS <= off <= 100 + WAITS.linger + LOOK


def test_a_store_that_goes_away_before_any_work_is_given_the_time_of_work(box: Awake) -> None:
    """Over ssh somebody may be about to begin it."""
    box.claimed(ClaimLaunch.SSH)
    box.at(50, box.give)
    box.at(60, lambda: cut(box))
    off = box.live()
    assert off is not None
    assert 50 + WAITS.silence <= off <= 50 + WAITS.silence + LOOK


def test_a_next_manifest_that_was_seen_is_given_the_time_of_work_too(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    box.give()
    box.workers.begin()
    box.at(40, box.finish)
    box.at(50, lambda: box.give(1))
    box.at(60, lambda: cut(box))
    off = box.live()
    assert off is not None
    assert 50 + WAITS.silence <= off <= 50 + WAITS.silence + LOOK


def test_a_worker_of_which_nothing_is_known_is_not_taken_for_ended(box: Awake) -> None:
    box.claimed()
    box.give()

    def unknown(_name: WorkerName) -> BoxReply:
        raise MisconfiguredError("its record cannot be read")

    box.at(60, lambda: box.progress(1))
    box.at(100, lambda: cut(box))
    box.at(100, lambda: setattr(box.workers, "alive", unknown))
    off = box.live()
    assert off is not None
    assert 60 + WAITS.silence <= off <= 60 + WAITS.silence + LOOK


def cut(box: Awake) -> None:
    """From now on the store cannot be reached."""

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    box.store.before = refuse


def test_a_word_of_the_controller_that_cannot_be_read_ends_no_work(box: Awake) -> None:
    box.claimed()
    box.give()
    box.steady(100, every=30)
    box.at(60, lambda: box.store.replace(keys.cancel(RUN, 0), b'{"run":"run-1"'))
    box.at(3010, box.finish)
    off = box.live()
    assert off is not None
    assert off >= 3010 + WAITS.linger
    assert box.workers.asked == []


def test_a_worker_that_hangs_on_after_its_last_word_is_killed_before_the_next_begins(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(60, lambda: linger(box, 0))
    box.at(70, lambda: box.give(1))
    box.at(300, lambda: linger(box, 1))
    alive_at_start: list[bool] = []
    start = box.workers.start

    def noted(request: StartRequest) -> BoxReply:
        alive_at_start.append(box.workers.alive(WorkerName(run=RUN, worker=0)).done)
        return start(request)

    box.workers.start = noted  # type: ignore[method-assign]
    assert box.live() is not None
    assert alive_at_start == [False, False]
    assert [(each.worker, each.force) for each in box.workers.asked] == [(0, True), (1, True)]
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


def linger(box: Awake, worker: int) -> None:
    """Its last word, and no end of its process."""
    box.finish(worker)
    box.workers.begin(worker)


def test_a_store_that_comes_back_is_no_end(box: Awake) -> None:
    box.claimed()
    box.give()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    def cut() -> None:
        box.store.before = refuse

    def heal() -> None:
        box.store.before = lambda _method, _key: None
        box.progress(9)

    box.at(100, cut)
    box.at(700, heal)
    box.at(1200, box.finish)
    off = box.live()
    assert off is not None
    assert off >= 1200 + WAITS.linger


def test_an_agent_that_keeps_dying_is_no_progress(box: Awake) -> None:
    """Its worker stands still; the dead-man's clock runs on, however often an agent comes again."""
    box.claimed()
    box.give()
    box.at(20, lambda: box.progress(1))
    for _ in range(40):
        agent = box.agent()
        for _ in range(6):
            wait = agent.step()
            assert wait is not None
            box.clock.sleep(wait)
    assert len(box.workers.requests) == 1
    assert box.clock.monotonic() - box.began > 900
    assert box.marks.moved[-1] - box.began < 20 + 2 * LOOK


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.lists(st.integers(min_value=0, max_value=60), max_size=12),
    manifests=st.integers(min_value=1, max_value=3),
)
def test_an_agent_that_dies_anywhere_is_followed_by_one_that_goes_on(
    deaths: list[int], manifests: int
) -> None:
    """Each death comes after so many steps of one agent, before or after any of its records."""
    box = Awake()
    box.claimed()
    for number in range(manifests):
        box.at(number * 100 + 1, partial(box.give, number))
        box.at(number * 100 + 80, partial(box.finish, number))
    for steps in deaths:
        agent = box.agent()
        for _ in range(steps):
            wait = agent.step()
            if wait is None:
                break
            box.clock.sleep(wait)
    off = box.live()
    assert [each.worker for each in box.workers.requests] == list(range(manifests))
    assert off is not None
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


@settings(max_examples=60, deadline=None)
@given(call=st.integers(min_value=0, max_value=25))
def test_an_agent_that_dies_at_any_call_of_the_store_is_followed_by_one_that_goes_on(call: int) -> None:
    box = Awake()
    box.claimed()
    box.give()
    box.at(40, box.finish)
    calls = 0

    def die(_method: str, _key: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SystemExit(9)

    box.store.before = die
    try:
        box.live()
    except SystemExit:
        box.live()
    box.store.before = lambda _method, _key: None
    assert len(box.workers.requests) == 1
    assert box.marks.off_at is not None
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


def test_the_markers_are_plain_numbers_that_anybody_may_read(tmp_path: Path) -> None:
    markers = MarkerFiles(tmp_path)
    assert markers.take("run-1", limit=7380.4, now=20.2) == 7380.4
    assert (tmp_path / "claim").read_text() == "7380\nrun-1\n"
    assert (tmp_path / "alive").read_text() == "20\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    markers.alive(99.9)
    assert (tmp_path / "alive").read_text() == "100\n"
    assert not (tmp_path / "off").exists()
    markers.off()
    assert (tmp_path / "off").exists()


def test_an_agent_that_comes_again_keeps_the_limit_and_moves_no_marker(tmp_path: Path) -> None:
    MarkerFiles(tmp_path).take("run-1", limit=7380.0, now=20.0)
    assert MarkerFiles(tmp_path).take("run-1", limit=99_999.0, now=500.0) == 7380.0
    assert (tmp_path / "alive").read_text() == "20\n"
    assert MarkerFiles(tmp_path).take("run-2", limit=7777.0, now=550.0) == 7777.0
    assert (tmp_path / "alive").read_text() == "550\n"
    (tmp_path / "claim").write_text("torn")
    assert MarkerFiles(tmp_path).take("run-1", limit=8000.0, now=600.0) == 8000.0


def test_a_marker_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    with pytest.raises(MisconfiguredError, match="claim cannot be written"):
        MarkerFiles(tmp_path).take("run-1", limit=1.0, now=0.0)


def test_markers_that_are_released_are_gone(tmp_path: Path) -> None:
    markers = MarkerFiles(tmp_path)
    markers.release()
    markers.take("run-1", limit=7380.0, now=20.0)
    markers.release()
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "claim").mkdir()
    with pytest.raises(MisconfiguredError, match="claim cannot be written"):
        markers.release()


def test_a_box_is_let_go_of_again_where_that_failed_once(box: Awake, monkeypatch: pytest.MonkeyPatch) -> None:
    box.claimed()
    box.at(30, lambda: box.record(None))
    release, calls = box.marks.release, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("read-only")
        release()

    monkeypatch.setattr(box.marks, "release", fails_once)
    assert box.live() is None
    assert not box.marks.taken


def test_the_power_is_asked_off_again_where_that_failed_once(
    box: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.claimed()
    off, calls = box.marks.off, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("no room")
        off()

    monkeypatch.setattr(box.marks, "off", fails_once)
    assert box.live() is not None
