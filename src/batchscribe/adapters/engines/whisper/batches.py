"""Windows in batches: gathered from any files and sessions, heard in one language each, split where
the GPU's memory is too small.

A batch's features are computed while the GPU hears the batch before it; never more than one ahead.
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
from batchscribe.adapters.engines.whisper.guard import Budget, Guard
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.language_vote import Votes
from batchscribe.core.text.quality import Heard
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
    """A loaded Whisper model. `batch` windows are heard at once; fewer, once memory was short."""

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
        self._guard = Guard(decoder, self._budget)
        self.model = model
        self.device = device
        """Where it runs and how it computes, such as `cuda, float16`."""
        self.batch = batch

    @property
    def reads_ahead(self) -> bool:
        """See Engine: a batch is heard when the next one is there; one window at a time is heard at once."""
        return self.batch > 1

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """See Engine. Up to two batches are held: one being heard, one whose features are computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="features") as ahead:
            held: _Batch | None = None
            for found in self._gathered(windows):
                coming = _Batch(found, ahead.submit(self._features, found)) if found else None
                if held:
                    yield from self._recognised(held)
                held = coming
            if held:
                yield from self._recognised(held)

    def _gathered(self, windows: Iterable[Window | None]) -> Iterator[list[Window]]:
        """Windows in batches. An empty one says that no batch follows yet: what is held must be heard.

        One window at a time is heard at once, before the next is taken: nothing is gained by waiting.
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

    def _features(self, windows: Sequence[Window]) -> list[Samples]:
        return [self._decoder.features(window.audio) for window in windows]

    def hurry(self) -> None:
        """See Engine: no second hearings from now on."""
        self._budget.close()

    def _recognised(self, batch: _Batch) -> Iterator[Recognition]:
        """One result for each window of the batch, each when it is judged.

        Raises EngineError, with nothing in it that was said.
        """
        try:
            with self._budget.working():
                heard = self._heard(batch.windows, batch.features.result())
            for window, (language, found) in zip(batch.windows, heard, strict=True):
                yield self._guard.judged(window, language, found)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{NAME} broke while transcribing: {safe(error)}") from error

    def _heard(self, windows: Sequence[Window], features: Sequence[Samples]) -> list[tuple[str, Heard]]:
        """The language and the words of each window. A batch that is too large is heard in halves."""
        try:
            return self._listened(windows, features)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(windows) == 1:
                raise EngineError(
                    f"{NAME} has too little memory for a single window (nvidia-smi shows what fills it): "
                    "take a smaller WHISPER_MODEL, WHISPER_COMPUTE_TYPE=int8, or a larger GPU"
                ) from error
        # Out here the error is gone, and with it what its frames held on the GPU.
        half = len(windows) // 2
        self.batch = min(self.batch, half)
        LOG.warning("engine.batch_halved", windows=self.batch)
        return [
            *self._heard(windows[:half], features[:half]),
            *self._heard(windows[half:], features[half:]),
        ]

    def _listened(self, windows: Sequence[Window], features: Sequence[Samples]) -> list[tuple[str, Heard]]:
        asked = self._voters(windows)
        encoded = self._decoder.encode([features[place] for place in asked]) if asked else None
        languages = self._languages(windows, asked, encoded)
        found: dict[int, Heard] = {}
        # All prompts of a batch must be alike, and the language is in the prompt.
        for language in dict.fromkeys(languages):
            places = [place for place, spoken in enumerate(languages) if spoken == language]
            known = (
                encoded if places == asked else self._decoder.encode([features[place] for place in places])
            )
            seconds = [windows[place].seconds for place in places]
            found.update(zip(places, self._decoder.hear(known, seconds, language), strict=True))
        return [(language, found[place]) for place, language in enumerate(languages)]

    def _voters(self, windows: Sequence[Window]) -> list[int]:
        """Places of the windows whose language must be asked: all without a session, else the first few."""
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

    def _languages(self, windows: Sequence[Window], asked: Sequence[int], encoded: Any) -> list[str]:
        """The language of each window, after its session's vote."""
        alone: dict[int, str] = {}
        for place, chances in zip(asked, self._decoder.languages(encoded) if asked else (), strict=True):
            alone[place] = max(chances, key=lambda language: (chances[language], language), default=ENGLISH)
            window = windows[place]
            # A batch that was too large is asked again in halves, and has voted.
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
    """What CTranslate2 itself says; of every other error the type only, for its text may hold speech."""
    return line(error) if type(error) in {RuntimeError, MemoryError} else type(error).__name__
