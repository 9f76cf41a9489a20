"""Measures the overlap of consecutive chunks by their audio.

A recorder that begins each chunk before it ends the last one repeats some speech. Only a distinct match
counts: a wrong overlap would lose words, a missed one only repeats some.
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
"""Samples of either chunk that are compared."""
SHORTEST, LONGEST = SAMPLE_RATE // 10, SAMPLE_RATE * 26 // 10
"""Range of detectable overlaps, in samples; codecs add some on either side."""
LEAST = SAMPLE_RATE // 20
"""Shortest candidate: a best match below SHORTEST is rejected instead of a longer one accepted."""
BAND = (200.0, 3800.0)
"""Hertz. Below is hum, and codecs leave little above."""
SMOOTH = 100.0
"""Hertz over which a spectrum is flattened: removes formants, which make different vowels alike."""
FLOOR = 0.01
"""Share of the mean power below which frequencies are not raised any further."""
QUIET = 0.001
"""Share of the mean power that counts as silence."""
NEAR = SAMPLE_RATE // 50
"""Samples around a peak that belong to it: a voice repeats itself after 3 to 12 ms."""
STAND_OUT = 0.7
"""Largest second-best match, relative to the best."""
PART = SAMPLE_RATE // 20
AUDIBLE = 0.02
"""Share of the mean energy below which parts do not count."""
ALIKE = 0.5
"""Least correlation of equal parts of 50 ms, from -1 to 1."""
THROUGHOUT = 0.9
"""Least share of parts that must be equal."""
EDGE = 1
"""Parts at either end that do not count in longer overlaps: codecs pad there."""
LOUD = 10 ** (-50 / 20)
"""Least RMS of the shared part, relative to full scale."""
LIVELY = 6.0
"""Least difference in decibels of its loud and quiet moments: noise, hum and tones have less."""
MOMENT = SAMPLE_RATE // 100
WIDE = 4.0
"""Least number of 62.5 Hz bands that it fills."""
IDENTICAL = 0.01
"""Largest relative difference of two copies without a codec in between."""
AGREE = 0.05
"""Seconds within which two overlaps count as equal."""
REMEMBERED = 50
"""Latest overlaps of a session from which the usual one is computed."""
UNLIKE = 0.15
"""Correlation below which speech in an expected overlap is different."""


def compute_reach(fixed_ms: int | None) -> int:
    """Samples on both sides of a cut that overlaps need."""
    return max(REACH, (fixed_ms or 0) * SAMPLE_RATE // 1000)


class Overlaps:
    """Overlaps of one session's chunks, requested in order. Not thread-safe.

    With `fixed_ms`, each overlap has that length; without, it is measured.
    """

    def __init__(self, fixed_ms: int | None) -> None:
        self._fixed = None if fixed_ms is None else max(0, fixed_ms) / 1000
        self.reach = compute_reach(fixed_ms)
        self._sure: deque[float] = deque(maxlen=REMEMBERED)

    def find_overlap(self, before: Samples, after: Samples) -> float:
        """Overlap of `before` and `after` in seconds, both as in `measure`.

        If a cut cannot be measured (silence), returns the session's usual overlap, provided that two
        measurements agree on it and the audio does not contradict it; else 0.
        """
        most = min(len(before), len(after)) / SAMPLE_RATE
        if self._fixed is not None:
            return min(self._fixed, most)
        found = measure_overlap(before, after)
        if found is not None:
            self._sure.append(found)
            return found
        usual = self._usual_overlap()
        return 0.0 if usual > most or _is_contradicted(before, after, usual) else usual

    def _usual_overlap(self) -> float:
        """Median of the largest group of equal measurements; 0 without one."""
        groups = [[other for other in self._sure if abs(other - one) <= AGREE] for one in self._sure]
        most = max(groups, key=len, default=[])
        return median(most) if len(most) > 1 else 0.0


def measure_overlap(before: Samples, after: Samples) -> float | None:
    """Measures the overlap in seconds, 0.1 to 2.6; None if uncertain.

    Both have shape (samples,), float32 in [-1, 1], 16 kHz, mono: the end of a chunk and the beginning of the
    next; up to 3 s of either are compared.
    """
    tail, head = before[-REACH:], after[:REACH]
    if min(len(tail), len(head)) < SHORTEST:
        return None
    flat_tail, flat_head = _flatten_spectra(tail, head)
    curve = _correlation_curve(flat_tail, flat_head)
    best = int(np.argmax(curve))
    if not SHORTEST <= best <= LONGEST:
        return None
    second = max(_second_peak(curve, best), _best_repetition(flat_tail, flat_head, best))
    if second > STAND_OUT * curve[best]:
        return None
    if not _is_alike_throughout(flat_tail[-best:], flat_head[:best]):
        return None
    shared = tail[-best:], head[:best]
    # Room noise is never the same twice, so identical audio is always an overlap.
    return best / SAMPLE_RATE if _is_identical(*shared) or all(map(_is_distinctive, shared)) else None


def _is_contradicted(before: Samples, after: Samples, seconds: float) -> bool:
    """True if both have different speech in the overlap: a restarted recording."""
    length, near = round(seconds * SAMPLE_RATE), round(AGREE * SAMPLE_RATE)
    tail, head = before[-REACH:], after[:REACH]
    if length < SHORTEST:
        return False
    curve = _correlation_curve(*_flatten_spectra(tail, head))
    alike = curve[max(LEAST, length - near) : length + near + 1].max()
    return bool(alike < UNLIKE and _is_distinctive(tail[-length:]) and _is_distinctive(head[:length]))


def _flatten_spectra(tail: Samples, head: Samples) -> tuple[Curve, Curve]:
    """Filters both to a flat spectrum in the band, by one filter."""
    size = 1 << (len(tail) + len(head)).bit_length()
    spectra = [np.fft.rfft(sound.astype(np.float64), size) for sound in (tail, head)]
    step = SAMPLE_RATE / size
    # Equal weights, independent of loudness.
    power = sum(np.square(np.abs(one)) / (np.square(np.abs(one)).mean() + 1e-12) for one in spectra)
    count = max(1, round(SMOOTH / step))
    smooth = np.convolve(power, np.full(count, 1 / count), mode="same")
    frequency = np.arange(len(smooth)) * step
    passed = (frequency >= BAND[0]) & (frequency <= BAND[1])
    weight = passed / np.sqrt(smooth + FLOOR * smooth[passed].mean() + 1e-12)
    flat = [np.fft.irfft(one * weight, size) for one in spectra]
    return flat[0][: len(tail)], flat[1][: len(head)]


def _cross_correlate(one: Curve, other: Curve) -> Curve:
    """Cross-correlation: at k, the sum of `one[k + i] * other[i]`."""
    size = 1 << (len(one) + len(other)).bit_length()
    product = np.fft.rfft(one, size) * np.conj(np.fft.rfft(other, size))
    return np.fft.irfft(product, size)[: len(one)]


def _cumulative_energy(sound: Curve) -> Curve:
    """Energy of the first n samples, for each n.

    A noise floor is added, so that silence matches nothing.
    """
    quiet = QUIET * float(np.square(sound).mean()) + 1e-18
    return np.concatenate([[0.0], np.cumsum(np.square(sound) + quiet)])


def _correlation_curve(tail: Curve, head: Curve) -> Curve:
    """Correlation, -1 to 1, of tail's end and head's beginning, by length."""
    most = min(len(tail), len(head))
    products = _cross_correlate(tail, head)[::-1]
    lengths = np.arange(LEAST, most + 1)
    energies = _cumulative_energy(tail[::-1])[lengths] * _cumulative_energy(head)[lengths]
    curve = np.full(most + 1, -1.0)
    curve[LEAST:] = products[lengths - 1] / np.sqrt(energies)
    return curve


def _second_peak(curve: Curve, best: int) -> float:
    """Maximum of a curve outside its peak."""
    left = float(curve[: max(0, best - NEAR)].max(initial=-1.0))
    return max(left, float(curve[best + NEAR :].max(initial=-1.0)))


def _best_repetition(tail: Curve, head: Curve, length: int) -> float:
    """Best correlation of the shared part elsewhere: repetition proves no overlap."""
    behind = _correlate_along(tail, head[:length])
    front = _correlate_along(head, tail[-length:])
    return max(_second_peak(behind, len(behind) - 1), _second_peak(front, 0))


def _correlate_along(sound: Curve, part: Curve) -> Curve:
    """Correlation of the part with the sound at each possible offset."""
    energy = _cumulative_energy(sound)
    within = energy[len(part) :] - energy[: -len(part)]
    products = _cross_correlate(sound, part)[: len(within)]
    alike: Curve = products / np.sqrt(within * _cumulative_energy(part)[-1])
    return alike


def _is_alike_throughout(one: Curve, other: Curve) -> bool:
    """True if nearly all parts are alike, not only the loudest.

    Two utterances of a word may be alike in the middle, but not around it.
    """
    count = len(one) // PART
    parts = [sound[: count * PART].reshape(count, PART) for sound in (one, other)]
    energies = [np.square(part).sum(axis=1) for part in parts]
    audible = np.maximum(*(energy / (energy.mean() + 1e-18) for energy in energies)) > AUDIBLE
    products = (parts[0] * parts[1]).sum(axis=1)
    alike = products > ALIKE * np.sqrt(energies[0] * energies[1])
    inner = slice(EDGE, -EDGE) if count >= 4 * EDGE else slice(None)
    return bool(alike[inner][audible[inner]].mean() >= THROUGHOUT) if audible[inner].any() else False


def _is_identical(one: Samples, other: Samples) -> bool:
    away = np.sqrt(np.mean(np.square(one - other, dtype=np.float64)))
    return bool(away < IDENTICAL * np.sqrt(np.mean(np.square(one, dtype=np.float64))))


def _is_distinctive(shared: Samples) -> bool:
    """True if a sound is distinctive: loud, of many frequencies, and changing."""
    sound = np.diff(shared.astype(np.float64))
    if float(np.sqrt(np.mean(np.square(shared, dtype=np.float64)))) < LOUD:
        return False
    moments = np.square(sound[: len(sound) // MOMENT * MOMENT]).reshape(-1, MOMENT).sum(axis=1) + 1e-12
    loud, quiet = np.percentile(moments, (90, 10))
    bands = _band_power(sound)
    return bool(10 * np.log10(loud / quiet) >= LIVELY and bands.sum() ** 2 / np.square(bands).sum() >= WIDE)


def _band_power(sound: Curve) -> Curve:
    """Power of each 62.5 Hz within the band."""
    size = 256
    frames = sound[: len(sound) // size * size].reshape(-1, size) * np.hanning(size)
    power: Curve = np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)
    step = SAMPLE_RATE / size
    return power[round(BAND[0] / step) : round(BAND[1] / step)]
