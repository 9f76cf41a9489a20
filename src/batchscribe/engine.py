"""Base classes of speech engines; docs/engines.md has a complete example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.errors import GpuError, MisconfiguredError


class Engine(ABC):
    """A loaded speech model.

    The worker makes the batches. It calls all methods from one thread, except `prepare`.
    """

    model: str = ""
    """Its name, for transcripts and reports."""
    device: str = ""
    """Device and number format, such as `cuda, float16`."""
    batch_size: int = 1
    """Most windows of a batch; 1 if several at once are not faster."""

    @abstractmethod
    def transcribe(self, batch: Sequence[Window]) -> Iterable[Recognition]:
        """Returns one result per window, in any order: a list, or a generator to publish early results.

        The windows are of similar length. Raises EngineError, whose text has no spoken words; and
        OutOfMemoryError for a batch that does not fit: the worker halves it and all later ones.
        """

    def prepare(self, batch: Sequence[Window]) -> None:
        """Computes ahead, in another thread, while the batch before is transcribed.

        Optional. `transcribe` also gets windows that were not prepared. Errors are dropped, since
        `transcribe` raises them again.
        """

    def hurry(self) -> None:
        """Skips re-decodes from now on: the worker is ending. Called between two results of a batch."""


class EngineFactory(ABC):
    """Object named by an entry point of the group `batchscribe.engines`.

    Its module, attributes, `unable` and `model_name` must not need the engine's packages: a scheduler lacks
    them.
    """

    name: str
    """The entry point's name, and the value of BATCH_ENGINE."""
    extra: str = "gpu"
    """Extra of batchscribe that `gpu setup` installs: decoder, voice detector, and our engine's packages."""
    packages: tuple[str, ...] = ()
    """Requirements that `gpu setup` installs besides: the package of a third-party engine."""
    needs_gpu: bool = True
    """True if a run on a GPU host must use the GPU, and fail without one."""

    takes_vocabulary: bool = False
    """True if the engine uses `spec.vocabulary`; others are refused with one."""

    @abstractmethod
    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """Reasons why this engine cannot run `spec` here, each with the fix. Empty if it can.

        Loads no model and uses no network.
        """

    @abstractmethod
    def load(self, spec: EngineSpec) -> Engine:
        """Loads the model from local files only. Raises EngineError, MisconfiguredError."""

    def check(self, spec: EngineSpec) -> None:
        """Raises MisconfiguredError if there are `problems`; GpuError if the reason is the GPU."""
        if problems := self.problems(spec):
            raise (GpuError if self.gpu_missing(spec) else MisconfiguredError)("; ".join(problems))

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        """Reasons why no machine can run `spec`, each with the fix."""
        return ()

    def gpu_missing(self, spec: EngineSpec) -> bool:
        """True if `spec` requires a GPU and this machine has no usable one."""
        return False

    def model_name(self, wanted: str) -> str:
        """The model to load for this WHISPER_MODEL, which by default is the name of a Whisper model."""
        return wanted

    def models(self) -> Mapping[str, bool]:
        """Known model names; True if the model is on this machine. Uses no network."""
        return {}

    def model_files(self, spec: EngineSpec) -> Iterable[Path]:
        """Files that `load` reads, in its order; they are read ahead while packages are imported.

        Optional. Raises MisconfiguredError if the model is not on this machine.
        """
        return ()

    def fetch(self, spec: EngineSpec) -> Path | None:
        """Downloads the model to this machine and returns its folder; None if there is none to fetch.

        Raises MisconfiguredError, EngineError.
        """
        return None
