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
        """Returns one result for each window, in any order.

        A list, or a generator to publish early results. The windows are of similar length. Raises
        EngineError, whose text has no spoken words; and OutOfMemoryError for a batch that does not fit: the
        worker halves it and all later ones.
        """

    def prepare(self, batch: Sequence[Window]) -> None:
        """Computes ahead, in another thread, while the batch before is transcribed.

        Optional. `transcribe` also gets windows that were not prepared. Errors are dropped, since
        `transcribe` raises them again.
        """

    def hurry(self) -> None:
        """Skips re-decodes from now on; called between results while ending."""


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
        """Reasons why this engine cannot run `spec` here, with fixes.

        Loads no model and uses no network.
        """

    @abstractmethod
    def load(self, spec: EngineSpec) -> Engine:
        """Loads the model from local files only. Raises EngineError, MisconfiguredError."""

    def check(self, spec: EngineSpec) -> None:
        """Raises MisconfiguredError for `problems`, GpuError without a required GPU."""
        if problems := self.problems(spec):
            raise (GpuError if self.gpu_missing(spec) else MisconfiguredError)("; ".join(problems))

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        """Reasons why no machine can run `spec`, each with the fix."""
        return ()

    def gpu_missing(self, spec: EngineSpec) -> bool:
        """True if `spec` requires a GPU and none is usable here."""
        return False

    def model_name(self, wanted: str) -> str:
        """The model for this WHISPER_MODEL: by default, the name itself."""
        return wanted

    def models(self) -> Mapping[str, bool]:
        """Known model names; True if here. Uses no network."""
        return {}

    def model_files(self, spec: EngineSpec) -> Iterable[Path]:
        """Files that `load` reads, in its order, to be read ahead.

        Optional. Raises MisconfiguredError if the model is not on this machine.
        """
        return ()

    def fetch(self, spec: EngineSpec) -> Path | None:
        """Downloads the model and returns its folder; None without one.

        Raises MisconfiguredError, EngineError.
        """
        return None
