"""The bench of leaks: one week of faults, through the original's rules and through ours."""

from __future__ import annotations

from bench.leaks import LEDGER_ALONE, ORIGINAL, OURS, VERY_LONG, Row, play
from bench.weeks import POLICY, Played

from batchscribe.testing.simulation.invariants import LIMIT
from batchscribe.testing.simulation.listening import listening

SEED = 15
"""A week in which the host is gone for a day while its GPU is at work."""


def test_the_original_leaks_where_ours_is_stopped_in_time() -> None:
    original, alone, ours = (played(row) for row in (ORIGINAL, LEDGER_ALONE, OURS))
    bound = (POLICY.max_runtime + LIMIT).total_seconds() / 3600
    assert max(original.stretches) > max(alone.stretches) > VERY_LONG
    assert max(ours.stretches) <= bound
    assert ours.chunks > 0.9 * original.chunks > 300, "nobody wins by not working"


def test_a_week_is_the_same_every_time() -> None:
    assert played(ORIGINAL) == played(ORIGINAL)
    assert played(ORIGINAL) != played(ORIGINAL, SEED + 1)


def played(row: Row, seed: int = SEED) -> Played:
    with listening():
        return play(row, seed)
