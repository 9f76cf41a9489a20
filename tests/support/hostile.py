"""Files that nobody would write: damage of every kind, done to sound ones, the same for the same number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from batchscribe.core.scan.chunks import AUDIO_TYPES
from support import recorder
from support.audio import Samples, encode, faststart, lengthless, sine, wav

SECONDS = 2.0


def _tones() -> Samples:
    return np.add(sine(SECONDS), sine(SECONDS, hertz=1330.0) / 3, dtype=np.float32)


SOUND: dict[str, Callable[[], bytes]] = {
    "webm": lambda: encode(_tones(), "webm"),
    "recorder's webm": lambda: recorder.webm(_tones(), cluster_seconds=0.5),
    "ogg": lambda: encode(_tones(), "ogg"),
    "opus": lambda: encode(_tones(), "opus"),
    "wav": lambda: encode(_tones(), "wav"),
    "stereo wav": lambda: wav(_tones().repeat(2), channels=2),
    "flac": lambda: encode(_tones(), "flac"),
    "flac without its length": lambda: lengthless(encode(_tones(), "flac")),
    "mp3": lambda: encode(_tones(), "mp3"),
    "m4a": lambda: encode(_tones(), "m4a"),
    "m4a with its index first": lambda: faststart(_tones()),
    "fragmented mp4": lambda: recorder.fragments(_tones(), fragment_seconds=0.5),
    "aac": lambda: encode(_tones(), "aac"),
    "avi": lambda: encode(_tones(), "avi"),
    "avi with a picture": lambda: encode(_tones(), "avi", picture=True),
    "mov": lambda: encode(_tones(), "mov"),
}


@cache
def sound(kind: str) -> bytes:
    return SOUND[kind]()


def extension(kind: str) -> str:
    return next((word for word in kind.split() if word in AUDIO_TYPES), "webm")


def _flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 30, 300))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _head_flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 5))):
        data[rng.randrange(min(400, len(data)))] ^= 1 << rng.randrange(8)


def _truncated(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def _beheaded(data: bytearray, rng: random.Random) -> None:
    del data[: rng.randrange(1, min(2000, len(data)))]


def _spliced(data: bytearray, rng: random.Random) -> None:
    """The beginning of one file, and the end of another of any kind."""
    other = sound(rng.choice(list(SOUND)))
    data[rng.randrange(1, len(data)) :] = other[rng.randrange(len(other)) :]


def _swapped(data: bytearray, rng: random.Random) -> None:
    """Two fields of the header, or two parts of it, in each other's place."""
    size = rng.choice((1, 2, 4, 8, 64))
    one, two = (rng.randrange(0, max(1, min(600, len(data)) - size)) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def _repeated(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    part = data[begin : begin + rng.choice((4, 100, 3000))]
    data[begin:begin] = part * rng.choice((1, 5, 50))


def _zeroed(data: bytearray, rng: random.Random) -> None:
    begin, size = rng.randrange(len(data)), rng.choice((4, 100, 3000))
    data[begin : begin + size] = bytes(len(data[begin : begin + size]))


def _huge(data: bytearray, rng: random.Random) -> None:
    """A size, a count, a rate or a time of the header that is as large as it can be, or negative."""
    size = rng.choice((2, 4, 8))
    value = rng.choice((b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\xff" * (size - 1) + b"\x7f"))
    begin = rng.randrange(max(1, min(600, len(data)) - size))
    data[begin : begin + size] = value


DAMAGES = (
    _flipped, _head_flipped, _truncated, _beheaded, _spliced, _swapped, _repeated, _zeroed, _huge,
)  # fmt: skip


def damaged(kind: str, seed: int) -> bytes:
    """A file of that kind with one damage, or several."""
    return spoilt(sound(kind), f"{kind} {seed}", seed)


def spoilt(sane: bytes, name: str, seed: int) -> bytes:
    rng, data = random.Random(name), bytearray(sane)
    for damage in (DAMAGES[seed % len(DAMAGES)], *rng.choices(DAMAGES, k=rng.choice((0, 0, 2)))):
        if data:
            damage(data, rng)
    return bytes(data)


def corpus(count: int) -> Iterator[tuple[str, int, bytes]]:
    """Files of every kind in turn: the kind, the number that makes it again, and its bytes."""
    kinds = list(SOUND)
    for number in range(count):
        kind, seed = kinds[number % len(kinds)], number // len(kinds)
        yield kind, seed, damaged(kind, seed)
