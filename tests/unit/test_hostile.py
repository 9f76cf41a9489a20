"""Whatever bytes come in, the worker gets samples or one line, and goes on with the next file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.errors import AudioError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support import hostile, recorder
from support.audio import RATE, sine

LIMIT = 60
"""Seconds; the files have two, but say what they like."""
FRAGMENT = recorder.at_fragments(recorder.fragments(sine(3), fragment_seconds=0.5))
CLUSTER = recorder.at_clusters(recorder.webm(sine(3), cluster_seconds=0.5))
BLOCK = recorder.at_blocks(recorder.webm(sine(3), cluster_seconds=5.0), 25)


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


def outcome(decoder: AudioDecoder, recordings: Recordings, key: str, data: bytes, *, split: bool) -> str:
    """`sound`, `damaged sound`, or the line that says why there is none."""
    try:
        found = recordings.repair(key, data)
        decoding = decoder.decode(found.data, max_seconds=LIMIT, split=split)
        heard = 0
        for piece in decoding:
            assert piece.ndim == decoding.channels
            assert np.isfinite(piece).all()
            heard += len(piece)
    except AudioError as error:
        return str(error)
    assert 0 < heard == round(decoding.seconds * RATE) <= LIMIT * RATE
    return "damaged sound" if decoding.partial or found.torn else "sound"


def one_line(said: str) -> bool:
    """For a person: not the name of something that was never thought of."""
    return "\n" not in said and "Error in the decoder" not in said


@pytest.mark.parametrize("files", [200, pytest.param(1000, marks=pytest.mark.deep)])
def test_damaged_files_cost_at_most_themselves(decoder: AudioDecoder, files: int) -> None:
    store = MemoryStore(FakeClock(datetime(2026, 5, 1, tzinfo=UTC)))
    recordings = Recordings(store)
    seen: Counter[str] = Counter()
    for number, (kind, seed, data) in enumerate(hostile.corpus(files)):
        key = f"s{number}/chunk-001.{hostile.extension(kind)}"
        said = outcome(decoder, recordings, key, data, split=number % 2 == 0)
        assert one_line(said), (kind, seed)
        seen[said] += 1
    assert sum(seen.values()) == files
    assert seen["damaged sound"] > files / 5
    assert files - seen["sound"] - seen["damaged sound"] > files / 5
    good = decoder.decode_all(hostile.sound("webm"), max_seconds=LIMIT)
    assert good.seconds == pytest.approx(hostile.SECONDS, abs=0.05)


@pytest.mark.parametrize(
    ("pieces", "extension"),
    [(CLUSTER, "webm"), (BLOCK, "webm"), (FRAGMENT, "mp4")],
    ids=["clusters", "blocks", "fragments"],
)
def test_a_damaged_piece_of_a_recording_costs_at_most_its_recording(
    decoder: AudioDecoder, pieces: list[bytes], extension: str
) -> None:
    seen: Counter[bool] = Counter()
    for seed in range(40):
        store = MemoryStore(FakeClock(datetime(2026, 5, 1, tzinfo=UTC)))
        keys = [f"s/chunk-{number:03}.{extension}" for number in range(len(pieces))]
        spoilt = seed % len(pieces)
        chunks = [*pieces]
        chunks[spoilt] = hostile.spoilt(pieces[spoilt], f"{extension} {seed}", seed)
        for key, data in zip(keys, chunks, strict=True):
            store.place(key, data)
        recordings = Recordings(store)
        for key, data in zip(keys, chunks, strict=True):
            said = outcome(decoder, recordings, key, data, split=False)
            assert one_line(said), (extension, seed)
            seen["sound" in said] += 1
    assert seen[True] > seen[False] > 0
