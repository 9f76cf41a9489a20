"""An engine that returns scripted text, for tests of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.engine import Engine, EngineFactory


def counting(window: Window) -> str:
    """Default script: one numbered word for each second."""
    return " ".join(f"w{second}" for second in range(max(1, int(window.seconds))))


@dataclass
class ScriptedEngine(Engine):
    """Returns `script(window)`, spread evenly over the window.

    A batch's results come in reverse order. A script may raise EngineError.
    """

    script: Callable[[Window], str] = counting
    batch_size: int = 1
    model: str = "scripted"
    device: str = "double"
    transcribed: list[int] = field(default_factory=list)
    """Numbers of the transcribed windows, in order."""

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        """See Engine."""
        for window in reversed(batch):
            self.transcribed.append(window.id)
            yield Recognition(window.id, _spread_words(self.script(window), window.seconds), "en")


def _spread_words(text: str, seconds: float) -> tuple[Segment, ...]:
    spoken = text.split()
    if not spoken:
        return ()
    step = seconds / len(spoken)
    words = tuple(
        Word(word=word, start=index * step, end=(index + 1) * step) for index, word in enumerate(spoken)
    )
    return within([Segment(text=text, start=0.0, end=seconds, words=words)], seconds)


@dataclass
class ScriptedFactory(EngineFactory):
    """Loads the given engine. `broken` holds the reported problems, if any."""

    engine: ScriptedEngine = field(default_factory=ScriptedEngine)
    name: str = "scripted"
    broken: tuple[str, ...] = ()

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002 - the base class's
        """See EngineFactory."""
        return self.broken

    def load(self, spec: EngineSpec) -> ScriptedEngine:
        """See EngineFactory."""
        self.check(spec)
        return self.engine
