"""Shared by our engines' factories: reasons why an engine cannot run on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from batchscribe.core.near_names import suggest
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError


def failing(name: str, spec: EngineSpec, checks: Iterable[Callable[[EngineSpec], object]]) -> Iterator[str]:
    """Yields the error of each failed check, with its remedy."""
    for check in checks:
        try:
            check(spec)
        except MisconfiguredError as error:
            yield str(error)
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
            yield f"{name} does not run here ({line(error)}): install it again"


def describe_unknown(kind: str, model: str, models: Iterable[str]) -> str:
    """Reports a model that does not exist, with the nearest one and all."""
    names = sorted(models)
    known = f"use a folder, or one of {', '.join(names)}"
    return f"there is no {kind} model {model!r}: {suggest(model, names)}{known}"


def out_of_memory(error: BaseException) -> bool:
    """True for an out-of-memory error of Python, CUDA or cuBLAS, whose texts all vendors pass on."""
    text = str(error).lower()
    known = ("out of memory", "alloc_failed", "failed to allocate memory")
    return isinstance(error, MemoryError) or any(words in text for words in known)


def line(error: BaseException) -> str:
    """The first line of an error's text, else its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
