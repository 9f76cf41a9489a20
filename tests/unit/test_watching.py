"""A box at work for a claim: what it starts, whom it obeys, its bounds, and when its power goes."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.agent.boot import Boot, run_agent
from batchscribe.agent.supervisor import POLL_SECONDS
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, HostEnd, HostWaits
from batchscribe.core.run.manifest import Phase, Tally, WorkerEnd, WorkerName, encode
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from support.box_agent import RUN, Awake

WAITS = HostWaits()
LOOK = 10.0
"""At most so long is between two looks of the box, and the dead-man's."""


@pytest.fixture
def box() -> Awake:
    return Awake()


def test_a_dead_worker_is_named_and_its_controller_gets_a_moment(box: Awake) -> None:
    box.claimed()
    box.give()
    box.at(50, box.workers.die)
    off = box.live()
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "worker 0 died without an exit record")
    assert off is not None
    assert 50 + WAITS.after_report <= off <= 50 + WAITS.after_report + LOOK


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
    assert (
        max(b - a for a, b in zip(box.deadman_files.moved, box.deadman_files.moved[1:], strict=False)) < 900
    )


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


def test_an_agent_that_is_started_again_reports_the_worker_that_it_loses(box: Awake) -> None:
    """The agent before it ended for want of work: its controller came late with the next manifest."""
    idle = HostEnd(run=RUN, worker=None, why="work ended", at=box.clock.now())
    box.store.create(keys.host_end(RUN), encode(idle))
    box.claimed()
    box.give()
    agent = box.agent()
    agent._is_over = lambda *_: False  # type: ignore[method-assign]
    box.at(50, box.workers.die)
    run_agent(agent, box.clock)
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "worker 0 died without an exit record")


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
    assert box.deadman_files.limit is not None
    assert box.deadman_files.limit - box.began == pytest.approx(7200 + WAITS.overtime)


def test_a_wall_clock_that_jumps_moves_no_deadline(box: Awake) -> None:
    box.claimed()
    box.give()

    box.steady(29, every=600)
    agent = box.agent()
    assert agent.step() == 0.0
    box.clock.jump(-5 * 3600)
    while (wait := agent.step()) is not None:
        box.clock.sleep(wait)
        if box.clock.monotonic() - box.began > 3600:
            break
    assert agent._supervisor is not None
    assert agent._supervisor.limit - box.began == pytest.approx(7200 + WAITS.overtime)


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


@pytest.fixture
def borrowed(box: Awake) -> Awake:
    """An instance that runs anyway; its agent was started over ssh for a run that has a manifest."""
    box.boot = Boot(id="boot-1", at=box.clock.now() - timedelta(days=3))
    box.intend()
    box.record(None)
    box.give()
    box.start_over_ssh(borrowed=True)
    return box


def test_on_a_borrowed_instance_the_agent_works_and_powers_nothing_off(borrowed: Awake) -> None:
    borrowed.at(60, lambda: borrowed.progress(1))
    borrowed.at(100, borrowed.finish)
    borrowed.at(400, lambda: borrowed.give(1))
    borrowed.at(500, lambda: borrowed.finish(1))
    borrowed.at(520, borrowed.settle)
    assert borrowed.live(RUN) is None
    assert [each.worker for each in borrowed.workers.requests] == [0, 1]
    assert (borrowed.deadman_files.taken, borrowed.end()) == (False, None)
    assert borrowed.clock.monotonic() - borrowed.began <= 520 + LOOK


def test_on_a_borrowed_instance_a_settled_run_leaves_no_worker_behind(borrowed: Awake) -> None:
    borrowed.workers.deaf = True
    borrowed.at(60, borrowed.settle)
    assert borrowed.live(RUN) is None
    assert borrowed.workers.asked[-1].force
    assert borrowed.clock.monotonic() - borrowed.began <= 60 + LOOK


