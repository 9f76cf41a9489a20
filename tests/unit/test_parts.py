"""All recordings of a file are decoded, and what its header leaves out is flagged."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from batchscribe.audio.audio_decoder import AudioDecoder, Samples
from batchscribe.audio.decoding.parts import MAX_PARTS
from batchscribe.errors import AudioError
from support import recorder
from support.audio import RATE, adts, encode, faststart, float_wav, sine, wav
from support.differential import FORMS
from support.differential import encode as encode_noise

HOUR = 3600.0
LOW, HIGH = 400.0, 1300.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


def tone(seconds: float, hertz: float) -> Samples:
    return sine(seconds, hertz=hertz)


def loudest_hertz(samples: Samples) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


JOINABLE: dict[str, Callable[[Samples], bytes]] = {
    "wav": wav,
    "float wav": float_wav,
    "rf64": lambda samples: encode(samples, "wav", options={"rf64": "always"}),
    "m4a": lambda samples: encode(samples, "m4a"),
    "m4a, index first": faststart,
    "mov": lambda samples: encode(samples, "mov"),
    "fragmented mp4": lambda samples: recorder.fragments(samples, fragment_seconds=0.5),
    "mp3": lambda samples: encode(samples, "mp3"),
    "flac": lambda samples: encode(samples, "flac"),
    "webm": lambda samples: encode(samples, "webm"),
    "recorder's webm": lambda samples: recorder.webm(samples, cluster_seconds=0.5),
    "ogg": lambda samples: encode(samples, "ogg"),
    "avi": lambda samples: encode(samples, "avi"),
    "adts": lambda samples: adts(samples, 1),
}


@pytest.mark.parametrize("kind", JOINABLE)
def test_recordings_that_were_joined_are_decoded_one_after_the_other(
    decoder: AudioDecoder, kind: str
) -> None:
    make = JOINABLE[kind]
    tones = (LOW, HIGH, LOW, HIGH, LOW)
    decoded = decoder.decode_all(b"".join(make(tone(1, hertz)) for hertz in tones), max_seconds=HOUR)
    assert not decoded.partial
    assert decoded.seconds == pytest.approx(5, abs=0.5)
    each = decoded.seconds / 5
    for place, hertz in enumerate(tones):
        middle = round((place + 0.5) * each * RATE)
        assert loudest_hertz(decoded.samples[middle - 3000 : middle + 3000]) == pytest.approx(hertz, abs=10)


@pytest.mark.parametrize("kind", ["aiff", "caf", "au", "w64", "wavpack", "wma"])
def test_recordings_of_different_shapes_are_joined(decoder: AudioDecoder, kind: str) -> None:
    rates = (44_100, 48_000)
    parts = [encode_noise(FORMS[kind], rate, rate // 24_000, 2, 1) for rate in rates]
    decoded = decoder.decode_all(b"".join(parts), max_seconds=HOUR)
    assert not decoded.partial
    assert decoded.seconds == pytest.approx(4, abs=0.1)


def test_two_channels_stay_apart_over_all_recordings(decoder: AudioDecoder) -> None:
    both = np.column_stack([tone(2, LOW), tone(2, HIGH)]).ravel()
    decoding = decoder.decode(wav(both, channels=2) + wav(tone(2, LOW)), max_seconds=HOUR, split=True)
    samples = np.concatenate(list(decoding))
    assert samples.shape == (4 * RATE, 2)
    assert [round(loudest_hertz(samples[: 2 * RATE, side])) for side in (0, 1)] == [LOW, HIGH]
    assert [round(loudest_hertz(samples[2 * RATE :, side])) for side in (0, 1)] == [LOW, LOW]


def test_the_limit_holds_for_all_recordings_together(decoder: AudioDecoder) -> None:
    for make in (JOINABLE["wav"], JOINABLE["mp3"]):
        with pytest.raises(AudioError, match="longer than the limit"):
            decoder.decode_all(make(sine(3)) * 4, max_seconds=10)


def test_beyond_a_number_of_recordings_the_rest_is_flagged(decoder: AudioDecoder) -> None:
    decoded = decoder.decode_all(wav(sine(0.01)) * (MAX_PARTS + 99), max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(MAX_PARTS / 100, abs=0.1)


@pytest.mark.parametrize(
    ("data", "partial"),
    [
        (wav(sine(4)) + bytes(range(256)) * 20, True),
        (wav(sine(4)) + b"TAG" + bytes(125), False),
        (wav(sine(4), claimed=RATE), True),
        (wav(sine(4), claimed=RATE) + wav(sine(4)), True),
        # Less than 4 KB may be more than half a second.
        (encode_noise(FORMS["wav adpcm"], 8000, 1, 4, 1) + bytes(range(255)) * 14, True),
        (encode(sine(4), "m4a") + bytes(range(256)) * 20, True),
        (encode(sine(4), "m4a") + struct.pack(">I", 8000) + b"free" + bytes(7992), False),
    ],
    ids=["bytes behind a wav", "tag", "first slice", "first slice, joined", "little", "m4a", "free box"],
)
def test_what_a_header_leaves_out_is_flagged(decoder: AudioDecoder, data: bytes, *, partial: bool) -> None:
    assert decoder.decode_all(data, max_seconds=HOUR).partial == partial


@pytest.mark.parametrize(("extra", "partial"), [(8_000, True), (1_000, False)])
def test_sound_that_the_index_of_an_mp4_does_not_list_is_flagged(
    decoder: AudioDecoder, extra: int, *, partial: bool
) -> None:
    data = bytearray(encode(sine(8), "m4a"))
    at, end = data.index(b"mdat") - 4, data.index(b"moov") - 4
    data[at : at + 4] = (end - at + extra).to_bytes(4)
    data[end:end] = bytes(range(250)) * (extra // 250)
    decoded = decoder.decode_all(bytes(data), max_seconds=HOUR)
    assert decoded.partial == partial
    assert decoded.seconds == pytest.approx(8, abs=0.1)


def test_a_part_that_cannot_be_read_costs_only_itself(decoder: AudioDecoder) -> None:
    """The index of the first m4a was at its end."""
    whole = encode(sine(4), "m4a")
    decoded = decoder.decode_all(whole[: len(whole) // 2] + whole, max_seconds=HOUR)
    assert decoded.partial
    assert decoded.seconds == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "avi", "m4a, index first", "ogg"])
def test_a_recording_that_was_cut_off_before_the_next_is_flagged(decoder: AudioDecoder, kind: str) -> None:
    whole = JOINABLE[kind](np.random.default_rng(7).normal(0, 0.1, 6 * RATE).astype(np.float32))
    decoded = decoder.decode_all(whole[: len(whole) * 2 // 3 | 1] + whole, max_seconds=HOUR)
    assert decoded.partial
    # A page of an Ogg lasts a second.
    assert decoded.seconds == pytest.approx(10, abs=1.1)


def test_a_wav_whose_size_is_unknown_ends_with_the_next_recording(decoder: AudioDecoder) -> None:
    first = bytearray(wav(tone(2, LOW), rate=8000))
    first[4:8] = first[40:44] = b"\xff" * 4
    decoded = decoder.decode_all(bytes(first) + wav(tone(2, LOW)), max_seconds=HOUR)
    assert not decoded.partial
    assert decoded.seconds == pytest.approx(6, abs=0.1)
    assert loudest_hertz(decoded.samples[-RATE:]) == LOW


def test_a_file_within_a_file_is_no_recording_behind_it(decoder: AudioDecoder) -> None:
    """Within its stated end, whatever its bytes are, they are its own."""
    inner = wav(sine(1))
    samples = np.frombuffer(inner, "<i2").astype(np.float32) / 32767
    decoded = decoder.decode_all(wav(np.concatenate([sine(1), samples, sine(1)])), max_seconds=HOUR)
    assert not decoded.partial
    assert decoded.seconds == pytest.approx(3, abs=0.01)
