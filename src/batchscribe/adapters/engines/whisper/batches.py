"""Transcribes batches of windows of any files and sessions.

A batch's features are computed while the GPU transcribes the previous one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from batchscribe.adapters.engines.problems import engine_errors
from batchscribe.adapters.engines.whisper.decoder import Decoder
from batchscribe.adapters.engines.whisper.guard import Budget, Reviewer
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.language_vote import Votes
from batchscribe.core.text.quality import Recognized
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.engine import Engine

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

NAME = "faster-whisper"
ENGLISH = "en"


class FasterWhisper(Engine):
    """A loaded Whisper model."""

    def __init__(
        self,
        decoder: Decoder,
        spec: EngineSpec,
        *,
        model: str,
        device: str,
        monotonic: Callable[[], float],
        batch_size: int = 1,
    ) -> None:
        self._decoder = decoder
        self._language = spec.language
        self._votes = Votes()
        self._voted: set[int] = set()
        self._budget = Budget(monotonic)
        self._guard = Reviewer(decoder, self._budget)
        self._features: WeakKeyDictionary[Window, Samples] = WeakKeyDictionary()
        self.model = model
        self.device = device
        self.batch_size = batch_size

    def prepare(self, batch: Sequence[Window]) -> None:
        """See Engine. Computes the features, which are kept as long as their windows."""
        for window in batch:
            if window not in self._features:
                self._features[window] = self._decoder.features(window.audio)

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        """See Engine. Each result has passed the quality guard."""
        with engine_errors(f"{NAME} failed while transcribing", _is_vendors):
            with self._budget.working():
                self.prepare(batch)
                decoded = self._decode(batch)
            for window, (language, found) in zip(batch, decoded, strict=True):
                yield self._guard.judged(window, language, found)

    def hurry(self) -> None:
        """See Engine: no second passes from now on."""
        self._budget.close()

    def _decode(self, windows: Sequence[Window]) -> list[tuple[str, Recognized]]:
        """(language, text) of each window."""
        features = [self._features[window] for window in windows]
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
            if not window.session or seen[window.session] < self._votes.count_open_votes(window.session):
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
            or (self._votes.find_language(window.session) if window.session else alone[place])
            or ENGLISH
            for place, window in enumerate(windows)
        ]


def _is_vendors(error: BaseException) -> bool:
    """True for CTranslate2's errors; the text of others may contain speech."""
    return type(error) in {RuntimeError, MemoryError}
