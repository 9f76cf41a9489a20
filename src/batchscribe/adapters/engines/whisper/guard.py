"""Whisper's quality guard: transcribes doubtful windows again, within a time budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from batchscribe.adapters.engines.problems import out_of_memory
from batchscribe.adapters.engines.whisper.decoder import Decoder
from batchscribe.core.text.flags import LOW_CONFIDENCE, RERUN
from batchscribe.core.text.quality import Doubt, Recognized, choose_better, find_doubts
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.timing import limit_times

LOG = structlog.get_logger()

SHARE = 0.2
"""Time for second passes, as a part of the time of first passes..."""
ALLOWANCE = 30.0
"""...plus these seconds, so that short runs have some, too."""
MOST = 60.0
"""Maximum saved seconds: second passes block new windows for no longer than that."""


class Budget:
    """Time budget for second passes: a part of the time of first ones, so runs get little longer."""

    def __init__(
        self, monotonic: Callable[[], float], *, share: float = SHARE, allowance: float = ALLOWANCE
    ) -> None:
        self._monotonic = monotonic
        self._share = share
        self._left = allowance
        self._most = max(allowance, MOST)
        self._closed = False

    @property
    def left(self) -> float:
        """Seconds; one pass may overdraw it, and the next waits until it is positive again."""
        return 0.0 if self._closed else self._left

    def close(self) -> None:
        """Sets the budget to zero permanently."""
        self._closed = True

    @contextmanager
    def working(self) -> Iterator[None]:
        """Measures a first pass."""
        begun = self._monotonic()
        try:
            yield
        finally:
            self._left = min(self._most, self._left + self._share * (self._monotonic() - begun))

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Measures a second pass."""
        begun = self._monotonic()
        try:
            yield
        finally:
            self._left -= self._monotonic() - begun


class Reviewer:
    """Checks first results, and chooses the ones to keep."""

    def __init__(self, decoder: Decoder, budget: Budget) -> None:
        self._decoder = decoder
        self._budget = budget

    def judged(self, window: Window, language: str, decoded: Recognized) -> Recognition:
        """The window's result, the better one if there was a second pass, with its flags."""
        if decoded.silent:
            return Recognition(window.id, (), language)
        found, flags = find_doubts(decoded), list[str]()
        if found and self._budget.left > 0 and (second := self._transcribe_again(window, language, found)):
            decoded = choose_better(decoded, second)
            found, flags = find_doubts(decoded), [RERUN]
        flags += [LOW_CONFIDENCE] if found else []
        spoken = [segment for segment in decoded.segments if segment.text.strip()]
        return Recognition(window.id, limit_times(spoken, window.seconds), language, tuple(flags))

    def _transcribe_again(self, window: Window, language: str, why: frozenset[Doubt]) -> Recognized | None:
        """The second result; None if memory was too small: the first one is kept, and flagged."""
        try:
            with self._budget.spending():
                return self._decoder.again(window.audio, language, why)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            LOG.warning("window.not_heard_again", reason="out of memory")
            return None
