"""What the factories of our engines share: why an engine cannot run on this machine, in lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError


def failing(name: str, spec: EngineSpec, checks: Iterable[Callable[[EngineSpec], object]]) -> Iterator[str]:
    """What each check raises, as a problem with its mend; nothing for those that pass."""
    for check in checks:
        try:
            check(spec)
        except MisconfiguredError as error:
            yield str(error)
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is a problem
            yield f"{name} does not run here ({line(error)}): install it again"


def out_of_memory(error: BaseException) -> bool:
    """CUDA's and cuBLAS's own words, which every vendor passes on."""
    said = str(error).lower()
    known = ("out of memory", "alloc_failed", "failed to allocate memory")
    return isinstance(error, MemoryError) or any(words in said for words in known)


def line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
