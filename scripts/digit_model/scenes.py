"""Windows of sound with the words in them: phrases laid end to end, then made louder, faster, noisier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bank import RATE, Phrase, Samples, random_digits

Word = tuple[int, float, float]
"""A digit, and where it begins and ends, in seconds of the window."""


@dataclass(frozen=True)
class Scene:
    """Sound at 16 kHz, and the words that are more than half inside."""

    sound: Samples
    words: tuple[Word, ...]


class Stage:
    """Makes scenes out of a bank of phrases and of speakers' single digits."""

    def __init__(self, phrases: list[Phrase], speakers: list[list[Phrase]]) -> None:
        self._phrases = phrases
        self._speakers = [{phrase.words[0][0]: phrase for phrase in speaker} for speaker in speakers]

    def scene(self, random: np.random.Generator, seconds: float, *, dense: float) -> Scene:
        """`dense` is the share of windows with next to no pauses; six in a hundred have no speech."""
        length = int(seconds * RATE)
        if random.random() < 0.06:
            return Scene(_degraded(random, np.zeros(length, np.float32)), ())
        sound, words = self._laid(random, seconds, is_dense=random.random() < dense)
        return Scene(_degraded(random, sound), words)

    def _laid(
        self, random: np.random.Generator, seconds: float, *, is_dense: bool
    ) -> tuple[Samples, tuple[Word, ...]]:
        sound = np.zeros(int(seconds * RATE), np.float32)
        words: list[Word] = []
        cut_in = random.random() < 0.4
        at = float(random.uniform(-1.2, 0) if cut_in else random.uniform(0, 0.5 if is_dense else 1.5))
        ends = seconds if random.random() < 0.7 else float(random.uniform(0.4, 1.0)) * seconds
        while at < ends:
            part, found = self._spoken(random)
            _add(sound, part, int(at * RATE))
            words += [(digit, at + begin, at + end) for digit, begin, end in found]
            at += len(part) / RATE + _gap(random, is_dense=is_dense)
        return sound, _inside(words, seconds)

    def _spoken(self, random: np.random.Generator) -> tuple[Samples, list[Word]]:
        """One speaker's next words, up to 10 % faster or slower."""
        if random.random() < 0.6:
            phrase = self._phrases[int(random.integers(len(self._phrases)))]
            sound, words = phrase.pcm.astype(np.float32) / 32768, list(phrase.words)
        else:
            sound, words = self._strung(random)
        pace = float(random.uniform(0.9, 1.1))
        slowed = _stretched(sound, pace)
        power = float(np.sqrt(np.mean(slowed**2))) + 1e-6
        slowed *= 0.1 / power * 10 ** (float(random.uniform(-3, 3)) / 20)
        return slowed, [(digit, begin * pace, end * pace) for digit, begin, end in words]

    def _strung(self, random: np.random.Generator) -> tuple[Samples, list[Word]]:
        """Single digits of one speaker in a row."""
        speaker = self._speakers[int(random.integers(len(self._speakers)))]
        pause = float(random.uniform(0.02, 0.4))
        parts: list[Samples] = []
        words: list[Word] = []
        at = 0.0
        for digit in random_digits(random, int(random.integers(1, 9))):
            said = speaker[digit].pcm.astype(np.float32) / 32768
            words.append((digit, at, at + len(said) / RATE))
            parts += [said, np.zeros(int(random.uniform(0, pause) * RATE), np.float32)]
            at += (len(said) + len(parts[-1])) / RATE
        return np.concatenate(parts[:-1]), words


def _stretched(sound: Samples, pace: float) -> Samples:
    at = np.arange(0, len(sound) - 1, 1 / pace)
    return np.interp(at, np.arange(len(sound)), sound).astype(np.float32)


def _add(sound: Samples, part: Samples, at: int) -> None:
    """Adds a part whose ends may lie outside."""
    begin, end = max(0, at), min(len(sound), at + len(part))
    if begin < end:
        sound[begin:end] += part[begin - at : end - at]


def _gap(random: np.random.Generator, *, is_dense: bool) -> float:
    if is_dense:
        return float(random.uniform(0, 0.3))
    return float(random.uniform(0.1, 1.0) if random.random() < 0.5 else random.uniform(0.5, 4.0))


def _inside(words: list[Word], seconds: float) -> tuple[Word, ...]:
    clipped = [(digit, max(0.0, begin), min(seconds, end), end - begin) for digit, begin, end in words]
    return tuple((digit, begin, end) for digit, begin, end, whole in clipped if end - begin > 0.55 * whole)


def _degraded(random: np.random.Generator, sound: Samples) -> Samples:
    """Level -32 to -14 dB of full scale; noise on six in ten; duller on some."""
    level = 10 ** (float(random.uniform(-32, -14)) / 20)
    made = sound * (level / 0.1)
    if random.random() < 0.6:
        made = made + _noise(random, len(sound)) * level * 10 ** (-float(random.uniform(14, 45)) / 20)
    if random.random() < 0.15:
        spectrum = np.fft.rfft(made)
        hertz = np.linspace(0, RATE / 2, len(spectrum))
        made = np.fft.irfft(spectrum / (1 + (hertz / float(random.uniform(2500, 6000))) ** 4), len(made))
    return np.clip(made, -1, 1).astype(np.float32)


def _noise(random: np.random.Generator, length: int) -> Samples:
    """White, falling towards high tones, or a hum with its overtones; of power 1."""
    kind = int(random.integers(3))
    if kind == 2:
        base = float(random.choice([50.0, 60.0]))
        at = np.arange(length) / RATE
        tones = [np.sin(2 * np.pi * base * over * at + random.uniform(0, 6)) / over for over in range(1, 7)]
        made = np.sum(tones, axis=0) + 0.05 * random.standard_normal(length)
    else:
        made = random.standard_normal(length)
        if kind == 1:
            spectrum = np.fft.rfft(made)
            hertz = np.linspace(0, RATE / 2, len(spectrum))
            spectrum /= 1 + (hertz / float(random.uniform(100, 2000))) ** float(random.uniform(0.5, 1.5))
            made = np.fft.irfft(spectrum, length)
    return (made / (np.sqrt(np.mean(made**2)) + 1e-9)).astype(np.float32)
