"""Pieces of a recording are decodable each by itself, with nothing dropped, and tell where they belong."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.decoding.containers import (
    Recording,
    Repaired,
    Shape,
    detect_shape,
    parse_recording,
    repair_chunk,
)
from batchscribe.audio.decoding.ebml import BLOCKS, CLUSTER, CUES, walk_elements
from batchscribe.errors import AudioError
from support import recorder
from support.recorder import RATE, Samples, at_blocks, at_clusters, at_fragments, heard, pieces

SECONDS = 12
EXACT = 0.003
"""Time stamps are whole milliseconds."""
PACKET = 0.02
FRAME = 0.1
"""What an encoder adds to fill its last frame."""


@cache
def sound() -> Samples:
    """Noise whose loudness and colour change all the time: every place in it is unlike any other."""
    at = np.arange(SECONDS * RATE) / RATE
    noise = np.random.default_rng(7).normal(0, 0.05, len(at))
    glide = np.sin(2 * np.pi * (200 + 150 * at) * at) * (0.3 + 0.2 * np.sin(2 * np.pi * 1.7 * at))
    return (noise + glide).astype(np.float32)


@cache
def webm() -> bytes:
    return recorder.webm(sound(), cluster_seconds=2.0)


@cache
def mp4() -> bytes:
    return recorder.fragments(sound(), fragment_seconds=2.0)


def repaired(chunks: list[bytes]) -> list[Repaired]:
    out: list[Repaired] = []
    before: Recording | None = None
    for chunk in chunks:
        out.append(repair_chunk(chunk, before))
        before = out[-1].seen or before
    return out


def lag(samples: Samples, begins: float) -> float:
    """How much later than it was said a piece's sound is, in seconds, where it is laid."""
    at = round(begins * RATE)
    true = sound()[max(0, at - RATE // 2) :][: len(samples) + RATE]
    size = 1 << (len(true) + len(samples)).bit_length()
    spectrum = np.fft.rfft(true, size) * np.conj(np.fft.rfft(samples, size))
    found = int(np.argmax(np.fft.irfft(spectrum, size)[: len(true)]))
    return (min(at, RATE // 2) - found) / RATE


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        (lambda: at_clusters(webm()), Shape.CLUSTER),
        (lambda: at_blocks(webm(), 70), Shape.BLOCK),
        (lambda: at_fragments(mp4()), Shape.FRAGMENT),
    ],
    ids=["clusters", "in the middle of clusters", "fragments"],
)
def test_each_piece_is_decoded_whole_and_where_it_belongs(
    chunks: Callable[[], list[bytes]], kind: Shape
) -> None:
    cut = chunks()
    assert len(cut) >= 5
    assert {detect_shape(chunk) for chunk in cut[1:]} <= {kind, Shape.CLUSTER}
    parts = repaired(cut)
    assert [part.repaired for part in parts] == [False] + [True] * (len(cut) - 1)
    at = 0.0
    for part in parts:
        begins, samples = heard(part)
        assert begins - part.delay == pytest.approx(at, abs=EXACT)
        # Of a piece of one packet nobody can say where it was said.
        if len(samples) > RATE / 10:
            assert lag(samples, begins - part.delay) == pytest.approx(0.0, abs=EXACT)
        at = begins - part.delay + len(samples) / RATE
    assert at == pytest.approx(SECONDS, abs=FRAME)


@given(st.lists(st.integers(500, 10**9), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_cut_through_a_block_loses_nothing(places: list[int]) -> None:
    """What was begun in one piece is ended in the next."""
    first = len(at_clusters(webm())[0])
    found = sorted({first + place % (len(webm()) - first - 500) for place in places})
    cuts = [found[0]] + [two for one, two in pairwise(found) if two - one > 500]
    parts = repaired(pieces(webm(), cuts))
    assert not any(part.torn for part in parts)
    assert sum(map(_own_packets, parts)) == _packets(webm())


def _own_packets(part: Repaired) -> int:
    return _packets(part.data) - round(part.preroll / PACKET)


def _packets(data: bytes) -> int:
    with av.open(io.BytesIO(data), "r") as container:
        return sum(packet.size > 0 for packet in container.demux(audio=0))


def test_an_index_alone_has_no_sound_and_lacks_none() -> None:
    found = repair_chunk(CUES.to_bytes(4) + b"\x80")
    assert (found.empty, found.torn, found.repaired) == (True, False, False)


def test_sound_behind_an_index_is_not_passed_over() -> None:
    first, second = at_clusters(webm())[:2]
    found = repair_chunk(CUES.to_bytes(4) + b"\x80" + second, parse_recording(first))
    assert (found.empty, found.torn) == (False, True)


def test_a_header_alone_begins_a_recording() -> None:
    """Chrome's MP4 begins with one; the first sound comes with the second chunk."""
    whole = mp4()
    cut = whole.index(b"moof") - 4
    header = parse_recording(whole[:cut])
    assert header is not None
    assert repair_chunk(whole[:cut]).empty
    found = repair_chunk(whole[cut:], header)
    assert (found.empty, found.repaired) == (False, True)
    first = webm()[: webm().index(CLUSTER.to_bytes(4))]
    assert repair_chunk(first).empty
    assert not repair_chunk(webm()).empty
    assert not repair_chunk(whole).empty


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("cut", [at_clusters, lambda data: at_blocks(data, 70)])
def test_without_the_first_chunk_it_is_said_what_is_missing(
    chunk: int, cut: Callable[[bytes], list[bytes]]
) -> None:
    with pytest.raises(AudioError, match="it has no header"):
        repair_chunk(cut(webm())[chunk])


def test_what_needs_no_header_is_left_as_it_is() -> None:
    for data in (b"RIFF" + bytes(40), b"OggS" + bytes(40), b"fLaC", b"ID3", b"", webm(), mp4()):
        done = repair_chunk(data)
        assert (done.data, done.repaired, done.torn) == (data, False, False)


def test_after_a_hole_a_piece_begins_with_its_next_cluster() -> None:
    """The chunk before it is missing: what its first bytes belong to is lost, and that is said."""
    first, *_ = at_clusters(webm())
    before = repair_chunk(first).seen
    assert before is not None
    done = repair_chunk(webm()[len(webm()) // 2 + 13 :], Recording(before.header))
    assert done.torn
    begins, samples = heard(done)
    assert begins + len(samples) / RATE == pytest.approx(SECONDS, abs=FRAME)


def test_pieces_far_into_a_recording_lack_nothing_of_their_length() -> None:
    header = parse_recording(mp4())
    with AudioDecoder() as decoder:
        for part in at_fragments(mp4())[1:-1]:
            decoding = decoder.decode(repair_chunk(part, header).data, max_seconds=4)
            assert sum(map(len, decoding)) / RATE == pytest.approx(2, abs=FRAME)
            assert not decoding.partial


def test_of_opus_in_fragments_nothing_is_left_out() -> None:
    """Chrome states a skip of 80 ms, which a decoder would leave out of every piece."""
    whole = recorder.fragments(sound(), fragment_seconds=2.0, codec="libopus")
    header = parse_recording(whole)
    assert header is not None
    at = header.header.index(b"dOps")
    assert header.header[at + 6 : at + 8] == bytes(2)
    with AudioDecoder() as decoder:
        for part in at_fragments(whole)[1:-1]:
            decoded = decoder.decode_all(repair_chunk(part, header).data, max_seconds=10)
            assert decoded.seconds == pytest.approx(2, abs=0.03)
            assert not decoded.partial


@pytest.mark.parametrize("size", [300, 5_000])
@pytest.mark.parametrize("cluster_seconds", [2.0, 30.0])
def test_behind_a_zeroed_stretch_the_sound_goes_on(cluster_seconds: float, size: int) -> None:
    """A decoder takes zeros between blocks for the end of the file."""
    whole = recorder.webm(sound(), cluster_seconds=cluster_seconds)
    begins = [found.begin for found in walk_elements(whole) if found.id in BLOCKS]
    with AudioDecoder() as decoder:
        for begin in begins[100:500:100]:
            part = repair_chunk(whole[:begin] + bytes(size) + whole[begin + size :])
            assert part.torn
            decoded = decoder.decode_all(part.data, max_seconds=60)
            assert decoded.seconds == pytest.approx(SECONDS, abs=0.2)


def test_several_stretches_are_bridged_at_once() -> None:
    whole = recorder.webm(sound(), cluster_seconds=30.0)
    begins = [found.begin for found in walk_elements(whole) if found.id in BLOCKS]
    data = bytearray(whole)
    for begin in begins[100:500:100]:
        data[begin : begin + 400] = bytes(400)
    part = repair_chunk(bytes(data))
    assert part.torn
    assert _packets(part.data) == pytest.approx(_packets(whole), abs=4 * 5)


def test_a_stretch_in_a_piece_is_bridged_too() -> None:
    first, second = at_blocks(recorder.webm(sound(), cluster_seconds=30.0), 300)[:2]
    begin = [found.begin for found in walk_elements(second) if found.id in BLOCKS][100]
    part = repair_chunk(second[:begin] + bytes(5000) + second[begin + 5000 :], repair_chunk(first).seen)
    assert part.torn
    assert part.seen is not None
    assert part.seen.rest == b""
    begins, samples = heard(part)
    assert begins + len(samples) / RATE - begins == pytest.approx(6, abs=0.8)


def test_zeros_up_to_the_end_are_flagged() -> None:
    data = recorder.webm(sound(), cluster_seconds=30.0)
    assert repair_chunk(data[: len(data) // 2] + bytes(len(data) // 2)).torn


@pytest.mark.parametrize("cluster_seconds", [2.0, 30.0])
def test_a_webm_that_was_cut_off_before_another_is_flagged(cluster_seconds: float) -> None:
    data = recorder.webm(sound(), cluster_seconds=cluster_seconds)
    part = repair_chunk(data[: len(data) // 2 | 1] + data)
    assert part.torn
    with AudioDecoder() as decoder:
        assert decoder.decode_all(part.data, max_seconds=60).seconds == pytest.approx(18, abs=0.2)
