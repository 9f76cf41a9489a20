"""Transcribes batches of windows of any files and sessions.

A batch's features are computed while the GPU transcribes the previous one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import structlog

from batchscribe.adapters.engines.problems import engine_errors, out_of_memory
from batchscribe.adapters.engines.whisper.budget import SHARE, Budget
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.flags import LOW_CONFIDENCE, RERUN
from batchscribe.core.text.language_vote import Votes
from batchscribe.core.text.quality import Doubt, Recognized, choose_better, find_doubts
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.engine import Engine

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

LOG = structlog.get_logger()
NAME = "faster-whisper"
ENGLISH = "en"


class FasterWhisper(Engine):
    """A loaded Whisper model."""

    def __init__(
        self,
        decoder: WhisperDecoder,
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
        self._features: WeakKeyDictionary[Window, Samples] = WeakKeyDictionary()
        self.model = model
        self.device = device
        self.batch_size = batch_size

    def prepare(self, batch: Sequence[Window]) -> None:
        """Computes the features, which are kept as long as their windows."""
        for window in batch:
            if window not in self._features:
                self._features[window] = self._decoder.features(window.audio)

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        """Transcribes a batch; doubtful results get a second pass, within the budget."""
        with engine_errors(f"{NAME} failed while transcribing", _is_vendors):
            with self._budget.measure(SHARE):
                self.prepare(batch)
                decoded = self._decode_batch(batch)
            for window, (language, found) in zip(batch, decoded, strict=True):
                yield self._review_result(window, language, found)

    def hurry(self) -> None:
        """Ends second passes."""
        self._budget.close()

    def _decode_batch(self, windows: Sequence[Window]) -> list[tuple[str, Recognized]]:
        """Pairs of language and text, one for each window."""
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
            found.update(zip(places, self._decoder.transcribe(known, seconds, language), strict=True))
        return [(language, found[place]) for place, language in enumerate(languages)]

    def _select_voters(self, windows: Sequence[Window]) -> list[int]:
        """Places of the windows whose language is detected.

        Of a session, the first few; without one, all.
        """
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

    def _review_result(self, window: Window, language: str, decoded: Recognized) -> Recognition:
        """The better result of one or two passes, with its flags."""
        if decoded.silent:
            return Recognition(window.id, (), language)
        found, flags = find_doubts(decoded), list[str]()
        if found and self._budget.left > 0 and (second := self._transcribe_again(window, language, found)):
            decoded = choose_better(decoded, second)
            found, flags = find_doubts(decoded), [RERUN]
        flags += [LOW_CONFIDENCE] if found else []
        spoken = [segment for segment in decoded.segments if segment.text.strip()]
        return Recognition(window.id, within(spoken, window.seconds), language, tuple(flags))

    def _transcribe_again(self, window: Window, language: str, why: frozenset[Doubt]) -> Recognized | None:
        """The second result; None if memory is too small for it."""
        try:
            with self._budget.measure(-1):
                return self._decoder.transcribe_again(window.audio, language, why)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            LOG.warning("window.not_decoded_again", reason="out of memory")
            return None


def _is_vendors(error: BaseException) -> bool:
    """True for CTranslate2's errors; the text of others may contain speech."""
    return type(error) in {RuntimeError, MemoryError}
