from __future__ import annotations

from datetime import timedelta

import click
import pytest

from batchscribe.cli.app import Duration

KIND = Duration("mhd", "write {value!r} as 30m, 8h or 2d")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("30m", timedelta(minutes=30)),
        (" 8h ", timedelta(hours=8)),
        ("1.5d", timedelta(hours=36)),
        ("0h", timedelta()),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, length: timedelta) -> None:
    assert KIND.convert(text, None, None) == length


@pytest.mark.parametrize("text", ["", "h", "8", "8w", "-1h", "1e3h", "8h2m", "9999999999d"])
def test_other_texts_are_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="30m, 8h or 2d"):
        KIND.convert(text, None, None)
