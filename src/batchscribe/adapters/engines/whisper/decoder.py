"""Decodes batches of windows with a Whisper model.

This calls CTranslate2's documented methods (encode, detect_language, generate, align), and faster-whisper
only for features, tokens and word times. faster-whisper's batched pipeline is not used: `transcribe` takes a
single file, and `forward` carries the end of one window's speech over to the next window in the batch, so
word times depend on the batch; both drop the text after a window's last pair of time stamps without decoding
it again. Here windows are independent, the encoder's output also serves the language vote, and no state
remains between calls.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from batchscribe.core.text.quality import MIN_SILENCE, Doubt, Recognized
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.core.text.vocabulary import is_recited
from batchscribe.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

VENDOR_VERSION = "1.2.1"
BEAM_SIZE = 5
MAX_TOKENS = 448
"""Positions in Whisper's decoder. CTranslate2 uses at most half of them for a window's text."""
MAX_PROMPT = MAX_TOKENS // 2 - 1
"""Tokens of the text before a window, as in Whisper's own code."""
SECONDS_PER_STAMP = 0.02
FRAMES_PER_SECOND = 100
MIN_FRAMES, MAX_FRAMES = 20, 3000
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after or before them, as in faster-whisper."""
WARMER = (0.2, 0.4, 0.6, 0.8)
"""Temperatures of a second pass: 0 would repeat the first result."""
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
"""faster-whisper's functions used here besides `transcribe` -> required parameters."""


@cache
def _faster_whisper() -> Any:
    return importlib.import_module("faster_whisper.transcribe")


def check_vendor() -> None:
    """Raises EngineError if faster-whisper's functions in VENDOR have changed."""
    for path, wanted in VENDOR.items():
        found: Any = _faster_whisper()
        for name in path:
            found = getattr(found, name, None)
        if found is None or wanted - set(inspect.signature(found).parameters):
            raise EngineError(
                f"the installed faster-whisper has a different {'.'.join(path)} than {VENDOR_VERSION}: "
                f"pip install 'faster-whisper=={VENDOR_VERSION}'"
            )


