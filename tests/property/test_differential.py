"""Each kind of file once: what is missing of its sound is flagged. `python -m bench.differential` has 300."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchscribe.audio.audio_decoder import AudioDecoder
from support.differential import FORMS, MISSING, TREATMENTS, decoded, made, pairs

SOUND = frozenset({"whole", "two joined", "five short joined", "two shapes joined"})
"""Treatments that lose nothing."""
KINDS = [
    next(pair for pair in pairs() if pair == (form, treatment))
    for number, form in enumerate(FORMS)
    for treatment in [[*TREATMENTS][number % 10]]
]
"""Treatments in turn, of those that every form has."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


@pytest.mark.parametrize(("form", "treatment"), KINDS)
def test_what_is_missing_of_a_file_is_flagged(decoder: AudioDecoder, form: str, treatment: str) -> None:
    file = made(form, treatment, 1)
    found = decoded(decoder, file)
    assert found.is_flagged or found.seconds > file.seconds - MISSING
    if treatment in SOUND:
        assert not found.is_flagged, found.refusal
        assert found.seconds == pytest.approx(file.seconds, abs=MISSING)
