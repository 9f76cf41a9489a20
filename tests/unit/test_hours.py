"""BATCH_HOURS: its grammar, the wall clock of a zone, and starts by it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.controller.observe import observe
from batchscribe.controller.tick import tick
from batchscribe.core.decide.hours import Hours, UnknownPartError, parse_hours
from batchscribe.core.decide.observation import Observation, Policy, PolicyName, ReasonCode
from batchscribe.core.decide.policy import Hold, Launch, decide
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from support.values import NOW, backlog, observation
from support.world import stage

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)


def berlin(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).astimezone(UTC)


def is_open(hours: Hours, at: datetime) -> bool:
    return hours.find_next(at) == at


@pytest.mark.parametrize(
    ("text", "opened", "closed"),
    [
        ("mon-fri 22:00-06:00 Europe/Berlin", ["2026-11-23 22:00", "2026-11-28 05:59"], ["2026-11-23 05:59"]),
        (
            "Mon..Fri 22:00..06:00 Europe/Berlin",
            ["2026-11-27 23:00"],
            ["2026-11-28 23:00"],
        ),
        ("Mon..Fri *-*-* 22..23,0..5:* Europe/Berlin", ["2026-11-27 23:59"], ["2026-11-28 05:59"]),
        ("sat,sun Europe/Berlin", ["2026-11-28 00:00", "2026-11-29 23:59"], ["2026-11-30 00:00"]),
        ("fri-mon 12:00-13:00 Europe/Berlin", ["2026-11-23 12:30"], ["2026-11-23 13:00"]),
        (
            "01:00-02:00,3:00-4:00 Europe/Berlin",
            ["2026-11-25 03:30"],
            ["2026-11-25 02:30"],
        ),
        (
            "mon-fri 20:00-24:00; Saturday; sun 0:00-12:00 Europe/Berlin",
            ["2026-11-27 23:00", "2026-11-28 13:00", "2026-11-29 11:00"],
            ["2026-11-29 12:00", "2026-11-27 19:00"],
        ),
    ],
)
def test_the_grammar(text: str, opened: list[str], closed: list[str]) -> None:
    hours = parse_hours(text)
    assert [at for at in opened if not is_open(hours, berlin(at))] == []
    assert [at for at in closed if is_open(hours, berlin(at))] == []
    assert str(hours) == text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "a part is empty"),
        ("22", "22 is not a range of times"),
        ("22:00", "22:00 is not a range of times"),
        ("22:00-25:00", "22:00-25:00 is not a range of times"),
        ("22:00-22:00", "22:00-22:00 is not a range of times"),
        ("24:00-25:00", "24:00-25:00 is not a range of times"),
        ("22:60-23:00", "22:60-23:00 is not a range of times"),
        ("mon-fri 22:00-06:00 Europe/Atlantis", "unknown time zone Europe/Atlantis"),
        ("mon-fri 22:00-06:00 Europe", "unknown time zone Europe"),
        ("mon-fri 22:00-06:00 ../../etc/passwd", "../../etc/passwd is superfluous"),
        ("mon-fri 22:00-06:00 x/../../etc", "unknown time zone x/../../etc"),
        ("mon-fry 22:00-06:00", "fry is not a day"),
        ("mno-fri", "mno-fri is neither a day nor a time zone"),
        ("mon-fri 22:00-06:00; ", "a part is empty"),
        ("mon-fri 22:00-06:00 23:00-24:00", "23:00-24:00 is superfluous"),
        ("*-*-01 22:00-23:00", "22:00-23:00 is superfluous"),
        ("22..30:*", "22..30 is not a range of times"),
    ],
)
def test_anything_else_is_refused_and_the_wrong_part_named(text: str, wrong: str) -> None:
    with pytest.raises(UnknownPartError, match=f"^{re.escape(wrong)}"):
        parse_hours(text)


def test_the_error_of_the_setting_names_the_wrong_part(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BATCH_HOURS=mon-fri 22:00-06:00 Europe/Berln\n")
    wrong = re.escape("Europe/Berln': must be hours such as mon-fri 22:00-06:00 Europe/Berlin (unknown")
    with pytest.raises(MisconfiguredError, match=wrong):
        load({}, folder=tmp_path)


def test_without_a_zone_the_hours_are_utc() -> None:
    assert is_open(parse_hours("22:00-06:00"), datetime(2026, 7, 1, 23, tzinfo=UTC))
    assert not is_open(parse_hours("22:00-06:00 Europe/Berlin"), datetime(2026, 7, 1, 4, 30, tzinfo=UTC))


def test_the_hours_follow_the_wall_clock_through_its_changes() -> None:
    hours = parse_hours("22:00-06:00 Europe/Berlin")
    # Spring: from 2026-03-29 02:00 to 03:00; the night has seven hours
    assert hours.find_last(berlin("2026-03-28 22:00"))[1] == berlin("2026-03-28 22:00") + 7 * HOUR
    # Autumn: from 2026-10-25 03:00 back to 02:00; the night has nine hours
    assert hours.find_last(berlin("2026-10-24 22:00"))[1] == berlin("2026-10-24 22:00") + 9 * HOUR
    assert hours.find_next(berlin("2026-10-25 12:00")) == berlin("2026-10-25 22:00")


def test_an_hour_that_is_skipped_or_repeated_belongs_to_the_hours() -> None:
    hours = parse_hours("02:00-03:00 Europe/Berlin")
    first, second = berlin("2026-10-25 02:30"), berlin("2026-10-25 02:30", fold=1)
    assert second - first == HOUR
    assert hours.find_last(first)[1] == hours.find_last(second)[1] == berlin("2026-10-25 03:00")
    assert is_open(hours, berlin("2026-03-29 03:00") - timedelta(minutes=1))


@given(
    at=st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)),  # noqa: DTZ001  naive: a zone follows
    begin=st.integers(0, 23),
    length=st.integers(1, 23),
    zone=st.sampled_from(["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_the_next_begin_and_the_end_agree(at: datetime, begin: int, length: int, zone: str) -> None:
    hours = parse_hours(f"{begin}:00-{(begin + length) % 24}:00 {zone}")
    now = at.replace(tzinfo=UTC)
    opens = hours.find_next(now)
    assert now <= opens <= now + 25 * HOUR
    end = hours.find_last(opens)[1]
    assert not is_open(hours, end)
    assert timedelta(0) < end - opens <= (length + 1) * HOUR
    if opens > now:
        assert not is_open(hours, opens - timedelta(seconds=1))
        assert opens.astimezone(ZoneInfo(zone)).hour == begin or zone != "UTC"


NIGHT = parse_hours("mon-fri 22:00-06:00")  # NOW is a Monday, 12:00 UTC
POLICY = Policy(hours=NIGHT)


def at_time(hours: float, seen: Observation) -> Observation:
    """The observation so many hours later."""
    return replace(seen, now=NOW + hours * HOUR)


def test_outside_its_hours_a_start_is_held_until_they_begin() -> None:
    seen = observation(backlog(200))
    held = decide(seen, POLICY)
    assert isinstance(held, Hold)
    assert held.reason.code is ReasonCode.OUTSIDE_HOURS
    assert held.reason.sentence == (
        "BATCH_HOURS (mon-fri 22:00-06:00) begin again at 2026-11-23 22:00 UTC; "
        "200 chunks pending, threshold 100 reached"
    )
    assert held.expected == NOW + 10 * HOUR
    assert not held.overdue
    begun = decide(at_time(10, seen), POLICY)
    assert isinstance(begun, Launch)
    assert not begun.outside_hours


def test_a_user_may_start_at_any_time() -> None:
    decision = decide(observation(backlog(1)), replace(POLICY, manual=True))
    assert isinstance(decision, Launch)
    assert not decision.outside_hours


def test_a_chunk_that_would_wait_too_long_starts_outside_the_hours_and_the_reason_warns() -> None:
    seen = observation(backlog(1, hours_old=22.96))
    decision = decide(seen, POLICY)
    assert isinstance(decision, Launch)
    assert decision.outside_hours
    assert decision.reason.code is ReasonCode.MAX_WAIT
    assert decision.reason.sentence.endswith("; BATCH_HOURS (mon-fri 22:00-06:00) would begin too late")


@pytest.mark.parametrize("name", [PolicyName.THRESHOLD, PolicyName.DEADLINE, PolicyName.BALANCED])
def test_the_last_check_of_the_hours_starts_what_is_due_before_the_next_ones(
    name: PolicyName,
) -> None:
    # Chunks of Monday 12:00 are due on Tuesday 12:00, between the hours of the two nights
    policy, seen = replace(POLICY, name=name), observation(backlog(1, hours_old=0.0))
    assert isinstance(decide(at_time(16.9, seen), policy), Hold)
    decision = decide(at_time(17.0, seen), policy)
    assert isinstance(decision, Launch)
    assert not decision.outside_hours
    assert "is outside BATCH_HOURS (mon-fri 22:00-06:00)" in decision.reason.sentence
    expected = decide(at_time(10, seen), policy)
    assert isinstance(expected, Hold)
    assert expected.expected == NOW + 17 * HOUR


def test_a_limit_within_the_next_hours_waits_for_them() -> None:
    policy = replace(POLICY, max_wait=40 * HOUR)
    assert isinstance(decide(at_time(17.0, observation(backlog(1, hours_old=0.0))), policy), Hold)


@pytest.mark.parametrize("name", [PolicyName.THRESHOLD, PolicyName.DEADLINE])
def test_the_expected_start_is_the_last_check_within_hours_that_have_not_begun(name: PolicyName) -> None:
    # Due at about 16:55 UTC, and the only hours before that begin at 13:00.
    policy = Policy(name=name, max_wait=6 * HOUR, hours=parse_hours("mon 13:00-14:30"))
    held = decide(observation(backlog(1, hours_old=0.0)), policy)
    assert isinstance(held, Hold)
    assert held.expected == NOW + 1.5 * HOUR
    if name is PolicyName.DEADLINE:
        assert held.reason.sentence.endswith(
            "the last safe moment for a start is 2026-11-23 16:39 UTC, and the last check within "
            "BATCH_HOURS (mon 13:00-14:30) before it comes after 2026-11-23 13:30 UTC"
        )


def test_the_obstacle_names_the_start_that_the_longest_wait_allows_outside_the_hours() -> None:
    policy = Policy(max_wait=6 * HOUR, hours=parse_hours("22:00-23:00"))
    held = decide(observation(backlog(200, hours_old=0.0)), policy)
    assert held.reason.sentence == (
        "BATCH_HOURS (22:00-23:00) begin again at 2026-11-23 22:00 UTC, too late for the longest wait: a "
        "start is allowed from 2026-11-23 16:55 UTC on; 200 chunks pending, threshold 100 reached"
    )
    assert isinstance(held, Hold)
    assert held.expected is not None
    assert held.expected < NOW + 5 * HOUR


def test_a_chunk_from_the_first_day_of_the_calendar_is_overdue() -> None:
    pending = replace(backlog(1), oldest=datetime.min.replace(tzinfo=UTC))
    assert isinstance(decide(observation(pending), POLICY), Launch)


def test_the_begin_of_the_hours_has_their_time_zone() -> None:
    policy = replace(POLICY, hours=parse_hours("mon-fri 1:00-6:00 Europe/Berlin"))
    sentence = decide(observation(backlog(200)), policy).reason.sentence
    assert "begin again at 2026-11-24 01:00 Europe/Berlin (Tue 00:00 UTC)" in sentence


def test_a_start_outside_the_hours_sends_a_message(tmp_path: Path) -> None:
    hours = parse_hours("sat 3:00-4:00")
    at = stage(tmp_path, policy=Policy(threshold=2, max_wait=2 * HOUR, hours=hours))
    at.upload(3)
    at.clock.sleep(600)
    assert isinstance(tick(at.world, at.config).decision, Hold)
    assert observe(at.world, at.config).last_start is None
    at.clock.sleep(3600)
    run = tick(at.world, at.config).runs[0]
    assert at.notes.messages[0].title == "batchscribe: a start outside BATCH_HOURS"
    assert observe(at.world, at.config).last_start == run.created
    at.ledger.close()


def test_the_setting(tmp_path: Path) -> None:
    settings = load({"BATCH_HOURS": "Mon..Fri 22:00-06:00 Europe/Berlin"}, folder=tmp_path)
    assert settings.hours == parse_hours("Mon..Fri 22:00-06:00 Europe/Berlin")
    shown = {row.name: row.value for row in settings.list_effective()}
    assert shown["BATCH_HOURS"] == "Mon..Fri 22:00-06:00 Europe/Berlin"
    with pytest.raises(
        MisconfiguredError, match=r"is 'at night': must be hours such as .* \(unknown time zone night\)"
    ):
        load({"BATCH_HOURS": "at night"}, folder=tmp_path)
