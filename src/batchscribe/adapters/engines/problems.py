"""Shared checks of the engines, and conversion of vendor errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import structlog

from batchscribe.adapters.machine import nvidia
from batchscribe.core.decide.published_models import PARAKEET
from batchscribe.core.near_names import suggest
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import (
    BatchscribeError,
    EngineError,
    GpuError,
    InterruptedRunError,
    MisconfiguredError,
    OutOfMemoryError,
    first_line,
)

LOG = structlog.get_logger()
TOO_LITTLE_MEMORY = (
    "too little memory (nvidia-smi shows what uses it): use a smaller WHISPER_MODEL, "
    "WHISPER_COMPUTE_TYPE=int8, or a larger GPU"
)


def list_failures(
    name: str, spec: EngineSpec, checks: Iterable[Callable[[EngineSpec], object]]
) -> Iterator[str]:
    """Yields the error of each failed check, with its remedy."""
    for check in checks:
        try:
            check(spec)
        except InterruptedRunError:
            raise
        except MisconfiguredError as error:
            yield str(error)
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
            yield f"{name} does not run here ({first_line(error)}): install it again"


def describe_unknown(kind: str, model: str, models: Iterable[str]) -> str:
    """Describes an unknown model, with the nearest and all names."""
    names = sorted(models)
    other = kind.lower() != PARAKEET and PARAKEET in model.lower()
    hint = f"did you mean BATCH_ENGINE={PARAKEET}? " if other else suggest(model, names)
    return f"there is no {kind} model {model!r}: {hint}use a folder, or one of {', '.join(names)}"


def not_installed(*modules: str) -> str:
    """Names the modules that are not installed; empty if all are."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def warn_if_missing(name: str, modules: Iterable[str], install: str) -> None:
    """Logs that an engine's packages are missing, before its model is fetched."""
    if missing := not_installed(*modules):
        note = f"{name} cannot run here until its packages are installed: {missing}: {install}"
        LOG.warning("engine.not_installed", engine=name, note=note)


def choose_device(spec: EngineSpec, why_no_gpu: Callable[[], str]) -> str:
    """Returns `cuda` or `cpu`; `why_no_gpu` returns an empty text if usable.

    Raises MisconfiguredError, or GpuError if a required or present GPU is unusable.
    """
    if spec.device == "cpu":
        return "cpu"
    if spec.device not in {"auto", "cuda"}:
        raise MisconfiguredError(f"there is no device {spec.device!r}: use auto, cuda or cpu")
    if not (reason := why_no_gpu()):
        return "cuda"
    if spec.device == "cuda" or nvidia.is_present():
        raise GpuError(f"{reason} (to use the CPU, set the device to cpu)")
    return "cpu"


@contextmanager
def engine_errors(
    doing: str, shows: Callable[[BaseException], bool] = lambda _error: False
) -> Iterator[None]:
    """Converts the vendor's errors to EngineError or OutOfMemoryError.

    `shows`: True if an error's text has no spoken words; others are reported by their type.
    """
    try:
        yield
    except BatchscribeError:
        raise
    except Exception as error:
        text = f"{doing}: {first_line(error) if shows(error) else type(error).__name__}"
        if out_of_memory(error):
            raise OutOfMemoryError(f"{text}: {TOO_LITTLE_MEMORY}") from error
        raise EngineError(text) from error


def out_of_memory(error: BaseException) -> bool:
    """True for an out-of-memory error of Python, CUDA or cuBLAS."""
    text = str(error).lower()
    known = ("out of memory", "alloc_failed", "failed to allocate memory")
    return isinstance(error, MemoryError) or any(words in text for words in known)
