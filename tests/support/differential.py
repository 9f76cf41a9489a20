"""Files of every container, codec and shape, whole, joined and damaged; each with the seconds put into it."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import av
import numpy as np

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.decoding.recordings import Recordings
from batchscribe.errors import AudioError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.recorder import Samples

SECONDS = 8
MISSING = 0.5
"""Seconds of sound that may be missing without a flag."""
COUNT = 300
SEED = 20_26
SLICE = 0.3
"""Part of the sound that a header states, when it states the first slice only."""
JUNK_BYTES = 6000
RATES = (8_000, 16_000, 44_100, 48_000)
OPUS_RATES = (16_000, 48_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A container with a codec, as an encoder writes it."""

    container: str
    codec: str
    extension: str
    options: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[int, ...] = RATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One file of the generator."""

    form: str
    treatment: str
    shape: str
    data: bytes
    seconds: float
    """Of sound that was put in."""

    @property
    def extension(self) -> str:
        return FORMS[self.form].extension


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the worker makes of a file."""

    seconds: float
    is_flagged: bool
    refusal: str = ""


FRAGMENTED = {"movflags": "empty_moov+default_base_moof+delay_moov", "frag_duration": "1000000"}
LIVE = {"live": "1", "cluster_time_limit": "1000"}
INDEX_FIRST = {"moov_size": "4000"}

FORMS: dict[str, Form] = {
    "wav s16": Form(container="wav", codec="pcm_s16le", extension="wav"),
    "wav s24": Form(container="wav", codec="pcm_s24le", extension="wav"),
    "wav f32": Form(container="wav", codec="pcm_f32le", extension="wav"),
    "wav mu-law": Form(container="wav", codec="pcm_mulaw", extension="wav"),
    "wav adpcm": Form(container="wav", codec="adpcm_ima_wav", extension="wav"),
    "rf64": Form(container="wav", codec="pcm_s16le", extension="wav", options={"rf64": "always"}),
    "m4a aac": Form(container="ipod", codec="aac", extension="m4a"),
    "m4a aac, index first": Form(container="ipod", codec="aac", extension="m4a", options=INDEX_FIRST),
    "m4a alac": Form(container="ipod", codec="alac", extension="m4a"),
    "mov aac": Form(container="mov", codec="aac", extension="mov"),
    "mov pcm": Form(container="mov", codec="pcm_s16le", extension="mov"),
    "mp4 opus": Form(container="mp4", codec="libopus", extension="mp4", rates=OPUS_RATES),
    "fragments aac": Form(container="mp4", codec="aac", extension="mp4", options=FRAGMENTED),
    "fragments opus": Form(
        container="mp4", codec="libopus", extension="mp4", options=FRAGMENTED, rates=OPUS_RATES
    ),
    "webm": Form(container="webm", codec="libopus", extension="webm", rates=OPUS_RATES),
    "webm live": Form(container="webm", codec="libopus", extension="webm", options=LIVE, rates=OPUS_RATES),
    "matroska flac": Form(container="matroska", codec="flac", extension="webm"),
    "matroska aac": Form(container="matroska", codec="aac", extension="webm"),
    "ogg opus": Form(container="ogg", codec="libopus", extension="ogg", rates=OPUS_RATES),
    "ogg flac": Form(container="ogg", codec="flac", extension="ogg"),
    "mp3": Form(container="mp3", codec="libmp3lame", extension="mp3"),
    "mp3, no index": Form(
        container="mp3",
        codec="libmp3lame",
        extension="mp3",
        options={"write_xing": "0", "id3v2_version": "0"},
    ),
    "adts": Form(container="adts", codec="aac", extension="aac"),
    "flac": Form(container="flac", codec="flac", extension="flac"),
    "aiff": Form(container="aiff", codec="pcm_s16be", extension="aiff"),
    "caf": Form(container="caf", codec="pcm_s16le", extension="caf"),
    "caf alac": Form(container="caf", codec="alac", extension="caf"),
    "au": Form(container="au", codec="pcm_s16be", extension="au"),
    "w64": Form(container="w64", codec="pcm_s16le", extension="w64"),
    "wavpack": Form(container="wv", codec="wavpack", extension="wv"),
    "wma": Form(container="asf", codec="wmav2", extension="wma", rates=(44_100, 48_000)),
    "ac3": Form(container="ac3", codec="ac3", extension="ac3", rates=(44_100, 48_000)),
    "avi mp3": Form(container="avi", codec="libmp3lame", extension="avi"),
    "avi pcm": Form(container="avi", codec="pcm_s16le", extension="avi"),
}


def encode(form: Form, rate: int, channels: int, seconds: float, seed: int) -> bytes:
    """Noise, so that every second takes about as many bytes."""
    layout = {1: "mono", 2: "stereo"}[channels]
    noise = np.random.default_rng(seed).normal(0, 0.1, (channels, round(seconds * rate)))
    file = io.BytesIO()
    with av.open(file, "w", format=form.container, container_options=dict(form.options)) as out:
        stream: Any = out.add_stream(form.codec, rate=rate, layout=layout)
        if form.codec == "wmav2":
            stream.bit_rate = 64_000
        for frame in _frames(noise.astype(np.float32), rate, layout):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def _frames(samples: Samples, rate: int, layout: str) -> Iterator[av.AudioFrame]:
    for begin in range(0, samples.shape[1], rate):
        part = np.ascontiguousarray(samples[:, begin : begin + rate])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        yield frame


