"""A loaded Whisper model, asked for many windows at once: features, language, words, and a second hearing.

CTranslate2's own documented calls (encode, detect_language, generate, align) are made here, with the
parts of faster-whisper around them that know Whisper: features, tokens, word times. Its own batches are
not used. `transcribe` takes one file and maps clips of it back; `forward` carries the end of one
window's speech over to its neighbour in the batch, so that word times depend on who sits beside whom;
both drop what follows a window's last pair of time stamps, expecting to read it again, and never do.
Here no window knows of another, the encoder's output serves the vote on the language, too, and nothing
is kept between calls.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from batchscribe.core.text.quality import Doubt, Heard
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

VENDOR_VERSION = "1.2.1"
BEAM_SIZE = 5
MAX_TOKENS = 448
"""Places in Whisper's decoder. CTranslate2 gives at most half of them to what is said in one window."""
SECONDS_PER_STAMP = 0.02
FRAMES_PER_SECOND = 100
MIN_FRAMES, MAX_FRAMES = 20, 3000
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after or before them: faster-whisper's own."""
WARMER = (0.2, 0.4, 0.6, 0.8)
"""Temperatures of a second hearing: at 0 it would say the same again."""
FROM_COLD = (0.0, *WARMER)
VENDOR = {
    ("WhisperModel", "encode"): {"features"},
    ("WhisperModel", "find_alignment"): {"tokenizer", "text_tokens", "encoder_output", "num_frames"},
    ("WhisperModel", "add_word_timestamps"): {
        "segments",
        "tokenizer",
        "encoder_output",
        "num_frames",
        "prepend_punctuations",
        "append_punctuations",
        "last_speech_timestamp",
    },
    ("get_suppressed_tokens",): {"tokenizer", "suppress_tokens"},
    ("Tokenizer", "__init__"): {"tokenizer", "multilingual", "task", "language"},
    ("pad_or_trim",): {"array"},
}
"""What is called of faster-whisper besides `transcribe`, and its parameters."""


class Decoder(Protocol):
    """What the batches need of a model."""

    multilingual: bool

    def features(self, audio: Samples) -> Samples:
        """What the encoder takes of one window, padded to 30 s. Safe in any thread."""

    def encode(self, features: Sequence[Samples]) -> Any:
        """The encoder's output for a batch, where the model lies."""

    def languages(self, encoded: Any) -> list[dict[str, float]]:
        """The probability of each language, for each window of the batch."""

    def hear(self, encoded: Any, seconds: Sequence[float], language: str) -> list[Heard]:
        """What is said in each window of the batch, all in one language; `seconds` is their length."""

    def again(self, audio: Samples, language: str, why: frozenset[Doubt]) -> Heard:
        """One window, heard a second time and more carefully."""


@cache
def _faster_whisper() -> Any:
    return importlib.import_module("faster_whisper.transcribe")


def check_vendor() -> None:
    """Raises EngineError where faster-whisper is not as it was when this was written."""
    for path, wanted in VENDOR.items():
        found: Any = _faster_whisper()
        for name in path:
            found = getattr(found, name, None)
        if found is None or wanted - set(inspect.signature(found).parameters):
            raise EngineError(
                f"this faster-whisper has another {'.'.join(path)} than {VENDOR_VERSION}: "
                f"pip install 'faster-whisper=={VENDOR_VERSION}'"
            )


