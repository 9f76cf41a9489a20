"""A host at work for a claim: what it starts, whom it obeys, its bounds, and when its power goes."""

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
from support.host_agent import RUN, Awake

WAITS = HostWaits()
LOOK = 10.0
"""At most so long is between two looks of the host, and the dead-man's."""


@pytest.fixture
def host() -> Awake:
    return Awake()


def test_a_dead_worker_is_named_and_its_controller_gets_a_moment(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(50, host.workers.die)
    off = host.live()
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "worker 0 died without an exit record")
    assert off is not None
    assert 50 + WAITS.after_report <= off <= 50 + WAITS.after_report + LOOK


def test_a_worker_that_says_its_last_word_as_it_is_looked_at_did_not_die(host: Awake) -> None:
    host.claimed()
    host.give()
    looks = 0

    def between(method: str, key: str) -> None:
        nonlocal looks
        if key == keys.exit_record(RUN, 0):
            looks += 1
            if looks == 3:
                host.finish()

    host.store.before = between
    host.live()
    end = host.end()
    assert end is not None
    assert end.why == "work ended"


def test_a_worker_that_stands_still_is_killed_and_the_power_goes_at_once(host: Awake) -> None:
    """Its reporter goes on counting, which is no progress."""
    host.workers.deaf = True
    host.claimed()
    host.give()
    for number in range(1, 2000):
        host.at(number * 5, partial(host.progress, min(number, 4), sequence=number))
    off = host.live()
    assert off is not None
    assert 20 + WAITS.silence <= off <= 20 + WAITS.silence + LOOK <= 20 + 900
    assert host.workers.asked[-1].force
    end = host.end()
    assert end is not None
    assert end.worker == 0


def test_work_that_goes_on_is_never_cut_short(host: Awake) -> None:
    """However long no controller looks: a window comes back every ten minutes."""
    host.claimed()
    host.give()
    host.steady(10, every=600)
    host.at(6100, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 6100 + WAITS.linger
    assert (
        max(b - a for a, b in zip(host.deadman_files.moved, host.deadman_files.moved[1:], strict=False)) < 900
    )


def test_chunks_without_a_window_are_progress_too(host: Awake) -> None:
    """Nobody speaks in them, or they cannot be decoded."""
    host.claimed()
    host.give()
    for number in range(1, 10):
        host.at(number * 600, partial(host.progress, 0, tally=Tally(failed=number)))
    host.at(6000, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 6000 + WAITS.linger


def test_another_phase_of_the_work_is_progress_too(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(10, partial(host.progress, 0, phase=Phase.LOADING))
    host.at(800, partial(host.progress, 0, phase=Phase.WORKING))
    host.at(1500, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 1500 + WAITS.linger


def test_a_worker_is_told_where_the_claim_s_store_is(host: Awake) -> None:
    host.claimed(region="eu-west-1", endpoint="http://own")
    host.give()
    host.at(60, host.finish)
    host.live()
    assert [(each.region, each.endpoint) for each in host.workers.requests] == [("eu-west-1", "http://own")]


def test_at_the_deadline_a_host_that_waits_for_another_manifest_waits_no_longer(host: Awake) -> None:
    host.claimed()
    host.give()
    host.steady(11, every=600)
    host.at(7150, host.finish)
    off = host.live()
    assert off is not None
    assert 7200 <= off <= 7200 + LOOK
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "the deadline passed")


def test_at_the_deadline_a_store_that_is_away_gains_no_time(host: Awake) -> None:
    host.claimed()
    host.give()
    host.workers.deaf = True
    host.steady(11, every=600)
    host.at(7000, lambda: cut(host))
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False, True]
    assert off is not None
    assert 7200 + WAITS.grace <= off <= 7200 + WAITS.grace + LOOK


def test_the_host_s_first_word_of_why_it_ends_stays(host: Awake) -> None:
    """The agent died over it; the next one finds a worker that this one killed."""
    host.workers.deaf = True
    host.claimed()
    host.give()
    agent = host.agent()
    while host.end() is None:
        host.clock.sleep(agent.step() or 0.0)
    first = host.end()
    assert first is not None
    assert "no progress" in first.why
    assert host.live() is not None
    assert host.end() == first


def test_an_agent_that_is_started_again_reports_the_worker_that_it_loses(host: Awake) -> None:
    """The agent before it ended for want of work: its controller came late with the next manifest."""
    idle = HostEnd(run=RUN, worker=None, why="work ended", at=host.clock.now())
    host.store.create(keys.host_end(RUN), encode(idle))
    host.claimed()
    host.give()
    agent = host.agent()
    agent._is_over = lambda *_: False  # type: ignore[method-assign]
    host.at(50, host.workers.die)
    run_agent(agent, host.clock)
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "worker 0 died without an exit record")


def test_at_the_deadline_a_worker_is_asked_to_end_and_waited_for(host: Awake) -> None:
    host.claimed()
    host.give()
    host.steady(12, every=600)
    host.workers.on_end = lambda request: host.at(20, lambda: host.finish(request.worker, WorkerEnd.STOPPED))
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False]
    assert off is not None
    assert 7200 <= off <= 7200 + WAITS.grace + LOOK
    end = host.end()
    assert end is not None
    assert end.why == "the deadline passed"


