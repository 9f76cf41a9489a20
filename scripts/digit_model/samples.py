"""What the network learns from: features of a scene, the tokens before and after, and where each word is.

Timestamp mode is trained with anchors: no segment has more than two words, so nothing beyond two is ever
counted. Half of the short windows stand somewhere in the 30 s, with time stamps and decoder positions to
match: the middle of a long decode, at a fifth of its cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from faster_whisper.feature_extractor import FeatureExtractor

from . import vocabulary as tokens
from .scenes import Scene, Stage, Word

IGNORED = -100
MOST_WORDS = 2
SPLIT_GAP = 0.45
FIRST_AT_MOST = 1.0
Span = tuple[int, int]
NOWHERE: Span = (0, 0)


@dataclass
class Text:
    """Decoder input and what each position must predict, with the frames where it must look."""

    inputs: list[int]
    labels: list[int]
    spans: list[Span]
    """Encoder frames [begin, end) of what each row predicts; NOWHERE for nowhere."""
    places: list[Span] = field(default_factory=lambda: [NOWHERE])
    """The same of each input itself."""
    position: int = 0
    """Decoder position of the first input."""

    def then(self, token: int, span: Span = NOWHERE, *, learned: bool = True) -> None:
        """The token follows: predicted from what is there, then an input itself."""
        self.places.append(span)
        self.labels.append(token if learned else IGNORED)
        self.spans.append(span if learned else NOWHERE)
        self.inputs.append(token)


@dataclass(frozen=True)
class Plan:
    """One kind of batch: seconds of window, samples, share of windows that stand elsewhere, dense ones."""

    seconds: int
    size: int
    offset: float = 0.5
    dense: float = 0.6
    whole: float = 0.6
    """Share of windows that are full of sound; the features of the others are padded with zeros."""
    prompt: int = 16
    """Longest text before the window, in tokens."""


@dataclass(frozen=True)
class Batch:
    """Arrays of B samples, L decoder positions, T encoder frames."""

    features: npt.NDArray[np.float32]
    """[B, 80, 2T]"""
    offsets: npt.NDArray[np.int64]
    """[B] in encoder frames"""
    inputs: npt.NDArray[np.int64]
    """[B, L]"""
    labels: npt.NDArray[np.int64]
    """[B, L], IGNORED where nothing is learned"""
    spans: npt.NDArray[np.int64]
    """[B, L, 2] in encoder frames of this window, of what is predicted"""
    places: npt.NDArray[np.int64]
    """[B, L, 2], of the inputs"""
    positions: npt.NDArray[np.int64]
    """[B, L]"""
    frames: npt.NDArray[np.int64]
    """[B, T]: 0 nothing, 1 + digit in a word's first half, 11 + digit in its second"""


