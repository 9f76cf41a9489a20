"""A host that boots: which claims it takes up, which of them once only, and which it lets go of again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from batchscribe.agent.boot import EARLY_RETRY_SECONDS, Boot
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, HostWaits
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from support.host_agent import RUN, Awake

WAITS = HostWaits()
LOOK = 10.0
"""At most so long is between two looks of the host, and the dead-man's."""


@pytest.fixture
def host() -> Awake:
    return Awake()


def untouched(host: Awake) -> bool:
    """It took up nothing, started nothing, and has no marker that a dead-man would act on."""
    return not (
        host.taken_by() or host.workers.requests or host.deadman_files.taken or host.deadman_files.off_at
    )


def test_a_host_works_its_manifest_and_powers_itself_off_alone(host: Awake) -> None:
    host.claimed()
    host.at(3, host.give)
    host.at(60, lambda: host.progress(1))
    host.at(100, host.finish)
    off = host.live()
    assert [(each.run, each.worker) for each in host.workers.requests] == [(RUN, 0)]
    assert host.workers.requests[0].url == f"memory://double/{keys.manifest(RUN, 0)}"
    assert off is not None
    assert 100 + WAITS.linger <= off <= 100 + WAITS.linger + LOOK
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "work ended")
    assert host.taken_by() == "boot-1"


