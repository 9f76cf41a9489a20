"""Transcribes windows of any files and sessions in batches, which are halved if GPU memory is too small.

A batch's features are computed while the GPU transcribes the previous one; at most one batch ahead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from batchscribe.adapters.engines.problems import line, out_of_memory
from batchscribe.adapters.engines.whisper.decoder import Decoder
from batchscribe.adapters.engines.whisper.guard import Budget, Reviewer
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.language_vote import Votes
from batchscribe.core.text.quality import Recognized
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.errors import EngineError

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

LOG = structlog.get_logger()

NAME = "faster-whisper"
ENGLISH = "en"


@dataclass(frozen=True, slots=True)
class _Batch:
    windows: list[Window]
    features: Future[list[Samples]]


class FasterWhisper:
    """A loaded Whisper model. It transcribes `batch` windows at once; fewer after an out-of-memory error."""

    def __init__(
        self,
        decoder: Decoder,
        spec: EngineSpec,
        *,
        model: str,
        device: str,
        monotonic: Callable[[], float],
        batch: int = 1,
    ) -> None:
        self._decoder = decoder
        self._language = spec.language
        self._votes = Votes()
        self._voted: set[int] = set()
        self._budget = Budget(monotonic)
        self._guard = Reviewer(decoder, self._budget)
        self.model = model
        self.device = device
        """Device and number format, such as `cuda, float16`."""
        self.batch = batch

    @property
    def reads_ahead(self) -> bool:
        """See Engine: batches are transcribed when the next one is ready, single windows at once."""
        return self.batch > 1

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """See Engine. Up to two batches are held: one in transcription, one whose features are computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="features") as ahead:
            held: _Batch | None = None
            for found in self._group_windows(windows):
                coming = _Batch(found, ahead.submit(self._compute_features, found)) if found else None
                if held:
                    yield from self._recognise(held)
                held = coming
            if held:
                yield from self._recognise(held)

    def _group_windows(self, windows: Iterable[Window | None]) -> Iterator[list[Window]]:
        """Groups windows into batches. An empty one means that none follows yet: flush the held batch.

        With a batch size of 1, each window is flushed before the next is read.
        """
        held: list[Window] = []
        for window in windows:
            held += [window] if window else []
            full = len(held) >= self.batch
            if held and (window is None or full):
                yield held
                held = []
            if window is None or self.batch == 1:
                yield []
        if held:
            yield held

    def _compute_features(self, windows: Sequence[Window]) -> list[Samples]:
        return [self._decoder.features(window.audio) for window in windows]

    def hurry(self) -> None:
        """See Engine: no second passes from now on."""
        self._budget.close()

    def _recognise(self, batch: _Batch) -> Iterator[Recognition]:
        """Yields one result per window of the batch, after the quality guard.

        Raises EngineError, without any transcribed text.
        """
        try:
            with self._budget.working():
                decoded = self._decode_batch(batch.windows, batch.features.result())
            for window, (language, found) in zip(batch.windows, decoded, strict=True):
                yield self._guard.judged(window, language, found)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{NAME} failed while transcribing: {safe(error)}") from error

    def _decode_batch(
        self, windows: Sequence[Window], features: Sequence[Samples]
    ) -> list[tuple[str, Recognized]]:
        """(language, text) of each window. If memory is too small, decodes the batch in halves."""
        try:
            return self._decode_at_once(windows, features)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(windows) == 1:
                raise EngineError(
                    f"{NAME} has too little memory for a single window (nvidia-smi shows what uses it): "
                    "use a smaller WHISPER_MODEL, WHISPER_COMPUTE_TYPE=int8, or a larger GPU"
                ) from error
        # Outside the handler the error is freed, and with it the GPU memory that its frames held.
        half = len(windows) // 2
        self.batch = min(self.batch, half)
        LOG.warning("engine.batch_halved", windows=self.batch)
        return [
            *self._decode_batch(windows[:half], features[:half]),
            *self._decode_batch(windows[half:], features[half:]),
        ]

    def _decode_at_once(
        self, windows: Sequence[Window], features: Sequence[Samples]
    ) -> list[tuple[str, Recognized]]:
        voters = self._select_voters(windows)
        encoded = self._decoder.encode([features[place] for place in voters]) if voters else None
        languages = self._choose_languages(windows, voters, encoded)
        found: dict[int, Recognized] = {}
        # All prompts of a batch must be equal, and the prompt contains the language.
        for language in dict.fromkeys(languages):
            places = [place for place, spoken in enumerate(languages) if spoken == language]
            known = (
                encoded if places == voters else self._decoder.encode([features[place] for place in places])
            )
            seconds = [windows[place].seconds for place in places]
            found.update(zip(places, self._decoder.hear(known, seconds, language), strict=True))
        return [(language, found[place]) for place, language in enumerate(languages)]

    def _select_voters(self, windows: Sequence[Window]) -> list[int]:
        """Places of the windows whose language is detected: the first few of a session, all without one."""
        if not self._decoder.multilingual:
            return []
        seen: Counter[str] = Counter()
        places: list[int] = []
        for place, window in enumerate(windows):
            if window.language or self._language:
                continue
            if not window.session or seen[window.session] < self._votes.wanted(window.session):
                places.append(place)
                seen[window.session] += 1
        return places

    def _choose_languages(self, windows: Sequence[Window], voters: Sequence[int], encoded: Any) -> list[str]:
        """The language of each window, after its session's vote."""
        alone: dict[int, str] = {}
        for place, chances in zip(voters, self._decoder.languages(encoded) if voters else (), strict=True):
            alone[place] = max(chances, key=lambda language: (chances[language], language), default=ENGLISH)
            window = windows[place]
            # The windows of a halved batch have already voted.
            if window.session and window.id not in self._voted:
                self._voted.add(window.id)
                self._votes.cast(window.session, chances)
        if not self._decoder.multilingual:
            return [ENGLISH] * len(windows)
        return [
            window.language
            or self._language
            or (self._votes.language(window.session) if window.session else alone[place])
            or ENGLISH
            for place, window in enumerate(windows)
        ]


def safe(error: BaseException) -> str:
    """The text of CTranslate2's errors; only the type of others, whose text may contain speech."""
    return line(error) if type(error) in {RuntimeError, MemoryError} else type(error).__name__
