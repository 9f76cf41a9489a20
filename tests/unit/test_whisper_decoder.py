"""What is made of a window's tokens."""

from __future__ import annotations

import pytest

from batchscribe.adapters.engines.whisper.decoder import _find_early_end, _split_lines

STAMPS = 1000


def at(seconds: float) -> int:
    return STAMPS + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "lines"),
    [
        ([at(0.5), 1, 2, at(3)], [(0.5, 3.0, (1, 2))]),
        ([at(0), 1, at(3), at(4), 2, at(6)], [(0.0, 3.0, (1,)), (4.0, 6.0, (2,))]),
        # faster-whisper's own batches lose the second line, which no time stamp ends.
        ([at(0), 1, at(3), at(4), 2, 3], [(0.0, 3.0, (1,)), (4.0, 9.0, (2, 3))]),
        ([at(0), 1, at(3), at(3)], [(0.0, 3.0, (1,))]),
        ([1, 2], [(0.0, 9.0, (1, 2))]),
        ([at(11), 1], [(11.0, 11.0, (1,))]),
        ([at(0), at(2)], []),
        ([], []),
    ],
)
def test_time_stamps_make_lines_and_no_text_is_lost(
    tokens: list[int], lines: list[tuple[float, float, tuple[int, ...]]]
) -> None:
    found = [(line.start, line.end, line.tokens) for line in _split_lines(tokens, STAMPS, 9.0)]
    assert [tokens for _, _, tokens in found] == [tokens for _, _, tokens in lines]
    assert [time for line in found for time in line[:2]] == pytest.approx(
        [time for line in lines for time in line[:2]]
    )


@pytest.mark.parametrize(
    ("tokens", "until"),
    [
        ([at(0), 1, at(3)], None),
        ([at(0), 1, 2], None),
        ([], None),
        ([at(0), 1, at(3), at(4)], 4.0),
        ([1] * 20, 0.0),
        ([at(0), 1, at(3), *[1] * 20], 3.0),
    ],
)
def test_a_model_that_stopped_early_is_known_by_its_last_tokens(
    tokens: list[int], until: float | None
) -> None:
    assert _find_early_end(tokens, STAMPS, room=20) == (until if until is None else pytest.approx(until))
