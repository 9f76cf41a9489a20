"""What is lost of a file is told, what is left is heard, and every word keeps its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from batchscribe.audio.audio_decoder import AudioDecoder, Samples
from batchscribe.audio.decoding.ebml import BLOCKS, TIMESTAMP, begin_cluster, walk_elements
from batchscribe.errors import AudioError
from support import recorder
from support.audio import RATE, encode, faststart, float_wav, lengthless, sine, wav
from support.differential import FORMS
from support.differential import encode as encode_noise
from support.recorder import at_clusters, at_fragments

HOUR = 3600.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


NOISE = np.random.default_rng(7).normal(0, 0.1, 20 * RATE).astype(np.float32)
"""Like nothing else in it: 20 s, whose place can be found."""


@cache
def noise(extension: str) -> bytes:
    return encode(NOISE, extension)


def without_index(data: bytes) -> bytes:
    """An MP3 without the note of its length in its first frame."""
    return data[data.index(data[:4] if data[:1] == b"\xff" else b"\xff\xf3", data.index(b"Info")) :]


TRUNCATED: dict[str, Callable[[], bytes]] = {
    "m4a": cache(lambda: faststart(NOISE)),
    "fragmented mp4": cache(lambda: recorder.fragments(NOISE, fragment_seconds=2.0)),
    "webm": lambda: noise("webm"),
    "ogg": lambda: noise("ogg"),
    "mp3": lambda: noise("mp3"),
    "mp3 without its length": lambda: without_index(noise("mp3")),
    "aac": lambda: noise("aac"),
    "flac": lambda: noise("flac"),
    "flac without its length": lambda: lengthless(noise("flac")),
    "wav": lambda: noise("wav"),
    "avi": lambda: noise("avi"),
}


@pytest.mark.parametrize("kept", [0.5, 0.93])
@pytest.mark.parametrize("kind", TRUNCATED)
def test_what_was_cut_off_says_so(decoder: AudioDecoder, kind: str, kept: float) -> None:
    data = TRUNCATED[kind]()
    whole = decoder.decode_all(data, max_seconds=HOUR)
    assert not whole.partial
    assert whole.seconds == pytest.approx(20, abs=0.2)
    # A place that no frame of a constant size ends at.
    torn = decoder.decode_all(data[: int(len(data) * kept) | 1], max_seconds=HOUR)
    assert torn.partial
    assert torn.seconds == pytest.approx(20 * kept, abs=1.5)


@pytest.mark.parametrize("kind", sorted({*TRUNCATED} - {"webm", "mp3 without its length", "wav"}))
def test_also_of_little_that_is_lost(decoder: AudioDecoder, kind: str) -> None:
    assert decoder.decode_all(TRUNCATED[kind]()[:-60], max_seconds=HOUR).partial


def lost(data: bytes, *, zero: bool = False) -> bytes:
    """Without a tenth of it in the middle, or with nothing there."""
    begin, end = len(data) * 4 // 10, len(data) // 2
    return data[:begin] + bytes(end - begin if zero else 0) + data[end:]


HOLES: dict[str, Callable[[], bytes]] = {
    "webm": lambda: lost(noise("webm")),
    "a cluster": lambda: without(at_clusters(recorder.webm(NOISE, cluster_seconds=2.0))),
    "a fragment": lambda: without(at_fragments(recorder.fragments(NOISE, fragment_seconds=2.0))),
    "ogg": lambda: lost(noise("ogg")),
    "m4a": lambda: lost(faststart(NOISE), zero=True),
    "flac": lambda: lost(noise("flac")),
}


def without(pieces: list[bytes], place: int = 4) -> bytes:
    return b"".join(pieces[:place] + pieces[place + 1 :])


SIZED: dict[str, tuple[Callable[[], bytes], int, int, int, str]] = {
    "wav": (lambda: noise("wav"), 4, 4, 8, "little"),
    "rf64": (lambda: encode(NOISE, "wav", options={"rf64": "always"}), 20, 8, 8, "little"),
    "aiff": (lambda: encode_noise(FORMS["aiff"], RATE, 1, 20, 7), 4, 4, 8, "big"),
    "w64": (lambda: encode_noise(FORMS["w64"], RATE, 1, 20, 7), 16, 8, 0, "little"),
}
"""A file whose sound states its size; where the size of the whole is, its bytes, and what it leaves out."""


@pytest.mark.parametrize(
    ("kind", "stated"),
    [(kind, stated) for kind in SIZED for stated in ("ones", "nearly ones", "that of the cut file")]
    # FFmpeg refuses the other kinds with that.
    + [("wav", "zero"), ("rf64", "zero")],
)
def test_a_cut_file_is_known_by_the_size_of_its_sound(decoder: AudioDecoder, kind: str, stated: str) -> None:
    make, at, width, left_out, order = SIZED[kind]
    data = bytearray(make())
    del data[len(data) // 2 & ~3 :]
    whole = {"zero": 0, "ones": 256**width - 1, "nearly ones": 256**width - 220}.get(stated)
    size = len(data) - left_out if whole is None else whole
    data[at : at + width] = size.to_bytes(width, "big" if order == "big" else "little")
    decoded = decoder.decode_all(bytes(data), max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("form", ["caf", "au", "w64", "aiff", "wav s24", "wma", "ac3"])
def test_kinds_that_state_their_length_are_known_when_cut(decoder: AudioDecoder, form: str) -> None:
    data = encode_noise(FORMS[form], 48_000, 2, 4, 7)
    assert not decoder.decode_all(data, max_seconds=HOUR).partial
    torn = decoder.decode_all(data[: len(data) // 2 | 1], max_seconds=HOUR)
    assert torn.partial
    assert torn.seconds == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**32 - 220])
def test_a_recorder_that_could_not_write_the_sizes_is_no_damage(decoder: AudioDecoder, size: int) -> None:
    data = bytearray(wav(sine(3)))
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    decoded = decoder.decode_all(bytes(data), max_seconds=HOUR)
    assert not decoded.partial
    assert decoded.seconds == 3


@pytest.mark.parametrize(
    "whole",
    [
        lambda: noise("m4a"),
        lambda: faststart(NOISE),
        lambda: noise("mov"),
        # Its damaged packets have frames of 41 channels.
        lambda: encode_noise(FORMS["mov aac"], 8000, 1, 8, 1),
    ],
    ids=["m4a", "index first", "mov", "mov with strange frames"],
)
def test_of_an_m4a_without_its_middle_the_whole_beginning_counts(
    decoder: AudioDecoder, whole: Callable[[], bytes]
) -> None:
    sane = decoder.decode_all(whole(), max_seconds=HOUR)
    decoded = decoder.decode_all(lost(whole()), max_seconds=HOUR)
    assert decoded.partial
    beginning = round(0.37 * len(sane.samples))
    assert np.array_equal(decoded.samples[:beginning], sane.samples[:beginning])


@pytest.mark.parametrize("extension", ["mp3", "ac3"])
def test_zeros_among_bare_frames_are_flagged(decoder: AudioDecoder, extension: str) -> None:
    form = {"mp3": "mp3, no index", "ac3": "ac3"}[extension]
    data = encode_noise(FORMS[form], 44_100, 2, 10, 7)
    assert not decoder.decode_all(data, max_seconds=HOUR).partial
    begin, end = len(data) * 4 // 10, len(data) // 2
    assert decoder.decode_all(data[:begin] + bytes(end - begin) + data[end:], max_seconds=HOUR).partial


def place_of(part: Samples, whole: Samples) -> float:
    """Where `part` lies in `whole`, in seconds."""
    size = 1 << (len(part) + len(whole)).bit_length()
    spectrum = np.fft.rfft(whole, size) * np.conj(np.fft.rfft(part, size))
    return int(np.argmax(np.fft.irfft(spectrum, size)[: len(whole)])) / RATE


@pytest.mark.parametrize("kind", HOLES)
def test_what_comes_after_a_hole_keeps_its_time(decoder: AudioDecoder, kind: str) -> None:
    decoded = decoder.decode_all(HOLES[kind](), max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(20, abs=0.1)
    for begin in (2, 14, 18):
        part = NOISE[begin * RATE : (begin + 1) * RATE]
        # What MP4 leaves to its encoder is 64 ms.
        assert place_of(part, decoded.samples) == pytest.approx(begin, abs=0.07)
    assert not decoded.samples[9 * RATE : int(9.5 * RATE)].any()


def test_one_time_stamp_that_is_far_out_is_not_believed(decoder: AudioDecoder) -> None:
    whole = recorder.webm(NOISE, cluster_seconds=2.0)
    data = bytearray(whole)
    for count, found in enumerate(found for found in walk_elements(whole) if found.id in BLOCKS):
        if count % 100 == 50:
            data[found.body + 1 : found.body + 3] = (15_000).to_bytes(2)
    decoded = decoder.decode_all(bytes(data), max_seconds=HOUR)
    assert decoded.seconds == pytest.approx(20, abs=0.01)
    assert place_of(NOISE[-RATE:], decoded.samples) == pytest.approx(19, abs=0.001)


@pytest.mark.parametrize(("hours", "limit"), [(2, 24 * HOUR), (0.5, 1000)])
def test_a_hole_that_is_too_long_is_told_and_not_filled(
    decoder: AudioDecoder, hours: float, limit: float
) -> None:
    first, *rest = at_clusters(recorder.webm(NOISE, cluster_seconds=2.0))
    later = int(hours * HOUR * 1000)
    moved = [
        begin_cluster(
            int.from_bytes(
                chunk[(at := next(e for e in walk_elements(chunk) if e.id == TIMESTAMP)).body : at.end]
            )
            + later
        )
        + chunk[at.end :]
        for chunk in rest
    ]
    decoded = decoder.decode_all(first + b"".join(moved), max_seconds=limit)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_what_is_sound_of_a_torn_file_is_kept(decoder: AudioDecoder, extension: str) -> None:
    whole = encode(sine(20), extension)
    decoded = decoder.decode_all(whole[: len(whole) // 2], max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(10, abs=1.5)


def test_damage_in_the_middle_is_survived_and_told(decoder: AudioDecoder) -> None:
    data = bytearray(encode(sine(20), "flac"))
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    decoded = decoder.decode_all(bytes(data), max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds > 15


def test_floats_are_decoded_as_they_are(decoder: AudioDecoder) -> None:
    decoded = decoder.decode_all(float_wav(sine(7)), max_seconds=HOUR)
    assert np.array_equal(decoded.samples, sine(7))
    assert not decoded.partial


def test_samples_that_are_no_numbers_are_silence_and_told(decoder: AudioDecoder) -> None:
    clean = sine(12)
    spoilt = clean.copy()
    places = [3, 6 * RATE, len(clean) - 1]
    spoilt[places] = [np.nan, np.inf, -np.inf]
    clean[places] = 0
    decoded = decoder.decode_all(float_wav(spoilt), max_seconds=HOUR)
    assert np.array_equal(decoded.samples, clean)
    assert decoded.partial


def test_mostly_no_numbers_is_refused(decoder: AudioDecoder) -> None:
    spoilt = sine(12)
    spoilt[::2] = np.nan
    assert decoder.decode_all(float_wav(spoilt), max_seconds=HOUR).partial
    spoilt[1] = np.nan
    with pytest.raises(AudioError, match="not numbers"):
        decoder.decode_all(float_wav(spoilt), max_seconds=HOUR)


def test_what_no_unit_of_sound_can_have_written_is_no_number(decoder: AudioDecoder) -> None:
    """A recorder may mean 2**31 by one; the square of 1e30 is nothing that can be counted with."""
    loud = np.float32(2.0**30) * sine(12)
    scaled = loud / np.float32(2.0**31)
    assert np.array_equal(decoder.decode_all(float_wav(loud), max_seconds=HOUR).samples, scaled)
    spoilt = loud.copy()
    places = [5, 7 * RATE]
    spoilt[places] = [2.0**31, -1e30]
    scaled[places] = 0
    decoded = decoder.decode_all(float_wav(spoilt), max_seconds=HOUR)
    assert np.array_equal(decoded.samples, scaled)
    assert decoded.partial