class WhisperDecoder:
    """See Decoder. It keeps nothing from one call to the next, besides its tokenizers."""

    def __init__(self, whisper: Any, task: str = "transcribe") -> None:
        self._whisper = whisper
        self._task = task
        self.multilingual = bool(whisper.model.is_multilingual)
        self._tokenizer = cache(self._make_tokenizer)

    def _make_tokenizer(self, language: str) -> Any:
        return _faster_whisper().Tokenizer(
            self._whisper.hf_tokenizer, self.multilingual, task=self._task, language=language
        )

    def features(self, audio: Samples) -> Samples:
        """See Decoder. The last frame is only padding."""
        padded: Samples = _faster_whisper().pad_or_trim(self._whisper.feature_extractor(audio)[..., :-1])
        return padded

    def encode(self, features: Sequence[Samples]) -> Any:
        """See Decoder."""
        numpy: Any = importlib.import_module("numpy")
        return self._whisper.encode(numpy.stack(features))

    def languages(self, encoded: Any) -> list[dict[str, float]]:
        """See Decoder. CTranslate2 writes a language as `<|en|>`."""
        found = self._whisper.model.detect_language(encoded)
        return [{name[2:-2]: float(probability) for name, probability in window} for window in found]

    def hear(
        self,
        encoded: Any,
        seconds: Sequence[float],
        language: str,
        *,
        limit: int = MAX_TOKENS,
        fill: bool = False,
    ) -> list[Heard]:
        """See Decoder. `limit` stands for MAX_TOKENS; all that it allows is said where a window is to
        `fill` it, to see what that costs.
        """
        tokenizer = self._tokenizer(language)
        unwanted = [-1, tokenizer.eot] if fill else [-1]
        results = self._generated(encoded, len(seconds), tokenizer, limit, unwanted)
        written = [_Written.of(result) for result in results]
        lines = [
            list(_lines(each.tokens, tokenizer.timestamp_begin, end))
            for each, end in zip(written, seconds, strict=True)
        ]
        texts = [[token for line in one for token in line.text(tokenizer)] for one in lines]
        aligned = self._whisper.find_alignment(tokenizer, texts, encoded, [_frames(end) for end in seconds])
        room = min(limit // 2, limit - len(tokenizer.sot_sequence))
        return [
            Heard(
                segments=tuple(self._placed(line, words, tokenizer)),
                seconds=end,
                avg_logprob=each.avg_logprob,
                no_speech_prob=each.no_speech_prob,
                heard_until=_heard_until(each.tokens, tokenizer.timestamp_begin, room),
            )
            for each, line, words, end in zip(written, lines, aligned, seconds, strict=True)
        ]

    def _generated(
        self, encoded: Any, count: int, tokenizer: Any, limit: int, unwanted: list[int]
    ) -> Sequence[Any]:
        found: Sequence[Any] = self._whisper.model.generate(
            encoded,
            [tokenizer.sot_sequence] * count,
            beam_size=BEAM_SIZE,
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=_faster_whisper().get_suppressed_tokens(tokenizer, unwanted),
        )
        return found

    def _placed(self, lines: Sequence[_Line], words: list[Any], tokenizer: Any) -> Iterator[Segment]:
        """Segments with their words, whose times are mended as faster-whisper mends them.

        Its method is given this window alone, with words that are aligned already.
        """
        if not lines:
            return
        parts: list[dict[str, Any]] = [
            {"seek": 0, "start": line.start, "end": line.end, "tokens": line.text(tokenizer)}
            for line in lines
        ]
        mend = _faster_whisper().WhisperModel.add_word_timestamps
        mend(_Aligned(words), [parts], tokenizer, None, 0, PREPENDED, APPENDED, last_speech_timestamp=0.0)
        for part in parts:
            text = tokenizer.decode(part["tokens"]).strip()
            if text:
                yield Segment(
                    text=text,
                    start=float(part["start"]),
                    end=float(part["end"]),
                    words=_words(part.get("words") or ()),
                )

    def again(self, audio: Samples, language: str, why: frozenset[Doubt]) -> Heard:
        """See Decoder. One after the other, at rising temperatures until it is plausible.

        Where the model only stopped early it is asked to go on from there, which `transcribe` does.
        """
        found, _ = self._whisper.transcribe(
            audio,
            language=language,
            task=self._task,
            beam_size=BEAM_SIZE,
            temperature=FROM_COLD if why <= {Doubt.UNFINISHED} else WARMER,
            word_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        parts = list(found)
        tokens = sum(len(part.tokens) for part in parts)
        return Heard(
            segments=tuple(_segment(part) for part in parts if part.text.strip()),
            seconds=len(audio) / self._whisper.feature_extractor.sampling_rate,
            avg_logprob=sum(part.avg_logprob * len(part.tokens) for part in parts) / tokens
            if tokens
            else None,
            no_speech_prob=min((part.no_speech_prob for part in parts), default=None),
        )


@dataclass(frozen=True, slots=True)
class _Written:
    """The tokens of one window, and how sure the model is of them."""

    tokens: Sequence[int]
    avg_logprob: float
    no_speech_prob: float

    @classmethod
    def of(cls, result: Any) -> _Written:
        """The score is the mean over the tokens; Whisper counts the end, too, for its threshold."""
        tokens = result.sequences_ids[0]
        mean = result.scores[0] * len(tokens) / (len(tokens) + 1)
        return cls(tokens, float(mean), float(result.no_speech_prob))


@dataclass(frozen=True, slots=True)
class _Line:
    """What stands between two time stamps; seconds from the window's beginning."""

    start: float
    end: float
    tokens: tuple[int, ...]

    def text(self, tokenizer: Any) -> list[int]:
        return [token for token in self.tokens if token < tokenizer.eot]


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Stands in for the model where its words are aligned already."""

    words: list[Any]
    frames_per_second: int = FRAMES_PER_SECOND

    def find_alignment(self, *_asked: Any) -> list[list[Any]]:
        return [self.words]


def _lines(tokens: Sequence[int], stamps: int, seconds: float) -> Iterator[_Line]:
    """Each time stamp ends what stands before it. The last line may have none: then the window ends it."""
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < stamps:
            text.append(token)
            continue
        at = (token - stamps) * SECONDS_PER_STAMP
        if text:
            yield _Line(start, at, tuple(text))
        start, text = at, []
    if text:
        yield _Line(start, max(start, seconds), tuple(text))


def _heard_until(tokens: Sequence[int], stamps: int, room: int) -> float | None:
    """Up to where the window was read, in seconds, where the model stopped early; else None.

    It did where it began a line with a time stamp and said no more, or where it had no more room.
    """
    times = [(token - stamps) * SECONDS_PER_STAMP for token in tokens if token >= stamps]
    begun = len(tokens) >= 2 and tokens[-1] >= stamps and tokens[-2] >= stamps
    if begun or len(tokens) >= room:
        return times[-1] if times else 0.0
    return None


def _frames(seconds: float) -> int:
    return min(max(int(seconds * FRAMES_PER_SECOND), MIN_FRAMES), MAX_FRAMES)


def _words(found: Sequence[Mapping[str, Any]]) -> tuple[Word, ...]:
    return tuple(
        Word(
            word=each["word"].strip(),
            start=float(each["start"]),
            end=float(each["end"]),
            probability=round(float(each["probability"]), 3),
        )
        for each in found
        if each["word"].strip()
    )


def _segment(part: Any) -> Segment:
    words = _words([vars(word) for word in part.words or ()])
    return Segment(text=part.text.strip(), start=float(part.start), end=float(part.end), words=words)