def test_a_deaf_worker_is_killed_after_the_deadline(host: Awake) -> None:
    host.workers.deaf = True
    host.claimed()
    host.give()
    host.steady(12, every=600)
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False, True]
    end = host.end()
    assert end is not None
    assert end.worker == 0
    assert off is not None
    assert off <= 7200 + WAITS.grace + LOOK
    assert host.deadman_files.limit is not None
    assert host.deadman_files.limit - host.began == pytest.approx(7200 + WAITS.overtime)


def test_a_wall_clock_that_jumps_moves_no_deadline(host: Awake) -> None:
    host.claimed()
    host.give()

    host.steady(29, every=600)
    agent = host.agent()
    assert agent.step() == 0.0
    host.clock.jump(-5 * 3600)
    while (wait := agent.step()) is not None:
        host.clock.sleep(wait)
        if host.clock.monotonic() - host.began > 3600:
            break
    assert agent._supervisor is not None
    assert agent._supervisor.limit - host.began == pytest.approx(7200 + WAITS.overtime)


def test_a_controller_may_call_a_worker_off_through_the_store(host: Awake) -> None:
    host.claimed()
    host.give()
    host.workers.on_end = lambda request: host.finish(request.worker, WorkerEnd.STOPPED)
    host.at(60, host.call_off)
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False]
    assert off is not None
    assert 60 <= off <= 60 + WAITS.linger + 2 * LOOK


def test_each_worker_may_be_called_off(host: Awake) -> None:
    host.claimed()
    host.workers.on_end = lambda request: host.finish(request.worker, WorkerEnd.STOPPED)
    for worker in (0, 1):
        host.at(100 * worker + 1, partial(host.give, worker))
        host.at(100 * worker + 60, partial(host.call_off, worker))
    host.live()
    assert [(each.worker, each.force) for each in host.workers.asked] == [(0, False), (1, False)]


@pytest.fixture
def borrowed(host: Awake) -> Awake:
    """An instance that runs anyway; its agent was started over ssh for a run that has a manifest."""
    host.boot = Boot(id="boot-1", at=host.clock.now() - timedelta(days=3))
    host.intend()
    host.record(None)
    host.give()
    host.start_over_ssh(borrowed=True)
    return host


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


def test_a_deaf_worker_that_was_cancelled_is_killed_after_the_grace(host: Awake) -> None:
    """Its controller may be gone by then, or lend the instance back."""
    host.workers.deaf = True
    host.claimed()
    host.give()
    host.at(60, host.call_off)
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False, True]
    assert off is not None
    assert 60 + WAITS.grace <= off <= 60 + WAITS.grace + WAITS.after_report + 2 * LOOK
    end = host.end()
    assert end is not None
    assert end.why == "worker 0 was killed, as its controller asked"


def test_a_worker_whose_progress_cannot_be_read_is_ended_on_request(host: Awake) -> None:
    host.workers.deaf = True
    host.claimed()
    host.give()
    host.at(30, lambda: host.store.replace(keys.progress(RUN, 0), b'{"run":"run-1"'))
    host.at(60, host.call_off)
    off = host.live()
    assert [each.force for each in host.workers.asked] == [False, True]
    assert off is not None
    assert off <= 60 + WAITS.grace + WAITS.after_report + 2 * LOOK


def test_a_deaf_worker_is_killed_where_its_controller_insists(host: Awake) -> None:
    host.workers.deaf = True
    host.claimed()
    host.give()
    host.at(60, host.call_off)
    host.at(90, lambda: host.call_off(force=True))
    host.live()
    assert [each.force for each in host.workers.asked] == [False, True]
    end = host.end()
    assert end is not None
    assert end.why == "worker 0 was killed, as its controller asked"