def test_the_next_manifest_is_worked_too(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(30, host.finish)
    host.at(30 + WAITS.linger - 5, lambda: host.give(1))
    host.at(300, lambda: host.finish(1))
    off = host.live()
    assert [each.worker for each in host.workers.requests] == [0, 1]
    assert off is not None
    assert off >= 300 + WAITS.linger


def test_a_worker_gets_the_hash_that_the_tag_announces(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(30, host.finish)
    host.live()
    assert [each.sha256 for each in host.workers.requests] == [host.announced]


@pytest.mark.parametrize("announced", [None, "", "0" * 64])
def test_a_manifest_that_no_tag_announces_is_never_begun(host: Awake, announced: str | None) -> None:
    host.claimed()
    host.give_unannounced()
    host.announced = announced
    off = host.live()
    assert host.workers.requests == []
    end = host.end()
    assert end is not None
    assert ("announced" if announced else "by its tag") in end.why
    assert off is not None
    assert off <= WAITS.first + LOOK


def test_a_manifest_that_is_replaced_after_it_was_announced_is_never_begun(host: Awake) -> None:
    host.claimed()
    host.give()
    host.give_unannounced(source="file:///root")
    host.live()
    assert host.workers.requests == []


def test_a_forged_manifest_that_its_controller_replaces_keeps_no_work_back(host: Awake) -> None:
    host.claimed()
    host.give()
    host.give_unannounced(source="file:///root")
    host.at(60, host.give)
    host.at(300, host.finish)
    host.live()
    assert [each.sha256 for each in host.workers.requests] == [host.announced]


def test_a_tag_that_lags_behind_the_next_manifest_is_waited_for(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(30, host.finish)
    host.at(40, lambda: host.give_unannounced(1))
    host.at(130, lambda: setattr(host, "announced", host.give_unannounced(1)))
    host.at(300, lambda: host.finish(1))
    host.live()
    assert [each.worker for each in host.workers.requests] == [0, 1]


def test_over_ssh_the_hash_of_the_request_counts_and_not_the_tag(host: Awake) -> None:
    host.claimed(ClaimLaunch.SSH)
    wanted = host.give_unannounced()
    host.start_over_ssh(sha256="0" * 64)
    host.at(60, lambda: host.start_over_ssh(sha256=wanted))
    host.at(90, host.finish)
    host.live()
    assert [each.sha256 for each in host.workers.requests] == [wanted]


def test_a_request_of_an_earlier_version_has_no_hash(host: Awake) -> None:
    host.claimed(ClaimLaunch.SSH)
    host.give_unannounced()
    host.start_over_ssh()
    host.at(90, host.finish)
    host.live()
    assert [each.sha256 for each in host.workers.requests] == [""]


def test_no_work_that_ever_comes_is_waited_for(host: Awake) -> None:
    host.claimed()
    off = host.live()
    assert off is not None
    assert WAITS.first <= off <= WAITS.first + LOOK
    end = host.end()
    assert end is not None
    assert end.why == "no work came"


@pytest.mark.parametrize("after", [None, "run-2"])
@pytest.mark.parametrize("launch", [ClaimLaunch.BOOT, ClaimLaunch.SSH])
def test_a_claim_that_was_taken_back_before_any_work_came_lets_go_of_the_host(
    host: Awake, launch: ClaimLaunch, after: str | None
) -> None:
    """Its controller's start failed, and left the host to the user who had started it meanwhile."""
    host.claimed(launch)
    host.at(30, lambda: host.record(host.claim(run=after) if after else None))
    assert host.live() is None
    assert not host.deadman_files.taken
    assert host.end() is None
    assert host.clock.monotonic() - host.began <= WAITS.first + LOOK


def test_a_record_that_is_gone_lets_go_of_the_host_too(host: Awake) -> None:
    host.claimed()
    host.at(30, lambda: host.store.delete(keys.instance(host.place.instance)))
    assert host.live() is None
    assert not host.deadman_files.taken


def test_a_record_that_cannot_be_read_as_no_work_came_has_a_bound(host: Awake) -> None:
    host.claimed()

    def refuse(_method: str, key: str) -> None:
        if key == keys.instance(host.place.instance):
            raise StoreUnavailableError("503")

    host.at(30, lambda: setattr(host.store, "before", refuse))
    off = host.live()
    assert off is not None
    assert WAITS.silence <= off <= WAITS.silence + LOOK


def test_a_claim_that_is_taken_back_from_under_its_work_ends_no_work(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(30, lambda: host.record(None))
    host.at(700, host.finish)
    host.steady(3, every=200)
    off = host.live()
    assert off is not None
    assert off >= 700 + WAITS.linger


def test_a_host_that_a_person_started_does_nothing(host: Awake) -> None:
    host.record(None)
    assert host.live() is None
    assert untouched(host)


def test_a_host_that_was_never_recorded_does_nothing(host: Awake) -> None:
    assert host.live() is None
    assert untouched(host)


@pytest.mark.parametrize(
    ("created", "deadline", "meant"),
    [(-60, 7200, True), (-60, -5, False), (280, 7200, True), (320, 7200, False), (-7200, -1, False)],
)
def test_a_claim_counts_for_the_boots_between_its_intent_and_its_deadline(
    host: Awake, created: float, deadline: float, meant: bool
) -> None:
    """Seconds from the boot on; what is a little younger than the boot is a matter of clocks."""
    at = host.boot.at
    host.claimed(created=at + timedelta(seconds=created), deadline=at + timedelta(seconds=deadline))
    off = host.live()
    assert (off is not None) is meant
    assert untouched(host) is not meant


@pytest.mark.parametrize("behind", [6 * 60.0, -3 * 3600.0])
def test_a_clock_that_is_set_after_the_boot_makes_the_claim_count(host: Awake, behind: float) -> None:
    """`behind` in seconds: the boot's own time moves with the clock that it was taken by."""
    host.claimed()
    host.give()
    host.clock.jump(-behind)
    host.boot = Boot(id="boot-1", at=host.boot.at - timedelta(seconds=behind))
    host.at(60, lambda: host.clock.jump(behind))
    host.at(200, host.finish)
    assert host.live() is not None
    assert [each.worker for each in host.workers.requests] == [0]
    end = host.end()
    assert end is not None
    assert end.why == "work ended"


def test_the_time_that_passes_is_not_added_to_the_boot(host: Awake) -> None:
    """Else any claim would be of this boot, sooner or later."""
    host.claimed(created=host.boot.at + timedelta(seconds=310))
    assert host.live() is None
    assert host.clock.monotonic() - host.began >= WAITS.store
    assert untouched(host)


def test_a_claim_that_follows_one_of_another_boot_is_for_another_boot_too(host: Awake) -> None:
    host.claimed(deadline=host.boot.at - timedelta(seconds=5))
    host.at(60, lambda: host.record(host.claim(run="run-2", created=host.clock.now())))
    host.store.create(keys.intent("run-2"), b"{}")
    assert host.live() is None
    assert host.clock.monotonic() - host.began <= 60 + LOOK
    assert untouched(host)
    assert not [*host.store.list(keys.boot("run-2"))]


def test_a_claim_without_an_intent_is_left_alone(host: Awake) -> None:
    host.record(host.claim())
    assert host.live() is None
    assert untouched(host)


def test_the_claim_of_a_settled_run_is_left_alone(host: Awake) -> None:
    host.claimed()
    host.settle()
    assert host.live() is None
    assert untouched(host)


def test_a_claim_that_holds_the_host_back_is_obeyed(host: Awake) -> None:
    host.claimed(ClaimLaunch.HELD)
    host.give()
    assert host.live() is None
    assert untouched(host)


def test_a_second_boot_leaves_the_claim_to_the_first(host: Awake) -> None:
    host.claimed()
    host.give()
    host.at(60, host.finish)
    assert host.live() is not None
    again = Awake()
    again.store, again.clock = host.store, host.clock
    again.boot = Boot(id="boot-2", at=host.clock.now() - timedelta(seconds=5))
    assert again.live() is None
    assert not again.workers.requests
    assert not again.deadman_files.moved  # nor for a moment
    assert host.taken_by() == "boot-1"


def test_a_claim_that_another_boot_takes_up_at_the_same_moment_is_let_go_of(host: Awake) -> None:
    host.claimed()
    host.give()

    def other(method: str, key: str) -> None:
        if (method, key) == ("create", keys.boot(RUN)):
            host.store.before = lambda _method, _key: None
            host.store.create(
                key, b'{"run":"run-1","boot":"boot-9","at":"2026-11-23T12:00:00Z","release":"0"}'
            )
            host.store.create(keys.host_end(RUN), b"{}")

    host.store.before = other
    assert host.live() is None
    assert untouched_but_for_the_boot(host, "boot-9")


def untouched_but_for_the_boot(host: Awake, boot: str) -> bool:
    acted = host.workers.requests or host.deadman_files.taken or host.deadman_files.off_at
    return not acted and host.taken_by() == boot


def test_a_claim_of_which_the_dead_man_cannot_be_told_is_not_taken_up(
    host: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.claimed()
    host.give()

    def full(_run: str, *, limit: float, now: float) -> float:
        raise MisconfiguredError(f"no room at {now} for {limit}")

    monkeypatch.setattr(host.deadman_files, "record_claim", full)
    assert host.live() is None
    assert untouched(host)


def test_a_boot_after_another_s_is_not_noted_before_the_dead_man_knows(
    host: Awake, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.claimed()
    host.give()
    again = rebooted(host)

    def full(_run: str, *, limit: float, now: float) -> float:
        raise MisconfiguredError(f"no room at {now} for {limit}")

    monkeypatch.setattr(again.deadman_files, "record_claim", full)
    assert again.live() is None
    assert not [*host.store.list(keys.later_boot(RUN, "boot-2"))]


def test_a_host_that_may_not_write_leaves_its_power_to_the_dead_man(host: Awake) -> None:
    """It was started for a run, and can do nothing for it."""
    host.claimed()
    host.give()

    def refuse(method: str, _key: str) -> None:
        if method != "get":
            raise MisconfiguredError("no right to write")

    host.store.before = refuse
    with capture_logs() as logs:
        assert host.live() is None
    assert logs[-1]["then"] == "the dead-man powers off"
    assert host.deadman_files.taken
    assert host.deadman_files.moved[-1] - host.began <= LOOK
    assert not host.workers.requests


def rebooted(host: Awake) -> Awake:
    """The same host, some looks later, after an unrequested boot."""
    agent = host.agent()
    for _ in range(20):
        host.clock.sleep(agent.step() or 0.0)
    again = Awake()
    again.store, again.clock, again.began = host.store, host.clock, host.clock.monotonic()
    again.deadman_files.clock = host.clock
    again.boot = Boot(id="boot-2", at=host.clock.now() - timedelta(seconds=5))
    return again


def test_a_host_that_is_booted_again_under_its_run_works_nothing_and_powers_itself_off(host: Awake) -> None:
    host.claimed()
    host.give()
    again = rebooted(host)
    off = again.live()
    assert again.workers.requests == []
    assert off is not None
    assert off <= WAITS.after_report + LOOK
    assert again.deadman_files.taken
    end = again.end()
    assert end is not None
    assert (end.worker, end.why) == (0, "the GPU host was rebooted during the run")
    assert [*host.store.list(keys.later_boot(RUN, "boot-2"))]
    assert host.taken_by() == "boot-1"
    # Whoever starts it now has it to themselves.
    again.deadman_files.limit = None
    again.boot = Boot(id="boot-3", at=host.clock.now())
    again.live()
    assert not again.deadman_files.taken


def test_a_host_that_is_booted_again_after_its_second_manifest_names_that_one(host: Awake) -> None:
    host.claimed()
    host.give()
    host.finish()
    host.give(1)
    again = rebooted(host)
    again.live()
    end = again.end()
    assert end is not None
    assert end.worker == 1


def test_a_host_that_is_booted_again_before_any_manifest_names_no_worker(host: Awake) -> None:
    host.claimed()
    again = rebooted(host)
    off = again.live()
    end = again.end()
    assert off is not None
    assert end is not None
    assert end.worker is None


@pytest.mark.parametrize("call", range(1, 11))
def test_a_second_boot_s_agent_that_dies_at_any_call_of_the_store_still_ends_the_power(
    host: Awake, call: int
) -> None:
    host.claimed()
    host.give()
    again = rebooted(host)
    calls = 0

    def die(_method: str, _key: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SystemExit(9)

    host.store.before = die
    with pytest.raises(SystemExit):
        again.live()
    host.store.before = lambda _method, _key: None
    # The same boot, as another process reckons it.
    again.boot = Boot(id="boot-2", at=again.boot.at + timedelta(microseconds=7))
    off = again.live()
    assert off is not None
    assert off <= 2 * WAITS.after_report + LOOK
    assert not again.workers.requests
    end = again.end()
    assert end is not None
    assert end.worker == 0


def test_a_second_boot_s_agent_that_dies_after_its_word_still_ends_the_power(host: Awake) -> None:
    host.claimed()
    host.give()
    again = rebooted(host)
    agent = again.agent()
    assert agent.step() == 0.0
    assert agent.step() == WAITS.after_report
    assert again.deadman_files.off_at is None
    assert again.live() is not None


def test_a_run_cannot_name_another_s_folder(host: Awake) -> None:
    run = "../../escape"
    host.claimed(run=run)
    host.store.create(keys.intent(run), b"{}")
    assert host.live() is None
    assert untouched(host)
    assert not [*host.store.list(keys.boot(run))]


@pytest.mark.parametrize("error", [StoreUnavailableError("503"), MisconfiguredError("no role yet")])
def test_a_store_that_cannot_be_read_is_tried_again_for_a_while(host: Awake, error: Exception) -> None:
    host.claimed()
    host.give()
    broken = True

    def refuse(_method: str, _key: str) -> None:
        if broken:
            raise error

    def fix() -> None:
        nonlocal broken
        broken = False

    host.store.before = refuse
    host.at(300, fix)
    host.at(400, host.finish)
    assert host.live() is not None
    assert host.workers.requests


def test_a_host_that_never_gets_to_see_its_record_does_nothing(host: Awake) -> None:
    host.claimed()

    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("503")

    host.store.before = refuse
    with capture_logs() as logs:
        assert host.live() is None
    assert logs[-1]["then"] == "nothing is done, and nothing powered off"
    assert host.clock.monotonic() - host.began <= WAITS.store + 2 * LOOK
    host.store.before = lambda _method, _key: None
    assert untouched(host)


def test_a_network_that_comes_up_after_the_agent_costs_no_long_wait(host: Awake) -> None:
    host.claimed()
    host.give()
    up = host.clock.monotonic() + 3.0
    taken: list[float] = []

    def refuse(method: str, key: str) -> None:
        if host.clock.monotonic() < up:
            raise StoreUnavailableError("no answer")
        if (method, key) == ("create", keys.boot(RUN)):
            taken.append(host.clock.monotonic())

    host.store.before = refuse
    host.at(60, host.finish)
    assert host.live() is not None
    assert up <= taken[0] <= up + EARLY_RETRY_SECONDS


def test_a_lost_reply_to_its_own_record_is_no_other_boot(host: Awake) -> None:
    host.claimed()
    host.give()
    calls = 0

    def lose(method: str, key: str) -> None:
        nonlocal calls
        if (method, key) == ("create", keys.boot(RUN)) and not calls:
            calls += 1
            host.store.before = lambda _method, _key: None
            host.store.create(
                key, b'{"run":"run-1","boot":"boot-1","at":"2026-11-23T12:00:00Z","release":"0"}'
            )
            host.store.before = lose
            raise StoreUnavailableError("the reply was lost")

    host.store.before = lose
    host.at(60, host.finish)
    assert host.live() is not None
    assert host.workers.requests
