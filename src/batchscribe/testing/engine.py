"""An engine that says what it was told to say, for tests of everything around an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.errors import EngineError, MisconfiguredError


def counting(window: Window) -> str:
    """The default script: one word for each second, the seconds in words of their own."""
    return " ".join(f"w{second}" for second in range(max(1, int(window.seconds))))


@dataclass
class ScriptedEngine:
    """Speaks `script(window)`, spread evenly over the window.

    `hold` windows are taken before the first result is given, as a batching engine does it, and
    results of one batch come last first. A script may raise EngineError.
    """

    script: Callable[[Window], str] = counting
    hold: int = 1
    model: str = "scripted"
    device: str = "double"
    heard: list[int] = field(default_factory=list)
    """The numbers of the windows that were transcribed, in order."""

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """See Engine."""
        held: list[Window] = []
        for window in windows:
            held += [window] if window else []
            if held and (window is None or len(held) >= self.hold):
                yield from self._batch(held)
                held = []
        yield from self._batch(held)

    def _batch(self, windows: Sequence[Window]) -> Iterator[Recognition]:
        for window in reversed(windows):
            self.heard.append(window.id)
            yield Recognition(window.id, _spread(self.script(window), window.seconds), "en")


def _spread(text: str, seconds: float) -> tuple[Segment, ...]:
    said = text.split()
    if not said:
        return ()
    step = seconds / len(said)
    words = tuple(
        Word(word=word, start=place * step, end=(place + 1) * step) for place, word in enumerate(said)
    )
    return within([Segment(text=text, start=0.0, end=seconds, words=words)], seconds)


@dataclass
class ScriptedFactory:
    """Loads the engine that it was given. `broken` is what stands in the way, if anything."""

    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    name: str = "scripted"
    broken: tuple[str, ...] = ()
    load_error: str = ""
    loads: int = 0

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """See EngineFactory."""
        return self.broken

    def load(self, spec: EngineSpec) -> ScriptedEngine:
        """See EngineFactory."""
        if self.problems(spec):
            raise MisconfiguredError("; ".join(self.broken))
        if self.load_error:
            raise EngineError(self.load_error)
        self.loads += 1
        return self.engine
