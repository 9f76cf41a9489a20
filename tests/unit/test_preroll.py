"""What follows a cut sounds as if there was none: a decoder is led up to it."""

from __future__ import annotations

import numpy as np
import pytest

from batchscribe.worker.audio import AudioDecoder
from batchscribe.worker.containers import Recording, repair
from batchscribe.worker.preroll import packet_seconds
from support import recorder
from support.audio import bundled, corpus

HOUR = 3600.0


def decibels(sound: float, error: float) -> float:
    return 20 * float(np.log10(sound / max(error, 1e-9)))


def test_what_follows_a_cut_sounds_as_if_there_was_none() -> None:
    with AudioDecoder() as decoder:
        sound = np.concatenate(
            [decoder.decode_all(bundled(key), max_seconds=HOUR).samples for key in corpus()]
        )
        recording = recorder.webm(sound, cluster_seconds=1.7)
        whole = decoder.decode_all(recording, max_seconds=HOUR).samples
        before: Recording | None = None
        begin = 0
        for number, data in enumerate(recorder.at_blocks(recording, 150)):
            found = repair(data, before)
            decoding = decoder.decode(found.data, max_seconds=HOUR, skip=found.preroll)
            piece = np.concatenate(list(decoding))
            there = whole[begin : begin + len(piece)]
            assert decoding.seconds == pytest.approx(len(there) / 16_000, abs=0.001)
            if number and (loud := float(np.sqrt(np.mean(there[:2560] ** 2)))) > 0.01:
                error = float(np.sqrt(np.mean((piece[32:2560] - there[32:2560]) ** 2)))
                assert decibels(loud, error) > 30
            begin, before = begin + len(piece), found.seen
        assert begin == pytest.approx(len(whole), abs=16)


@pytest.mark.parametrize(
    ("first", "seconds"),
    [(0x08, 0.02), (0x18, 0.06), (0x60, 0.01), (0x78, 0.02), (0xF8, 0.02), (0xF9, 0.04), (0xE0, 0.0025)],
)
def test_a_packet_of_opus_says_how_long_it_is(first: int, seconds: float) -> None:
    assert packet_seconds(bytes([first, 0])) == seconds
