"""Pieces that a real browser's recorder wrote: every one decodes, and they lie side by side."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.core.scan.chunks import audio_name
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.stores import NOW

RECORDER = Path(__file__).parents[1] / "data" / "recorder"


@pytest.mark.parametrize(("kind", "seconds"), [("webm", 17.1), ("mp4", 17.1)])
def test_what_chrome_cut_lies_side_by_side_and_lacks_nothing(kind: str, seconds: float) -> None:
    store = MemoryStore(FakeClock(NOW))
    names = sorted(path.name for path in (RECORDER / kind).iterdir())
    for name in names:
        store.place(f"s/{name}", (RECORDER / kind / name).read_bytes())
    recordings, ends = Recordings(store), list[tuple[float, float]]()
    with AudioDecoder() as decoder:
        for name in names:
            assert audio_name(f"s/{name}") is not None
            found = recordings.repair(f"s/{name}", store.get(f"s/{name}").data)
            assert not found.torn
            assert found.repaired or name == names[0]
            if found.empty:
                assert (kind, name) == ("mp4", names[0])
                continue
            decoding = decoder.decode(found.data, max_seconds=60, skip=found.preroll)
            length = sum(map(len, decoding)) / 16_000
            assert not decoding.partial
            assert decoding.beginning is not None
            assert decoding.beginning.position is not None
            ends.append((max(0.0, decoding.beginning.position - found.delay), length))
    for (begin, length), (following, _) in pairwise(ends):
        assert following == pytest.approx(begin + length, abs=0.1)
    assert sum(length for _, length in ends) == pytest.approx(seconds, abs=0.3)
