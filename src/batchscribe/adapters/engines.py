"""Finds speech engines: whatever registers under the entry point group `batchscribe.engines`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from batchscribe.core.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import EngineFactory

GROUP = "batchscribe.engines"
AUTO = "auto"
DEFAULT = "faster-whisper"
"""What `auto` is, always: a weaker engine is never chosen for anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """One engine, and why it cannot run here; `problems` is empty where it can."""

    name: str
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return not self.problems


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def engine_names() -> tuple[str, ...]:
    """The names that `BATCH_ENGINE` may have on this machine, without `auto`."""
    return tuple(sorted(_entries()))


def resolve(name: str) -> str:
    """The engine's own name: `auto` is faster-whisper."""
    return DEFAULT if name == AUTO else name


def engine_factory(name: str) -> EngineFactory:
    """The factory registered under a name. Raises MisconfiguredError where there is none."""
    entry = _entries().get(resolve(name))
    if entry is None:
        known = ", ".join((AUTO, *engine_names()))
        raise MisconfiguredError(f"there is no speech engine {name!r} here: BATCH_ENGINE may be {known}")
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise MisconfiguredError(
            f"the speech engine {name!r} cannot be loaded from {entry.value}: {error}"
        ) from error
    if not isinstance(factory, EngineFactory):
        raise MisconfiguredError(f"{entry.value} is not a speech engine: its package must be mended")
    return factory


def _problems(name: str, spec: EngineSpec) -> tuple[str, ...]:
    try:
        return engine_factory(name).problems(spec)
    except MisconfiguredError as error:
        return (str(error),)


def engine_reports(spec: EngineSpec) -> tuple[EngineReport, ...]:
    """Every engine found, and whether it can run here with the model and device of `spec`.

    The model name in `spec` belongs to `spec.engine`; other engines are asked about their own default.
    """
    chosen = resolve(spec.engine)
    return tuple(
        EngineReport(name=name, problems=_problems(name, spec if name == chosen else EngineSpec(engine=name)))
        for name in engine_names()
    )
