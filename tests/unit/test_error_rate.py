"""The error rate of speakers: by hand, and by the field's own package as a second opinion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from support.voices import FRAME, Said, converse, measure_error


def measure_with_pyannote(reference: Sequence[Said], guess: Sequence[Said], collar: float) -> float:
    """Its collar is the time on both sides of a border."""
    # Imported here: the package takes as long as all else that the collection of tests imports.
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotate(turns: Iterable[Said]) -> Annotation:
        found = Annotation()
        for number, turn in enumerate(turns):
            found[Segment(turn.start, turn.end), number] = turn.speaker
        return found.support()  # one speaker does not speak twice at a time

    metric = DiarizationErrorRate(collar=2 * collar)
    whole = Timeline([Segment(0, max(turn.end for turn in reference))])
    return float(metric(annotate(reference), annotate(guess), uem=whole))


def to_frames(turns: Iterable[Said]) -> list[Said]:
    """The turns with borders between frames."""
    return [
        Said(each.speaker, *(round(at / FRAME) * FRAME for at in (each.start, each.end))) for each in turns
    ]


def spoil(turns: Sequence[Said], chance: np.random.Generator) -> list[Said]:
    """A guess that misses turns, moves borders, takes speakers for others, and splits one of them."""
    guess = []
    for turn in turns:
        start, end = np.sort(np.array([turn.start, turn.end]) + chance.uniform(-0.5, 0.5, 2))
        kind = chance.choice(["right", "right", "missed", "other", "new"])
        if kind != "missed":
            name = {"right": turn.speaker, "other": turns[0].speaker, "new": "one more"}[kind]
            guess.append(Said(f"guess of {name}", max(0.0, start), end))
    return guess


def test_the_error_rate_counts_what_is_wrong() -> None:
    turns = [Said("a", 0, 10), Said("b", 10, 20)]
    assert measure_error(turns, [Said("x", 10, 20), Said("y", 0, 10)]) == 0
    assert measure_error(turns, [Said("x", 0, 20)]) == pytest.approx(0.5, abs=0.01)
    assert measure_error(turns, []) == 1
    assert measure_error(turns, [Said("x", 0, 15), Said("y", 15, 20)], collar=0) == pytest.approx(0.25)


@pytest.mark.parametrize("collar", [0.0, 0.25])
@pytest.mark.parametrize("voices", [2, 3, 4, 5, 6])
def test_the_error_rate_is_that_of_pyannote(voices: int, collar: float) -> None:
    turns = to_frames(converse(voices, 12 * voices, seed=1).turns)
    rates = []
    for seed in range(8):
        guess = to_frames(spoil(turns, np.random.default_rng(seed)))
        rates.append(measure_error(turns, guess, collar))
        assert rates[-1] == pytest.approx(measure_with_pyannote(turns, guess, collar), abs=1e-6)
    assert min(rates) < 0.5 < max(rates)
