"""The bench of leaks: the same weeks of faults, through the original's rules and through ours."""

from __future__ import annotations

from bench.leaks import ORIGINAL, OURS, VERY_LONG, Row, play
from bench.weeks import POLICY, Played
from simulation.invariants import LIMIT
from simulation.listening import listening

WEEKS = (15, 16)


def test_the_original_leaks_where_ours_is_stopped_in_time() -> None:
    original, ours = played(ORIGINAL), played(OURS)
    bound = (POLICY.max_runtime + LIMIT).total_seconds() / 3600
    assert longest(original) > VERY_LONG
    assert longest(ours) <= bound
    assert chunks(ours) > 0.8 * chunks(original) > 500, "nobody wins by not working"


def test_a_week_is_the_same_every_time() -> None:
    assert played(ORIGINAL) == played(ORIGINAL)
    assert len(set(played(ORIGINAL))) == len(WEEKS)


def played(row: Row) -> list[Played]:
    with listening():
        return [play(row, seed) for seed in WEEKS]


def longest(weeks: list[Played]) -> float:
    return max(hours for week in weeks for hours in week.stretches)


def chunks(weeks: list[Played]) -> int:
    return sum(week.chunks for week in weeks)