def test_a_worker_that_was_called_off_is_not_begun(host: Awake) -> None:
    host.claimed()
    host.call_off()
    host.give()
    assert host.live() is not None
    assert host.workers.requests == []


def test_a_worker_that_cannot_be_started_is_a_last_word(host: Awake) -> None:
    host.claimed()
    host.give()
    host.workers.error = MisconfiguredError("chmod 600 your env")
    off = host.live()
    end = host.end()
    assert end is not None
    assert end.worker == 0
    assert "chmod 600" in end.why
    assert off is not None
    assert off <= WAITS.after_report + LOOK


def test_over_ssh_a_worker_begins_after_the_start_request_and_the_host_powers_off(host: Awake) -> None:
    host.claimed(ClaimLaunch.SSH)
    begun: list[int] = []
    host.at(60, host.give)
    host.at(90, lambda: begun.append(len(host.workers.requests)))
    host.at(90, host.start_over_ssh)
    host.at(200, host.finish)
    off = host.live()
    assert begun == [0]
    assert [each.worker for each in host.workers.requests] == [0]
    assert off is not None
    assert 200 + WAITS.linger <= off <= 200 + WAITS.linger + LOOK


def test_over_ssh_work_that_is_never_started_has_a_bound(host: Awake) -> None:
    host.claimed(ClaimLaunch.SSH)
    host.at(60, host.give)
    off = host.live()
    assert off is not None
    assert 60 + WAITS.first <= off <= 60 + WAITS.first + LOOK
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "its controller did not start the work over ssh")


def test_a_store_that_goes_away_under_the_work_has_a_bound(host: Awake) -> None:
    host.claimed()
    host.give()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    def cut() -> None:
        host.store.before = refuse

    host.at(100, cut)
    off = host.live()
    assert off is not None
    assert off <= 100 + WAITS.silence + LOOK
    assert host.workers.asked[-1].force


@pytest.mark.parametrize("seen", [False, True], ids=["its last word unseen", "its last word seen"])
def test_a_worker_that_ended_under_a_store_that_went_away_is_waited_for_no_longer_than_any(
    host: Awake, seen: bool
) -> None:
    host.claimed()
    host.give()
    host.at(60, lambda: host.progress(1))
    host.at(100, host.finish)
    host.at(101 + (POLL_SECONDS if seen else 0.0), lambda: cut(host))
    off = host.live()
    assert off is not None
    assert 100 + WAITS.linger - POLL_SECONDS <= off <= 100 + WAITS.linger + LOOK


def test_a_store_that_goes_away_before_any_work_is_given_the_time_of_work(host: Awake) -> None:
    """Its controller may be about to start it over ssh."""
    host.claimed(ClaimLaunch.SSH)
    host.at(50, host.give)
    host.at(60, lambda: cut(host))
    off = host.live()
    assert off is not None
    assert 50 + WAITS.silence <= off <= 50 + WAITS.silence + LOOK


def test_a_next_manifest_that_was_seen_is_given_the_time_of_work_too(host: Awake) -> None:
    host.claimed(ClaimLaunch.SSH)
    host.give()
    host.workers.begin()
    host.at(40, host.finish)
    host.at(50, lambda: host.give(1))
    host.at(60, lambda: cut(host))
    off = host.live()
    assert off is not None
    assert 50 + WAITS.silence <= off <= 50 + WAITS.silence + LOOK


def test_a_worker_of_which_nothing_is_known_is_not_taken_for_ended(host: Awake) -> None:
    host.claimed()
    host.give()

    def unknown(_name: WorkerName) -> bool:
        raise MisconfiguredError("its record cannot be read")

    host.at(60, lambda: host.progress(1))
    host.at(100, lambda: cut(host))
    host.at(100, lambda: setattr(host.workers, "is_running", unknown))
    off = host.live()
    assert off is not None
    assert 60 + WAITS.silence <= off <= 60 + WAITS.silence + LOOK


def cut(host: Awake) -> None:
    """From now on the store cannot be reached."""

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    host.store.before = refuse


