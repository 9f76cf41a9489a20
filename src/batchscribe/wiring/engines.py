"""Finds the speech engines of the entry point group `batchscribe.engines`."""

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
"""The engine of `auto`, always: a weaker engine is never chosen automatically."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """One engine, and why it cannot run here; `problems` is empty if it can."""

    name: str
    problems: tuple[str, ...]
    models: Mapping[str, bool] = field(default_factory=dict)
    """Model name -> True if it is on this machine; empty if the engine has no choice of models."""

    @property
    def usable(self) -> bool:
        return not self.problems


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def engine_names() -> tuple[str, ...]:
    """Values of BATCH_ENGINE on this machine, without `auto`."""
    return tuple(sorted(_entries()))


def resolve(name: str) -> str:
    """Returns the engine's name: `auto` is faster-whisper."""
    return DEFAULT if name == AUTO else name


def engine_factory(name: str) -> EngineFactory:
    """The factory registered under a name. Raises MisconfiguredError if there is none."""
    entry = _entries().get(resolve(name))
    if entry is None:
        known = ", ".join((AUTO, *engine_names()))
        raise MisconfiguredError(f"no speech engine {name!r} is installed here: BATCH_ENGINE may be {known}")
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise MisconfiguredError(
            f"the speech engine {name!r} cannot be loaded from {entry.value}: {error}"
        ) from error
    if not isinstance(factory, EngineFactory):
        raise MisconfiguredError(f"{entry.value} is not a speech engine: its package needs a fix")
    return factory


def model_name(engine: str, wanted: str) -> str:
    """The model that the engine loads for a WHISPER_MODEL; unchanged if the engine is not installed here."""
    chosen = _optional_attribute(engine, "model_name")
    return str(chosen(wanted)) if chosen else wanted


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """Why no machine can run `spec`, as far as that is known without the engine's packages.

    Never raises, since commands that only observe or stop a GPU call it, too.
    """
    reasons = _optional_attribute(spec.engine, "unable")
    try:
        return tuple(reasons(spec)) if reasons else ()
    except Exception as error:  # noqa: BLE001 - third-party code
        broken = type(error).__name__
        return (f"the speech engine {spec.engine} fails to report its limits ({broken}): fix its package",)


def gpu_missing(spec: EngineSpec) -> bool:
    """True if `spec` requires a GPU and this machine has none that its engine can use."""
    missing = _optional_attribute(spec.engine, "gpu_missing")
    return bool(missing(spec)) if missing else False


def can_fetch(engine: str) -> bool:
    """True if the engine has models to fetch."""
    return _optional_attribute(engine, "fetch") is not None


def fetch(spec: EngineSpec) -> Path:
    """Downloads the engine's model to this machine; returns its folder. Only this uses a model hub.

    Raises MisconfiguredError if the engine has no model to fetch, and the engine's own errors.
    """
    fetch_model = getattr(engine_factory(spec.engine), "fetch", None)
    if fetch_model is None:
        raise MisconfiguredError(f"the engine {resolve(spec.engine)} has no model to fetch")
    return Path(fetch_model(spec))


def _optional_attribute(engine: str, name: str) -> Any:
    """An optional attribute of an engine's factory; None if it is missing or the engine cannot be loaded."""
    try:
        return getattr(engine_factory(engine), name, None)
    except MisconfiguredError:
        return None


def _list_models(engine: str) -> Mapping[str, bool]:
    models = _optional_attribute(engine, "models")
    return dict(models()) if models else {}


def _find_problems(name: str, spec: EngineSpec) -> tuple[str, ...]:
    try:
        return engine_factory(name).problems(spec)
    except MisconfiguredError as error:
        return (str(error),)


def engine_reports(spec: EngineSpec) -> tuple[EngineReport, ...]:
    """Reports for each engine found if it can run here with the model and device of `spec`.

    The model name in `spec` belongs to `spec.engine`; other engines are checked with their defaults.
    """
    chosen = resolve(spec.engine)
    return tuple(
        EngineReport(
            name=name,
            problems=_find_problems(name, spec if name == chosen else EngineSpec(engine=name)),
            models=_list_models(name),
        )
        for name in engine_names()
    )
