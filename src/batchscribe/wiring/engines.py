"""Finds the speech engines of the entry point group `batchscribe.engines`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from batchscribe.core.decide.published_models import AUTO, SPEAKER_MODEL
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import MisconfiguredError

GROUP = "batchscribe.engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """One engine, and the reasons why it cannot run here."""

    name: str
    problems: tuple[str, ...]
    models: Mapping[str, bool] = field(default_factory=dict)
    """Model name -> True if it is on this machine; empty if the engine has no choice of models."""

    @property
    def usable(self) -> bool:
        return not self.problems


@cache
def _list_entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def engine_names() -> tuple[str, ...]:
    """Values of BATCH_ENGINE on this machine, without `auto`."""
    return tuple(sorted(_list_entries()))


def engine_factory(name: str) -> EngineFactory:
    """The factory registered under a name. Raises MisconfiguredError if there is none."""
    entry = _list_entries().get(name)
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
        raise MisconfiguredError(f"{entry.value} is not an EngineFactory: its package needs a fix")
    return factory


def known_factory(name: str) -> EngineFactory:
    """The factory registered under a name, else a stand-in."""
    try:
        return engine_factory(name)
    except MisconfiguredError as error:
        return _Absent(name, str(error))


@dataclass
class _Absent(EngineFactory):
    """Stands in for an engine that cannot be loaded on this machine."""

    name: str
    reason: str
    takes_vocabulary: bool = True
    """Not known here: the host refuses what it cannot do."""

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002 - the base class's
        return (self.reason,)

    def load(self, spec: EngineSpec) -> Engine:  # noqa: ARG002 - the base class's
        raise MisconfiguredError(self.reason)


def list_limits(spec: EngineSpec) -> tuple[str, ...]:
    """Known reasons why no machine can run `spec`.

    It needs none of the engine's packages, and never raises, since commands that only observe or stop a GPU
    call it, too.
    """
    try:
        factory = known_factory(spec.engine)
        deaf = spec.vocabulary and not factory.takes_vocabulary
        limit = f"{spec.engine} cannot use a vocabulary: unset BATCH_VOCABULARY, or use faster-whisper"
        return (*factory.unable(spec), *([limit] if deaf else ()))
    except Exception as error:  # noqa: BLE001 - third-party code
        broken = type(error).__name__
        return (f"the speech engine {spec.engine} fails to report its limits ({broken}): fix its package",)


def find_problems(spec: EngineSpec) -> tuple[str, ...]:
    """Reasons why this machine cannot run `spec`. Raises MisconfiguredError."""
    from batchscribe.adapters.engines.speaker_model import find_speaker_problems

    voices = find_speaker_problems() if spec.speakers else ()
    return (*engine_factory(spec.engine).problems(spec), *voices)


def fetch_model(spec: EngineSpec) -> Path:
    """Downloads the engine's model or that of voices; returns its folder.

    Only this uses a model hub. Raises MisconfiguredError if the engine has no model to fetch, and the
    engine's own errors.
    """
    if spec.model == SPEAKER_MODEL:
        from batchscribe.adapters.engines.speaker_model import fetch_speaker_model

        return fetch_speaker_model().parent
    folder = engine_factory(spec.engine).fetch(spec)
    if folder is None:
        raise MisconfiguredError(f"the engine {spec.engine} has no model to fetch")
    return folder


def engine_reports(make_spec: Callable[[str], EngineSpec], engine: str = AUTO) -> tuple[EngineReport, ...]:
    """Reports if an engine, or each one for `auto`, can run here."""
    factories = {name: known_factory(name) for name in (engine_names() if engine == AUTO else (engine,))}
    return tuple(
        EngineReport(name=name, problems=factory.problems(make_spec(name)), models=factory.models())
        for name, factory in factories.items()
    )
