from __future__ import annotations

from dataclasses import replace

from batchscribe.core.decide.money import cost
from batchscribe.core.decide.packing import BYTES_PER_SECOND, Priors, estimate, pack, take_portion
from batchscribe.core.scan.chunks import AUDIO_TYPES, Chunk
from support.values import RATE, chunk

PRIORS = Priors(speed=10.0, setup_seconds=0, release_seconds=0)
SECOND = 4_000
"""Bytes of a second of webm, by the untaught priors."""


def session(name: str, *lengths: int) -> list[Chunk]:
    return [
        replace(chunk(number), key=f"{name}/chunk-{number:03}.webm", session=f"{name}/", size=length * SECOND)
        for number, length in enumerate(lengths)
    ]


def keys(candidates: list[Chunk], seconds: float, limit: int | None = None) -> list[str]:
    batch = pack(candidates, pending=len(candidates), priors=PRIORS, rate=RATE, seconds=seconds, limit=limit)
    assert batch.left == len(candidates) - len(batch.chunks)
    return [each.key.replace("/chunk-00", "") for each in batch.chunks]


def test_whole_sessions_are_taken_while_they_fit() -> None:
    candidates = session("a", 30, 30) + session("b", 30, 30) + session("c", 30, 30)
    assert [name[0] for name in keys(candidates, 13)] == ["a", "a", "b", "b"]


def test_a_session_that_is_too_long_for_any_run_is_begun() -> None:
    assert len(keys(session("a", *[30] * 10), 10)) == 3


def test_a_chunk_that_is_too_long_by_itself_waits_for_the_others() -> None:
    candidates = session("a", 500) + session("b", 30, 30)
    assert keys(candidates, 10) == ["b0.webm", "b1.webm"]
    assert keys(candidates[:1], 10) == ["a0.webm"]


def test_nothing_makes_an_empty_batch_and_the_limit_holds() -> None:
    assert keys([], 10) == []
    assert len(keys(session("a", *[1] * 9), 100, limit=4)) == 4


def test_learned_bytes_beat_the_table() -> None:
    taught = replace(PRIORS, bytes_per_second={"webm": 8_000.0})
    assert taught.audio_seconds(chunk()) == 5.0
    assert PRIORS.audio_seconds(chunk()) == 10.0


def test_every_type_of_audio_has_an_estimate() -> None:
    assert BYTES_PER_SECOND.keys() == AUDIO_TYPES
    assert min(BYTES_PER_SECOND.values()) > 0


def portions(candidates: list[Chunk], machines: int) -> list[float]:
    """Minutes of work of each portion, until nothing is left."""
    left, taken = list(candidates), list[float]()
    total = sum(map(PRIORS.audio_seconds, candidates))
    while left:
        portion = take_portion(left, total=total, given=len(taken), machines=machines, priors=PRIORS)
        taken.append(sum(map(PRIORS.audio_seconds, portion)) / PRIORS.speed / 60)
        assert list(portion) == left[: len(portion)]
        left = left[len(portion) :]
    return taken


def test_each_round_gives_half_of_the_rest_evenly() -> None:
    candidates = [each for name in range(160) for each in session(f"s{name:03}", 600)]
    assert portions(candidates, 2) == [40, 40, 20, 20, 10, 10, 10, 10]


def test_a_portion_is_ten_minutes_of_work_at_least_and_cuts_a_long_session() -> None:
    assert portions(session("a", *[600] * 35), 20) == [10, 10, 10, 5]


def test_a_chunk_that_is_longer_than_a_portion_is_one() -> None:
    assert portions(session("a", 60_000, 60_000), 4) == [100, 100]


def test_several_machines_share_the_time_and_add_to_the_cost() -> None:
    candidates = session("a", *[600] * 40)
    priors = replace(PRIORS, setup_seconds=60, release_seconds=60)
    one, four = (estimate(candidates, priors, RATE, machines) for machines in (1, 4))
    assert (one.seconds, four.seconds) == (2520, 720)
    assert four.cost.micros == 4 * cost(RATE, 720).micros