class Sampler:
    """Batches by number: the same seed and number give the same batch."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage, self._seed = stage, seed
        self._extract = FeatureExtractor()

    def batch(self, number: int, plan: Plan) -> Batch:
        random = np.random.default_rng((self._seed, number))
        samples = [self._sample(random, plan) for _ in range(plan.size)]
        return _collated(samples, plan)

    def _sample(
        self, random: np.random.Generator, plan: Plan
    ) -> tuple[npt.NDArray[np.float32], Scene, Text, int]:
        whole = random.random() < plan.whole
        seconds = float(plan.seconds) if whole else int(random.integers(8, 5 * plan.seconds)) / 5
        scene = self._stage.scene(random, seconds, dense=plan.dense)
        features = self._extract(scene.sound, chunk_length=plan.seconds)[:, :-1]
        if random.random() < plan.offset and scene.words:
            offset = int(random.integers(0, tokens.TIMESTAMPS - plan.seconds * 50))
            return features, scene, middle(random, scene.words, offset), offset
        return features, scene, beginning(random, scene.words, plan.prompt), 0


def beginning(random: np.random.Generator, words: tuple[Word, ...], prompt: int) -> Text:
    """The text of a window that stands at 0: with time stamps or without, some after a text from before."""
    text = Text([tokens.SOT], [], [])
    if random.random() < 0.15:
        text = _prompted(random, prompt)
    stamped = random.random() < 0.4
    if not words:
        _write_nothing(random, text, stamped=stamped)
    elif stamped:
        _write_first(random, text, words[0])
        _write_segments(random, text, words, 0)
    else:
        text.then(tokens.NO_TIMESTAMPS, learned=False)
        for word in words:
            text.then(tokens.DIGITS[word[0]], _span(word))
    text.then(tokens.EOT, _after(words[-1]) if words else NOWHERE)
    text.inputs.pop()
    return text


def middle(random: np.random.Generator, words: tuple[Word, ...], offset: int) -> Text:
    """As if a long text went before: the window's start, or that of a word in it, is the anchor.

    The window stands at `offset` frames of the 30 s.
    """
    first = int(random.integers(len(words))) if random.random() < 0.5 else 0
    anchor = _frame(words[first][1]) if first else 0
    text = Text([tokens.SOT], [], [], position=int(random.integers(0, 150)))
    text.then(tokens.TIME_ZERO + offset + anchor, _around(anchor), learned=False)
    _write_segments(random, text, words[first:], offset)
    text.then(tokens.EOT, _after(words[-1]))
    text.inputs.pop()
    return text


def _write_nothing(random: np.random.Generator, text: Text, *, stamped: bool) -> None:
    start = tokens.TIME_ZERO + int(random.integers(0, 50)) if stamped else tokens.NO_TIMESTAMPS
    text.then(start, learned=False)
    text.labels[-1] = tokens.NO_SPEECH


def _write_first(random: np.random.Generator, text: Text, word: Word) -> None:
    """The first time stamp: never after 1.00, since faster-whisper allows none; sometimes too early."""
    start = _frame(min(word[1], FIRST_AT_MOST))
    early = random.random() < 0.3
    if early:
        start = int(random.integers(0, start + 1)) if random.random() < 0.5 else 0
    text.then(tokens.TIME_ZERO + start, _around(start), learned=not early)


def _write_segments(random: np.random.Generator, text: Text, words: tuple[Word, ...], offset: int) -> None:
    """Words after a first time stamp: a new segment after two words or a pause, one stamp at the end."""
    count = 0
    for at, word in enumerate(words):
        text.then(tokens.DIGITS[word[0]], _span(word))
        count += 1
        if at + 1 < len(words):
            if count < MOST_WORDS and words[at + 1][1] - word[2] <= SPLIT_GAP:
                continue
            count = 0
            start = _frame(words[at + 1][1])
            end = min(_frame(word[2]), start)
            seen_end = _write_time(random, text, end, offset)
            _write_time(random, text, start, offset, least=seen_end)
    _write_time(random, text, _frame(words[-1][2]), offset)


def _write_time(random: np.random.Generator, text: Text, frame: int, offset: int, *, least: int = 0) -> int:
    """A time stamp, which is looked for where it is. Often the next words see it some frames off.

    So will they when it is the network's own, and must not say again what is said, nor leave a word out.
    """
    text.then(tokens.TIME_ZERO + offset + frame, _around(frame))
    away = float(random.normal(0, 3.5)) if random.random() < 0.7 else 0.0
    seen = min(max(least, frame + round(max(-9.0, min(9.0, away)))), tokens.TIMESTAMPS - 1 - offset)
    seen = max(0, seen)
    text.inputs[-1], text.places[-1] = tokens.TIME_ZERO + offset + seen, _around(seen)
    return seen


def _prompted(random: np.random.Generator, longest: int) -> Text:
    """`<|startofprev|>` and a text from before, plain or with time stamps; nothing of it is learned."""
    before: list[int] = []
    stamped, at = random.random() < 0.5, 0
    for number in range(int(random.integers(1, longest))):
        if stamped and number % 6 in (0, 5):
            at = min(1500, at + int(random.integers(0, 60)))
            before.append(tokens.TIME_ZERO + at)
        else:
            before.append(tokens.DIGITS[int(random.integers(10))])
    text = Text([tokens.PREVIOUS], [], [], position=int(random.integers(0, 110)))
    for token in [*before, tokens.SOT]:
        text.then(token, learned=False)
    return text


def _frame(seconds: float) -> int:
    return round(seconds / tokens.FRAME)


def _around(frame: int) -> Span:
    return max(0, frame - 4), frame + 4


def _span(word: Word) -> Span:
    begin = _frame(word[1])
    return begin, max(_frame(word[2]), begin + 2)


def _after(word: Word) -> Span:
    return _frame(word[2]), _frame(word[2]) + 10


def _collated(samples: list[tuple[npt.NDArray[np.float32], Scene, Text, int]], plan: Plan) -> Batch:
    count, frames = len(samples), plan.seconds * 50
    length = max(len(text.inputs) for _, _, text, _ in samples)
    features = np.zeros((count, 80, 2 * frames), np.float32)
    inputs = np.full((count, length), tokens.EOT, np.int64)
    labels = np.full((count, length), IGNORED, np.int64)
    spans, places = np.zeros((2, count, length, 2), np.int64)
    positions = np.zeros((count, length), np.int64)
    classes = np.zeros((count, frames), np.int64)
    for at, (seen, scene, text, _) in enumerate(samples):
        features[at, :, : seen.shape[1]] = seen[:, : 2 * frames]
        used = len(text.inputs)
        inputs[at, :used], labels[at, :used], spans[at, :used] = text.inputs, text.labels, text.spans
        places[at, :used] = text.places[:used]
        positions[at] = text.position + np.arange(length)
        for digit, begin, end in scene.words:
            middle = _frame((begin + end) / 2)
            classes[at, _frame(begin) : middle] = 1 + digit
            classes[at, middle : _frame(end)] = 11 + digit
    offsets = np.array([offset for *_, offset in samples], np.int64)
    return Batch(
        features, offsets, inputs, labels, spans.clip(0, frames), places.clip(0, frames), positions, classes
    )
