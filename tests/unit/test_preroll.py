"""What follows a cut sounds as if there was none: a decoder is led up to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.decoding import fragments
from batchscribe.audio.decoding.containers import Recording, parse_recording, repair_chunk
from batchscribe.audio.decoding.preroll import packet_seconds
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.core.run.manifest import ManifestChunk
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.context_audio import Neighbours
from support import recorder
from support.audio import bundled, corpus

HOUR = 3600.0
CHROME = Path(__file__).parents[1] / "data" / "recorder" / "mp4"
Samples = recorder.Samples


@cache
def speech() -> Samples:
    with AudioDecoder() as decoder:
        keys = [key for key in corpus() if key.startswith("morning-walk/")]
        return np.concatenate([decoder.decode_all(bundled(key), max_seconds=HOUR).samples for key in keys])


def decoded(pieces: list[bytes]) -> list[Samples]:
    """Each piece's own sound; of those without any, nothing."""
    before: Recording | None = None
    heard = []
    with AudioDecoder() as decoder:
        for data in pieces:
            found = repair_chunk(data, before)
            before = found.seen
            if not found.empty:
                decoding = decoder.decode(found.data, max_seconds=HOUR, skip=found.preroll)
                heard.append(np.concatenate(list(decoding)))
                assert decoding.seconds == pytest.approx(len(heard[-1]) / 16_000, abs=0.001)
    return heard


def whole(recording: bytes) -> Samples:
    with AudioDecoder() as decoder:
        return decoder.decode_all(recording, max_seconds=HOUR).samples


def decibels(heard: Samples, there: Samples) -> float:
    """Of the sound to its error, in the first 160 ms but for 2 ms that a resampler needs."""
    sound, error = there[32:2560], heard[32:2560] - there[32:2560]
    return 20 * float(np.log10(max(float(np.std(sound)), 1e-9) / max(float(np.std(error)), 1e-9)))


@pytest.mark.parametrize(
    ("made", "cut"),
    [
        (lambda: recorder.webm(speech(), cluster_seconds=1.7), lambda data: recorder.at_blocks(data, 150)),
        (lambda: recorder.fragments(speech(), fragment_seconds=2.0), recorder.at_fragments),
        (lambda: recorder.fragments(speech(), fragment_seconds=2.0, codec="libopus"), recorder.at_fragments),
    ],
    ids=["Opus in WebM", "AAC in MP4", "Opus in MP4"],
)
def test_what_follows_a_cut_sounds_as_if_there_was_none(
    made: Callable[[], bytes], cut: Callable[[bytes], list[bytes]]
) -> None:
    there, begin = whole(made()), 0
    for number, piece in enumerate(decoded(cut(made()))):
        same = there[begin : begin + len(piece)]
        if number and float(np.std(same[:2560])) > 0.01:
            assert decibels(piece, same) > 30
        begin += len(piece)
    assert begin == pytest.approx(len(there), abs=16)


def test_a_piece_of_chrome_s_mp4_sounds_as_in_the_whole() -> None:
    """Its time stamps tell when a packet came, and the last one's length is a guess."""
    files = [path.read_bytes() for path in sorted(CHROME.iterdir())]
    there, at = whole(b"".join(files)), 0
    for number, piece in enumerate(decoded(files)):
        # The whole lacks the first 80 ms, and silence where time stamps leave room.
        around = there[max(0, at - 6000) : at + 40_000]
        later = int(np.argmax(np.correlate(around, piece[4000:20_000], "valid"))) - 4000
        if number:
            assert decibels(piece, around[later:]) > 30
        at += len(piece)


def test_after_a_hole_a_decoder_is_not_led_astray() -> None:
    cut = recorder.at_fragments(recorder.fragments(speech(), fragment_seconds=2.0))
    first = parse_recording(cut[0])
    assert first is not None
    assert repair_chunk(cut[1], first).preroll > 0.16
    assert repair_chunk(cut[2], first).preroll == 0


@cache
def fragment() -> tuple[bytes, bytes]:
    """A piece of two fragments, and its recording's header."""
    made = recorder.fragments(speech(), fragment_seconds=1.0)
    first = parse_recording(made)
    assert first is not None
    return b"".join(recorder.at_fragments(made)[1:3]), first.header


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.integers(0, 10**6))
def test_whatever_a_fragment_says_it_does_no_harm(changes: list[tuple[int, int]], end: int) -> None:
    data, header = fragment()
    # Most of it is sound: what describes it is hit more often than by chance.
    changed = bytearray(data)
    for place, value in changes:
        changed[place % (300 if place % 2 else len(data))] = value
    cut = bytes(changed[: end % len(data) + 1])
    for found in (fragments.parse_tail(cut, header), fragments.parse_tail(data, header)):
        if found is not None:
            assert len(found.make_preroll(cut)) <= 2 * len(data)


@pytest.mark.parametrize(
    ("first", "seconds"),
    [(0x08, 0.02), (0x18, 0.06), (0x60, 0.01), (0x78, 0.02), (0xF8, 0.02), (0xF9, 0.04), (0xE0, 0.0025)],
)
def test_a_packet_of_opus_says_how_long_it_is(first: int, seconds: float) -> None:
    assert packet_seconds(bytes([first, 0])) == seconds


def torn() -> tuple[bytes, bytes]:
    """A recording, and its next piece, which was cut off in its first packet."""
    whole, piece, *_ = recorder.at_clusters(recorder.webm(speech(), cluster_seconds=2.0))
    return whole, piece[:80]


def test_a_neighbour_without_sound_is_none() -> None:
    store = MemoryStore(FakeClock())
    for number, data in enumerate(torn(), 1):
        store.place(f"s/chunk-00{number}.webm", data)
    neighbours = Neighbours(store, store, Recordings(store), AudioDecoder, lambda: False)
    chunk = ManifestChunk(key="s/chunk-001.webm", etag="e", size=1, session="s/", transcript="t")
    try:
        assert neighbours.find(chunk, 1, split=False) is None
    finally:
        neighbours.close()
