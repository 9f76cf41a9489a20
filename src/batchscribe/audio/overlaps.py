"""How much of a chunk's beginning the chunk before it ends with, too: found by the sound itself.

A recorder that begins each chunk before it ends the last repeats some of what was said. Only what
stands out is believed: a wrong overlap would take words away, none only says some of them twice.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np
import numpy.typing as npt

from batchscribe.audio.windows import Samples
from batchscribe.core.text.speech import SAMPLE_RATE

Curve = npt.NDArray[np.float64]

REACH = 3 * SAMPLE_RATE
"""Samples of either chunk that are looked at."""
SHORTEST, LONGEST = SAMPLE_RATE // 10, SAMPLE_RATE * 26 // 10
"""Samples of an overlap that can be told; codecs add some to either side."""
LEAST = SAMPLE_RATE // 20
"""Shorter ones compete, so that the best of those is not taken for one of the others."""
BAND = (200.0, 3800.0)
"""Hertz. Below is hum, and above little is left by codecs."""
SMOOTH = 100.0
"""Hertz over which a spectrum is flattened: formants go, so that vowels are not alike for them."""
FLOOR = 0.01
"""Of the mean power: frequencies with less are not raised any further."""
QUIET = 0.001
"""Of the mean power: what is below is as good as silent."""
NEAR = SAMPLE_RATE // 50
"""Samples about a peak that belong to it: a voice repeats itself after 3 to 12 ms."""
STAND_OUT = 0.7
"""The next best is at most so much of it."""
PART = SAMPLE_RATE // 20
AUDIBLE = 0.02
"""Of the mean energy: quieter parts do not count."""
ALIKE = 0.5
"""How alike 50 ms must be to be the same, from -1 to 1."""
THROUGHOUT = 0.9
"""So many of them must be."""
EDGE = 1
"""Parts at either end that do not count in longer overlaps: codecs fill up there."""
LOUD = 10 ** (-50 / 20)
"""RMS, against full scale, that the shared part must have at least."""
LIVELY = 6.0
"""Decibels between its loud and its quiet moments: noise, hum and tones have less."""
MOMENT = SAMPLE_RATE // 100
WIDE = 4.0
"""Bands of 62.5 Hz that it fills, at least."""
IDENTICAL = 0.01
"""What two sounds may differ by, of themselves, to be one that no codec went through."""
AGREE = 0.05
"""Seconds within which two overlaps are the same."""
REMEMBERED = 50
"""Overlaps of a session by which the usual one is told: the last ones."""
UNLIKE = 0.15
"""Speech that is no more alike where it should be the same is not the same."""


def reach(fixed_ms: int | None) -> int:
    """Samples at both sides of a cut that must be there to find an overlap, or to leave it out."""
    return max(REACH, (fixed_ms or 0) * SAMPLE_RATE // 1000)


class Overlaps:
    """The overlaps of one session's chunks, asked for in their order; for one thread.

    With `fixed_ms` each is so long; without, as long as the sound says.
    """

    def __init__(self, fixed_ms: int | None) -> None:
        self._fixed = None if fixed_ms is None else max(0, fixed_ms) / 1000
        self.reach = reach(fixed_ms)
        self._sure: deque[float] = deque(maxlen=REMEMBERED)

    def between(self, before: Samples, after: Samples) -> float:
        """Seconds that `after` begins before the end of `before`, both as in `measure`.

        Where the sound at a cut does not tell (nobody speaks there), it is what is usual in the session,
        as long as two measures agree on that and the sound does not speak against it; else 0.
        """
        most = min(len(before), len(after)) / SAMPLE_RATE
        if self._fixed is not None:
            return min(self._fixed, most)
        found = measure(before, after)
        if found is not None:
            self._sure.append(found)
            return found
        usual = self._usual()
        return 0.0 if usual > most or _speaks_against(before, after, usual) else usual

    def _usual(self) -> float:
        """The middle of those measures that most agree on; 0 where no two do."""
        groups = [[other for other in self._sure if abs(other - one) <= AGREE] for one in self._sure]
        most = max(groups, key=len, default=[])
        return median(most) if len(most) > 1 else 0.0


def measure(before: Samples, after: Samples) -> float | None:
    """Seconds that `after` begins before the end of `before`, 0.1 to 2.6; None where that is not sure.

    Both have shape (samples,), float32 in [-1, 1], 16 kHz, mono: the end of a chunk and the beginning
    of the next; up to 3 s of either are looked at.
    """
    tail, head = before[-REACH:], after[:REACH]
    if min(len(tail), len(head)) < SHORTEST:
        return None
    flat_tail, flat_head = _flattened(tail, head)
    curve = _likeness(flat_tail, flat_head)
    best = int(np.argmax(curve))
    if not SHORTEST <= best <= LONGEST:
        return None
    second = max(_beside(curve, best), _repeats(flat_tail, flat_head, best))
    if second > STAND_OUT * curve[best]:
        return None
    if not _alike_throughout(flat_tail[-best:], flat_head[:best]):
        return None
    shared = tail[-best:], head[:best]
    # Even the hiss of a room is never the same twice.
    return best / SAMPLE_RATE if _identical(*shared) or all(map(_telling, shared)) else None


def _speaks_against(before: Samples, after: Samples, seconds: float) -> bool:
    """Whether both are speech where they should be the same, and are not: a recording was begun anew."""
    length, near = round(seconds * SAMPLE_RATE), round(AGREE * SAMPLE_RATE)
    tail, head = before[-REACH:], after[:REACH]
    if length < SHORTEST:
        return False
    curve = _likeness(*_flattened(tail, head))
    alike = curve[max(LEAST, length - near) : length + near + 1].max()
    return bool(alike < UNLIKE and _telling(tail[-length:]) and _telling(head[:length]))


def _flattened(tail: Samples, head: Samples) -> tuple[Curve, Curve]:
    """Both within the band and with as much of each frequency, through one filter for both."""
    size = 1 << (len(tail) + len(head)).bit_length()
    spectra = [np.fft.rfft(sound.astype(np.float64), size) for sound in (tail, head)]
    step = SAMPLE_RATE / size
    # Each weighs the same, however loud it is.
    power = sum(np.square(np.abs(one)) / (np.square(np.abs(one)).mean() + 1e-12) for one in spectra)
    count = max(1, round(SMOOTH / step))
    smooth = np.convolve(power, np.full(count, 1 / count), mode="same")
    frequency = np.arange(len(smooth)) * step
    passed = (frequency >= BAND[0]) & (frequency <= BAND[1])
    weight = passed / np.sqrt(smooth + FLOOR * smooth[passed].mean() + 1e-12)
    flat = [np.fft.irfft(one * weight, size) for one in spectra]
    return flat[0][: len(tail)], flat[1][: len(head)]


def _correlated(one: Curve, other: Curve) -> Curve:
    """The sums of products for each place of `other` along `one`: at k, `one[k + i] * other[i]`."""
    size = 1 << (len(one) + len(other)).bit_length()
    product = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    return np.fft.irfft(product, size)[: len(one)]


def _energy(sound: Curve) -> Curve:
    """Of the first n samples, for each n; a little noise more, so that silence is like nothing."""
    quiet = QUIET * float(np.square(sound).mean()) + 1e-18
    return np.concatenate([[0.0], np.cumsum(np.square(sound) + quiet)])


def _likeness(tail: Curve, head: Curve) -> Curve:
    """How alike the last n samples of the one and the first n of the other are, for each n; -1 to 1."""
    most = min(len(tail), len(head))
    products = _correlated(tail, head)[::-1]
    lengths = np.arange(LEAST, most + 1)
    energies = _energy(tail[::-1])[lengths] * _energy(head)[lengths]
    curve = np.full(most + 1, -1.0)
    curve[LEAST:] = products[lengths - 1] / np.sqrt(energies)
    return curve


def _beside(curve: Curve, best: int) -> float:
    """The highest of a curve away from its peak."""
    left = float(curve[: max(0, best - NEAR)].max(initial=-1.0))
    return max(left, float(curve[best + NEAR :].max(initial=-1.0)))


def _repeats(tail: Curve, head: Curve, length: int) -> float:
    """How alike the shared part is to any other part of the two: what is said twice tells nothing."""
    behind = _along(tail, head[:length])
    front = _along(head, tail[-length:])
    return max(_beside(behind, len(behind) - 1), _beside(front, 0))


def _along(sound: Curve, part: Curve) -> Curve:
    """How alike the part is to the sound at each place where all of it fits."""
    energy = _energy(sound)
    within = energy[len(part) :] - energy[: -len(part)]
    products = _correlated(sound, part)[: len(within)]
    alike: Curve = products / np.sqrt(within * _energy(part)[-1])
    return alike


def _alike_throughout(one: Curve, other: Curve) -> bool:
    """Whether nearly all parts of the two are alike, not the loudest alone.

    A word said twice may be the same in its middle, and is not about it.
    """
    count = len(one) // PART
    parts = [sound[: count * PART].reshape(count, PART) for sound in (one, other)]
    energies = [np.square(part).sum(axis=1) for part in parts]
    heard = np.maximum(*(energy / (energy.mean() + 1e-18) for energy in energies)) > AUDIBLE
    products = (parts[0] * parts[1]).sum(axis=1)
    alike = products > ALIKE * np.sqrt(energies[0] * energies[1])
    inner = slice(EDGE, -EDGE) if count >= 4 * EDGE else slice(None)
    return bool(alike[inner][heard[inner]].mean() >= THROUGHOUT) if heard[inner].any() else False


def _identical(one: Samples, other: Samples) -> bool:
    away = np.sqrt(np.mean(np.square(one - other, dtype=np.float64)))
    return bool(away < IDENTICAL * np.sqrt(np.mean(np.square(one, dtype=np.float64))))


def _telling(shared: Samples) -> bool:
    """Whether a sound is one that no other is like: loud, of many frequencies, and changing."""
    sound = np.diff(shared.astype(np.float64))
    if float(np.sqrt(np.mean(np.square(shared, dtype=np.float64)))) < LOUD:
        return False
    moments = np.square(sound[: len(sound) // MOMENT * MOMENT]).reshape(-1, MOMENT).sum(axis=1) + 1e-12
    loud, quiet = np.percentile(moments, (90, 10))
    bands = _bands(sound)
    return bool(10 * np.log10(loud / quiet) >= LIVELY and bands.sum() ** 2 / np.square(bands).sum() >= WIDE)


def _bands(sound: Curve) -> Curve:
    """The power in each 62.5 Hz of the band."""
    size = 256
    frames = sound[: len(sound) // size * size].reshape(-1, size) * np.hanning(size)
    power: Curve = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)
    step = SAMPLE_RATE / size
    return power[round(BAND[0] / step) : round(BAND[1] / step)]