def test_on_a_borrowed_instance_a_stalled_worker_is_killed_and_reported(borrowed: Awake) -> None:
    borrowed.workers.deaf = True
    borrowed.at(20, lambda: borrowed.progress(1))
    assert borrowed.live(RUN) is None
    end = borrowed.end()
    assert end is not None
    assert end.worker == 0
    assert "no progress" in end.why
    assert borrowed.workers.asked[-1].force


def test_an_agent_without_a_start_request_of_this_boot_does_nothing(borrowed: Awake) -> None:
    borrowed.permits.clear()
    assert borrowed.live(RUN) is None
    assert (borrowed.workers.requests, borrowed.taken_by()) == ([], None)


def test_a_deaf_worker_that_was_cancelled_is_killed_after_the_grace(box: Awake) -> None:
    """Its controller may be gone by then, or lend the instance back."""
    box.workers.deaf = True
    box.claimed()
    box.give()
    box.at(60, box.call_off)
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False, True]
    assert off is not None
    assert 60 + WAITS.grace <= off <= 60 + WAITS.grace + WAITS.after_report + 2 * LOOK
    end = box.end()
    assert end is not None
    assert end.why == "worker 0 was killed, as its controller asked"


def test_a_worker_whose_progress_cannot_be_read_is_ended_on_request(box: Awake) -> None:
    box.workers.deaf = True
    box.claimed()
    box.give()
    box.at(30, lambda: box.store.replace(keys.progress(RUN, 0), b'{"run":"run-1"'))
    box.at(60, box.call_off)
    off = box.live()
    assert [each.force for each in box.workers.asked] == [False, True]
    assert off is not None
    assert off <= 60 + WAITS.grace + WAITS.after_report + 2 * LOOK


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
    assert off <= WAITS.after_report + LOOK


def test_over_ssh_a_worker_begins_after_the_start_request_and_the_host_powers_off(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    begun: list[int] = []
    box.at(60, box.give)
    box.at(90, lambda: begun.append(len(box.workers.requests)))
    box.at(90, box.start_over_ssh)
    box.at(200, box.finish)
    off = box.live()
    assert begun == [0]
    assert [each.worker for each in box.workers.requests] == [0]
    assert off is not None
    assert 200 + WAITS.linger <= off <= 200 + WAITS.linger + LOOK


def test_over_ssh_work_that_is_never_started_has_a_bound(box: Awake) -> None:
    box.claimed(ClaimLaunch.SSH)
    box.at(60, box.give)
    off = box.live()
    assert off is not None
    assert 60 + WAITS.first <= off <= 60 + WAITS.first + LOOK
    end = box.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "its controller did not start the work over ssh")


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
    """Its controller may be about to start it over ssh."""
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

    def unknown(_name: WorkerName) -> bool:
        raise MisconfiguredError("its record cannot be read")

    box.at(60, lambda: box.progress(1))
    box.at(100, lambda: cut(box))
    box.at(100, lambda: setattr(box.workers, "is_running", unknown))
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
    start = box.workers.start_worker

    def noted(name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str) -> None:
        alive_at_start.append(box.workers.is_running(WorkerName(run=RUN, worker=0)))
        start(name, url, region=region, endpoint=endpoint, sha256=sha256)

    box.workers.start_worker = noted  # type: ignore[method-assign]
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
    assert box.deadman_files.moved[-1] - box.began < 20 + 2 * LOOK


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
    assert box.deadman_files.off_at is not None
    end = box.end()
    assert end is not None
    assert end.why == "work ended"


def test_a_box_is_let_go_of_again_where_that_failed_once(box: Awake, monkeypatch: pytest.MonkeyPatch) -> None:
    box.claimed()
    box.at(30, lambda: box.record(None))
    release, calls = box.deadman_files.delete_claim, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("read-only")
        release()

    monkeypatch.setattr(box.deadman_files, "delete_claim", fails_once)
    assert box.live() is None
    assert not box.deadman_files.taken


def test_the_power_is_asked_off_again_where_that_failed_once(
    box: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.claimed()
    off, calls = box.deadman_files.request_power_off, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("no room")
        off()

    monkeypatch.setattr(box.deadman_files, "request_power_off", fails_once)
    assert box.live() is not None