class WhisperDecoder:
    """A loaded model. Stateless, except for a cache of tokenizers."""

    def __init__(self, whisper: Any, task: str = "transcribe", vocabulary: Sequence[str] = ()) -> None:
        self._whisper = whisper
        self._task = task
        self.vocabulary = tuple(_fit_prompt(whisper.hf_tokenizer, vocabulary)) if vocabulary else ()
        """The terms that fit into the prompt."""
        self.multilingual = bool(whisper.model.is_multilingual)
        self._tokenizer = cache(self._make_tokenizer)

    def _make_tokenizer(self, language: str) -> Any:
        return _faster_whisper().Tokenizer(
            self._whisper.hf_tokenizer, self.multilingual, task=self._task, language=language
        )

    def features(self, audio: Samples) -> Samples:
        """The encoder's input for one window, padded to 30 s. Thread-safe."""
        # The last frame is only padding.
        padded: Samples = _faster_whisper().pad_or_trim(self._whisper.feature_extractor(audio)[..., :-1])
        return padded

    def encode(self, features: Sequence[Samples]) -> Any:
        """The encoder's output for a batch, on the model's device."""
        numpy: Any = importlib.import_module("numpy")
        return self._whisper.encode(numpy.stack(features))

    def languages(self, encoded: Any) -> list[dict[str, float]]:
        """Language -> probability, for each window. CTranslate2's codes look like `<|en|>`."""
        found = self._whisper.model.detect_language(encoded)
        return [{name[2:-2]: float(probability) for name, probability in window} for window in found]

    def transcribe(
        self,
        encoded: Any,
        seconds: Sequence[float],
        language: str,
        *,
        limit: int = MAX_TOKENS,
        fill: bool = False,
    ) -> list[Recognized]:
        """Transcribes windows in one language; `seconds` are their lengths.

        `limit` replaces MAX_TOKENS; with `fill` each window uses all of it.
        """
        tokenizer = self._tokenizer(language)
        unwanted = [-1, tokenizer.eot] if fill else [-1]
        prompt = self._make_prompt(tokenizer)
        # With fewer positions than its prompt has, CTranslate2 crashes.
        limit = min(MAX_TOKENS, max(limit, len(prompt) + limit // 2))
        results = self._generate_tokens(encoded, [prompt] * len(seconds), tokenizer, limit, unwanted)
        outputs = [result.sequences_ids[0] for result in results]
        lines = [
            list(_split_lines(tokens, tokenizer.timestamp_begin, end))
            for tokens, end in zip(outputs, seconds, strict=True)
        ]
        texts = [[token for line in one for token in line.text(tokenizer)] for one in lines]
        frames = [min(max(int(end * FRAMES_PER_SECOND), MIN_FRAMES), MAX_FRAMES) for end in seconds]
        aligned = self._whisper.find_alignment(tokenizer, texts, encoded, frames)
        room = min(limit // 2, limit - len(prompt))
        return [
            Recognized(
                segments=tuple(self._to_segments(line, words, tokenizer)),
                seconds=end,
                # The score is a mean over the tokens: Whisper's threshold counts the end token, too.
                avg_logprob=float(result.scores[0] * len(tokens) / (len(tokens) + 1)),
                no_speech_prob=float(result.no_speech_prob),
                read_until=_find_early_end(tokens, tokenizer.timestamp_begin, room),
                recited=is_recited(
                    tokenizer.decode(text), self.vocabulary, silent=result.no_speech_prob > MIN_SILENCE
                ),
            )
            for result, tokens, line, text, words, end in zip(
                results, outputs, lines, texts, aligned, seconds, strict=True
            )
        ]

    def _make_prompt(self, tokenizer: Any) -> list[int]:
        """The prompt tokens: vocabulary as preceding text, then the task."""
        prompt: list[int] = list(tokenizer.sot_sequence)
        if self.vocabulary:
            prompt = [tokenizer.sot_prev, *tokenizer.encode(_join_terms(self.vocabulary)), *prompt]
        return prompt

    def _generate_tokens(
        self, encoded: Any, prompts: list[list[int]], tokenizer: Any, limit: int, unwanted: list[int]
    ) -> Sequence[Any]:
        found: Sequence[Any] = self._whisper.model.generate(
            encoded,
            prompts,
            beam_size=BEAM_SIZE,
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=_faster_whisper().get_suppressed_tokens(tokenizer, unwanted),
        )
        return found

    def _to_segments(self, lines: Sequence[_Line], words: list[Any], tokenizer: Any) -> Iterator[Segment]:
        """Segments with their words, whose times faster-whisper corrects.

        Its method gets a single window, with words that are aligned already.
        """
        if not lines:
            return
        parts: list[dict[str, Any]] = [
            {"seek": 0, "start": line.start, "end": line.end, "tokens": line.text(tokenizer)}
            for line in lines
        ]
        add_times = _faster_whisper().WhisperModel.add_word_timestamps
        add_times(
            _Aligned(words), [parts], tokenizer, None, 0, PREPENDED, APPENDED, last_speech_timestamp=0.0
        )
        for part in parts:
            text = tokenizer.decode(part["tokens"]).strip()
            if text:
                yield Segment(
                    text=text,
                    start=float(part["start"]),
                    end=float(part["end"]),
                    words=_to_words(part.get("words") or ()),
                )

    def transcribe_again(self, audio: Samples, language: str, why: frozenset[Doubt]) -> Recognized:
        """Transcribes one window again, at rising temperatures until the result is plausible.

        A recited vocabulary is left out of the prompt.

        If the model only stopped early, it starts at temperature 0: `transcribe` continues after the stop.
        """
        found, _ = self._whisper.transcribe(
            audio,
            language=language,
            task=self._task,
            beam_size=BEAM_SIZE,
            temperature=FROM_COLD if why <= {Doubt.UNFINISHED, Doubt.RECITED} else WARMER,
            hotwords=None if Doubt.RECITED in why else _join_terms(self.vocabulary).strip() or None,
            word_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        parts = list(found)
        tokens = sum(len(part.tokens) for part in parts)
        return Recognized(
            segments=tuple(_to_segment(part) for part in parts if part.text.strip()),
            seconds=len(audio) / self._whisper.feature_extractor.sampling_rate,
            avg_logprob=sum(part.avg_logprob * len(part.tokens) for part in parts) / tokens
            if tokens
            else None,
            no_speech_prob=min((part.no_speech_prob for part in parts), default=None),
        )


def _join_terms(terms: Sequence[str]) -> str:
    return f" {', '.join(terms)}" if terms else ""


def _fit_prompt(tokenizer: Any, terms: Sequence[str]) -> Iterator[str]:
    """Yields the first terms that Whisper's prompt has room for."""
    left = MAX_PROMPT
    for term in terms:
        left -= len(tokenizer.encode(f" {term},", add_special_tokens=False).ids)
        if left < 0:
            return
        yield term


@dataclass(frozen=True, slots=True)
class _Line:
    """Text between two time stamps, in seconds from the window's start."""

    start: float
    end: float
    tokens: tuple[int, ...]

    def text(self, tokenizer: Any) -> list[int]:
        return [token for token in self.tokens if token < tokenizer.eot]


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Stands in for the model, with words that are aligned already."""

    words: list[Any]
    frames_per_second: int = FRAMES_PER_SECOND

    def find_alignment(self, *_asked: Any) -> list[list[Any]]:
        return [self.words]


def _split_lines(tokens: Sequence[int], stamps: int, seconds: float) -> Iterator[_Line]:
    """Splits tokens at time stamps.

    If the last line has no stamp, the window's end ends it.
    """
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


def _find_early_end(tokens: Sequence[int], stamps: int, room: int) -> float | None:
    """Seconds at which the model stopped early; None if it did not.

    It stopped early if its output ends with the start stamp of a line, or if it ran out of tokens.
    """
    times = [(token - stamps) * SECONDS_PER_STAMP for token in tokens if token >= stamps]
    begun = len(tokens) >= 2 and tokens[-1] >= stamps and tokens[-2] >= stamps
    if begun or len(tokens) >= room:
        return times[-1] if times else 0.0
    return None


def _to_words(found: Sequence[Mapping[str, Any]]) -> tuple[Word, ...]:
    return tuple(
        Word(
            word=row["word"].strip(),
            start=float(row["start"]),
            end=float(row["end"]),
            probability=round(float(row["probability"]), 3),
        )
        for row in found
        if row["word"].strip()
    )


def _to_segment(part: Any) -> Segment:
    words = _to_words([vars(word) for word in part.words or ()])
    return Segment(text=part.text.strip(), start=float(part.start), end=float(part.end), words=words)