Encoder = Callable[[float, bool], bytes]
"""Makes a file of so many seconds; True gives it another rate and number of channels."""
Treatment = Callable[[Encoder, random.Random], tuple[bytes, float]]
"""The file's bytes, and the seconds of sound put in."""


def _whole(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    return make(SECONDS, False), SECONDS


def _two(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    return make(SECONDS / 2, False) + make(SECONDS / 2, False), SECONDS


def _five(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    return b"".join(make(0.7, False) for _ in range(5)), 3.5


def _two_shapes(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    return make(SECONDS / 2, False) + make(SECONDS / 2, True), SECONDS


def _junk(make: Encoder, rng: random.Random) -> tuple[bytes, float]:
    return make(SECONDS, False) + rng.randbytes(JUNK_BYTES), SECONDS


def _cut(make: Encoder, rng: random.Random) -> tuple[bytes, float]:
    whole = make(SECONDS, False)
    return whole[: int(len(whole) * rng.uniform(0.3, 0.7)) | 1], SECONDS


def _cut_late(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    whole = make(SECONDS, False)
    return whole[: int(len(whole) * 0.93) | 1], SECONDS


def _cut_and_joined(make: Encoder, rng: random.Random) -> tuple[bytes, float]:
    data, _ = _cut(make, rng)
    return data + make(SECONDS, False), 2 * SECONDS


def _removed(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    whole = make(SECONDS, False)
    return whole[: len(whole) * 4 // 10] + whole[len(whole) // 2 :], SECONDS


def _zeroed(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    whole = make(SECONDS, False)
    begin, end = len(whole) * 4 // 10, len(whole) // 2
    return whole[:begin] + bytes(end - begin) + whole[end:], SECONDS


def _data_size_at(wav: bytes | bytearray) -> int:
    return wav.index(b"data") + 4


def _slice_stated(make: Encoder, _: random.Random) -> tuple[bytes, float]:
    """A WAV whose header was written when there was little of it."""
    whole = bytearray(make(SECONDS, False))
    at = _data_size_at(whole)
    size = int((len(whole) - at - 4) * SLICE) & ~0xFF
    if whole[:4] == b"RF64":
        struct.pack_into("<QQ", whole, 20, at + size - 4, size)
    else:
        struct.pack_into("<I", whole, 4, at + size - 4)
        struct.pack_into("<I", whole, at, size)
    return bytes(whole), SECONDS


def _cut_unknown(make: Encoder, rng: random.Random) -> tuple[bytes, float]:
    """A cut WAV; only its data chunk states a size."""
    data = bytearray(_cut(make, rng)[0])
    size = rng.choice((0, 0xFFFF_FFFF, 0xFFFF_FF24, len(data) - 8))
    struct.pack_into("<Q", data, 20, size) if data[:4] == b"RF64" else struct.pack_into("<I", data, 4, size)
    return bytes(data), SECONDS


TREATMENTS: dict[str, Treatment] = {
    "whole": _whole,
    "two joined": _two,
    "five short joined": _five,
    "two shapes joined": _two_shapes,
    "junk behind": _junk,
    "cut": _cut,
    "cut late": _cut_late,
    "cut, then joined": _cut_and_joined,
    "middle removed": _removed,
    "middle zeroed": _zeroed,
    "first slice stated": _slice_stated,
    "cut, size unknown": _cut_unknown,
}
OF_WAV = frozenset({"first slice stated", "cut, size unknown"})


def made(form: str, treatment: str, seed: int) -> Made:
    """One file, the same for the same arguments."""
    rng = random.Random(f"{form} {treatment} {seed}")
    kind = FORMS[form]
    rate, channels = rng.choice(kind.rates), rng.choice((1, 2))
    other = rng.choice([one for one in kind.rates if one != rate])

    def make(seconds: float, different: bool) -> bytes:
        shape = (other, 3 - channels) if different else (rate, channels)
        return encode(kind, *shape, seconds, rng.randrange(1 << 30))

    data, seconds = TREATMENTS[treatment](make, rng)
    shape = f"{rate} Hz x {channels}"
    return Made(form=form, treatment=treatment, shape=shape, data=data, seconds=seconds)


def decoded(decoder: AudioDecoder, file: Made) -> Outcome:
    """As a worker does it; a refusal costs all of the file and is reported."""
    store = MemoryStore(FakeClock(datetime(2026, 5, 1, tzinfo=UTC)))
    try:
        found = Recordings(store).repair(f"s/talk.{file.extension}", file.data)
        decoding = decoder.decode(found.data, max_seconds=3600)
        for _ in decoding:
            pass
    except AudioError as error:
        return Outcome(seconds=0.0, is_flagged=True, refusal=str(error))
    return Outcome(seconds=decoding.seconds, is_flagged=decoding.partial or found.torn)


def pairs() -> list[tuple[str, str]]:
    return [
        (form, treatment)
        for form in FORMS
        for treatment in TREATMENTS
        if treatment not in OF_WAV or FORMS[form].container == "wav"
    ]


def corpus(count: int = COUNT, seed: int = SEED) -> Iterator[Made]:
    """Every form with every treatment that fits it, and again in other shapes, up to `count` files."""
    kinds = pairs()
    random.Random(seed).shuffle(kinds)
    for number in range(count):
        yield made(*kinds[number % len(kinds)], seed + number // len(kinds))
