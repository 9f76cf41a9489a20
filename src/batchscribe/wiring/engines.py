"""Finds speech engines: whatever registers under the entry point group `batchscribe.engines`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from batchscribe.core.run.manifest import EngineSpec
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
    models: Mapping[str, bool] = field(default_factory=dict)
    """The names it knows, and whether each is on this machine; empty where it has no choice of models."""

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


def model_name(engine: str, wanted: str) -> str:
    """The model that the engine loads for this WHISPER_MODEL; what is not installed here decides later."""
    chosen = _besides(engine, "model_name")
    return str(chosen(wanted)) if chosen else wanted


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """Why no machine could run `spec`, as far as that can be known without the engine's packages.

    Never raises: it is asked before commands that only look, and before those that stop a GPU.
    """
    reasons = _besides(spec.engine, "unable")
    try:
        return tuple(reasons(spec)) if reasons else ()
    except Exception as error:  # noqa: BLE001 - it may be anybody's code
        broken = type(error).__name__
        return (f"the speech engine {spec.engine} cannot say what it can ({broken}): mend its package",)


def gpu_missing(spec: EngineSpec) -> bool:
    """Whether `spec` wants a GPU, and this machine has none that is usable for its engine."""
    missing = _besides(spec.engine, "gpu_missing")
    return bool(missing(spec)) if missing else False


def can_fetch(engine: str) -> bool:
    """Whether the engine has models to fetch."""
    return _besides(engine, "fetch") is not None


def fetch(spec: EngineSpec) -> Path:
    """Brings the engine's model onto this machine; its folder. The only place that reaches for a hub.

    Raises MisconfiguredError where there is nothing to fetch, and what the engine raises.
    """
    bring = getattr(engine_factory(spec.engine), "fetch", None)
    if bring is None:
        raise MisconfiguredError(f"the engine {resolve(spec.engine)} has no model to fetch")
    return Path(bring(spec))


def _besides(engine: str, what: str) -> Any:
    """What a factory may have and need not; None where it has not, or cannot be loaded here."""
    try:
        return getattr(engine_factory(engine), what, None)
    except MisconfiguredError:
        return None


def _models(engine: str) -> Mapping[str, bool]:
    listed = _besides(engine, "models")
    return dict(listed()) if listed else {}


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
        EngineReport(
            name=name,
            problems=_problems(name, spec if name == chosen else EngineSpec(engine=name)),
            models=_models(name),
        )
        for name in engine_names()
    )