def test_a_word_of_the_controller_that_cannot_be_read_ends_no_work(host: Awake) -> None:
    host.claimed()
    host.give()
    host.steady(100, every=30)
    host.at(60, lambda: host.store.replace(keys.cancel(RUN, 0), b'{"run":"run-1"'))
    host.at(3010, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 3010 + WAITS.linger
    assert host.workers.asked == []


def test_a_worker_that_hangs_on_after_its_last_word_is_killed_before_the_next_begins(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(60, lambda: linger(host, 0))
    host.at(70, lambda: host.give(1))
    host.at(300, lambda: linger(host, 1))
    alive_at_start: list[bool] = []
    start = host.workers.start_worker

    def noted(name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str) -> None:
        alive_at_start.append(host.workers.is_running(WorkerName(run=RUN, worker=0)))
        start(name, url, region=region, endpoint=endpoint, sha256=sha256)

    host.workers.start_worker = noted  # type: ignore[method-assign]
    assert host.live() is not None
    assert alive_at_start == [False, False]
    assert [(each.worker, each.force) for each in host.workers.asked] == [(0, True), (1, True)]
    end = host.end()
    assert end is not None
    assert end.why == "work ended"


def linger(host: Awake, worker: int) -> None:
    """Its last word, and no end of its process."""
    host.finish(worker)
    host.workers.begin(worker)


def test_a_store_that_comes_back_is_no_end(host: Awake) -> None:
    host.claimed()
    host.give()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    def cut() -> None:
        host.store.before = refuse

    def heal() -> None:
        host.store.before = lambda _method, _key: None
        host.progress(9)

    host.at(100, cut)
    host.at(700, heal)
    host.at(1200, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 1200 + WAITS.linger


def test_an_agent_that_keeps_dying_is_no_progress(host: Awake) -> None:
    """Its worker stands still; the dead-man's clock runs on, however often an agent comes again."""
    host.claimed()
    host.give()
    host.at(20, lambda: host.progress(1))
    for _ in range(40):
        agent = host.agent()
        for _ in range(6):
            wait = agent.step()
            assert wait is not None
            host.clock.sleep(wait)
    assert len(host.workers.requests) == 1
    assert host.clock.monotonic() - host.began > 900
    assert host.deadman_files.moved[-1] - host.began < 20 + 2 * LOOK


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.lists(st.integers(min_value=0, max_value=60), max_size=12),
    manifests=st.integers(min_value=1, max_value=3),
)
def test_an_agent_that_dies_anywhere_is_followed_by_one_that_goes_on(
    deaths: list[int], manifests: int
) -> None:
    """Each death comes after so many steps of one agent, before or after any of its records."""
    host = Awake()
    host.claimed()
    for number in range(manifests):
        host.at(number * 100 + 1, partial(host.give, number))
        host.at(number * 100 + 80, partial(host.finish, number))
    for steps in deaths:
        agent = host.agent()
        for _ in range(steps):
            wait = agent.step()
            if wait is None:
                break
            host.clock.sleep(wait)
    off = host.live()
    assert [each.worker for each in host.workers.requests] == list(range(manifests))
    assert off is not None
    end = host.end()
    assert end is not None
    assert end.why == "work ended"


@settings(max_examples=60, deadline=None)
@given(call=st.integers(min_value=0, max_value=25))
def test_an_agent_that_dies_at_any_call_of_the_store_is_followed_by_one_that_goes_on(call: int) -> None:
    host = Awake()
    host.claimed()
    host.give()
    host.at(40, host.finish)
    calls = 0

    def die(_method: str, _key: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SystemExit(9)

    host.store.before = die
    try:
        host.live()
    except SystemExit:
        host.live()
    host.store.before = lambda _method, _key: None
    assert len(host.workers.requests) == 1
    assert host.deadman_files.off_at is not None
    end = host.end()
    assert end is not None
    assert end.why == "work ended"


def test_a_host_is_let_go_of_again_where_that_failed_once(
    host: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.claimed()
    host.at(30, lambda: host.record(None))
    release, calls = host.deadman_files.delete_claim, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("read-only")
        release()

    monkeypatch.setattr(host.deadman_files, "delete_claim", fails_once)
    assert host.live() is None
    assert not host.deadman_files.taken


def test_the_power_is_asked_off_again_where_that_failed_once(
    host: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.claimed()
    off, calls = host.deadman_files.request_power_off, 0

    def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MisconfiguredError("no room")
        off()

    monkeypatch.setattr(host.deadman_files, "request_power_off", fails_once)
    assert host.live() is not None
