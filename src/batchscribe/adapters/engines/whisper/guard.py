"""Whisper's guard of quality: what looks wrong is heard again, as long as that does not cost too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from batchscribe.adapters.engines.problems import out_of_memory
from batchscribe.adapters.engines.whisper.decoder import Decoder
from batchscribe.core.text.flags import LOW_CONFIDENCE, RERUN
from batchscribe.core.text.quality import Doubt, Heard, better, doubts
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.timing import within

LOG = structlog.get_logger()

SHARE = 0.2
"""Second hearings may take so much of the time that first hearings took..."""
ALLOWANCE = 30.0
"""...and so many seconds besides, so that a short run has some, too."""
MOST = 60.0
"""No more are ever saved up: for so long at a time nothing new would be heard."""


class Budget:
    """The time for second hearings: a share of the time that first ones took, so no run gets much longer."""

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
        """Seconds; one hearing may overdraw it, and the next waits until it is earned."""
        return 0.0 if self._closed else self._left

    def close(self) -> None:
        """There is none from now on."""
        self._closed = True

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block is a first hearing."""
        begun = self._monotonic()
        try:
            yield
        finally:
            self._left = min(self._most, self._left + self._share * (self._monotonic() - begun))

    @contextmanager
    def spending(self) -> Iterator[None]:
        """The block is a second hearing."""
        begun = self._monotonic()
        try:
            yield
        finally:
            self._left -= self._monotonic() - begun


class Guard:
    """Judges what was heard first, and decides what is kept."""

    def __init__(self, decoder: Decoder, budget: Budget) -> None:
        self._decoder = decoder
        self._budget = budget

    def judged(self, window: Window, language: str, heard: Heard) -> Recognition:
        """The window's result: as heard first, or the better of two hearings, with its flags."""
        if heard.silent:
            return Recognition(window.id, (), language)
        found, flags = doubts(heard), list[str]()
        if found and self._budget.left > 0 and (second := self._second(window, language, found)):
            heard = better(heard, second)
            found, flags = doubts(heard), [RERUN]
        flags += [LOW_CONFIDENCE] if found else []
        spoken = [segment for segment in heard.segments if segment.text.strip()]
        return Recognition(window.id, within(spoken, window.seconds), language, tuple(flags))

    def _second(self, window: Window, language: str, why: frozenset[Doubt]) -> Heard | None:
        """None where there was too little memory for it: what was heard first is kept, and flagged."""
        try:
            with self._budget.spending():
                return self._decoder.again(window.audio, language, why)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            LOG.warning("window.not_heard_again", reason="out of memory")
            return None
