"""Resolves `auto` to an engine and a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property

from msgspec import UNSET, structs

from batchscribe.core import keys
from batchscribe.core.decide.offers import FLEET, LOCAL
from batchscribe.core.decide.published_models import (
    AUTO,
    EUROPEAN,
    PARAKEET,
    WHISPER,
    choose_small_whisper,
    find_publisher,
    list_candidates,
)
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.protocols import Store
from batchscribe.reading import read_if_valid
from batchscribe.settings import Settings
from batchscribe.wiring.created.machine_checks import MachineChecks
from batchscribe.wiring.engines import known_factory, list_limits
from batchscribe.wiring.seams import open_templates

BEFORE_RECORDS = (WHISPER, "small.en")
"""Engine and model of set-ups that did not record them: the defaults of that time."""
IDENTIFIER = EngineSpec(engine=WHISPER, model="tiny", device="cpu")
"""The model that identifies the language of sessions, on the scheduler's machine."""


class EngineChoice:
    """The engine of the next runs, by the identified language.

    It reads the record of the host's set-up, once, if `auto` depends on it, and raises what the store raises.
    """

    def __init__(self, settings: Settings, output: Store) -> None:
        self._settings = settings
        self._output = output
        self.choose = cache(self._choose)

    @cached_property
    def _record(self) -> InstanceRecord | None:
        settings = self._settings
        if settings.provider == LOCAL or settings.model != AUTO or not settings.host_record:
            return None
        if settings.provider == FLEET:
            return MachineChecks(settings, open_templates(settings)).find_record(self._output)
        return read_if_valid(self._output, keys.instance(settings.host_record), InstanceRecord)

    @property
    def depends_on_language(self) -> bool:
        """True if sessions of different languages may have different engines."""
        usual = self.choose("")
        return any(self.choose(language) != usual for language in sorted(EUROPEAN))

    def _choose(self, language: str) -> EngineSpec:
        by_language = language and is_by_session(self._settings)
        specs = list_by_language(self._settings, language) if by_language else []
        ready = (spec for spec in specs if self._is_ready(spec))
        return next(ready, None) or engine_spec(self._settings, self._record)

    def _is_ready(self, spec: EngineSpec) -> bool:
        """True if the prepared host, or this machine, can run it now."""
        if self._settings.provider == LOCAL:
            return _is_usable(spec)
        prepared = self._record.engines if self._record else ()
        return (spec.engine, spec.model) in {(each.engine, each.model) for each in prepared}

    def open_identifier(self) -> Callable[[bytes], str] | None:
        """Returns a function from audio to its language.

        None if this machine has no model for it, or if no engine depends on the language. Raises EngineError,
        and what the store raises.
        """
        if not has_identifier() or not self.depends_on_language:
            return None
        # Imports numpy, which commands that only list the backlog do not load.
        from batchscribe.adapters.engines.whisper.language import load_identifier

        return load_identifier(IDENTIFIER)


def has_identifier() -> bool:
    return _is_usable(IDENTIFIER)


def is_by_session(settings: Settings) -> bool:
    """True if the settings leave engine, model and language open."""
    return (settings.engine, settings.model, settings.language) == (AUTO, AUTO, None)


def list_session_engines(settings: Settings) -> tuple[EngineSpec, ...]:
    """Further engines that `gpu setup` prepares if languages can be identified."""
    if settings.provider == LOCAL or not is_by_session(settings) or not has_identifier():
        return ()
    best = [list_by_language(settings, language)[:1] for language in sorted(EUROPEAN)]
    return tuple(dict.fromkeys(structs.replace(spec, language=None) for specs in best for spec in specs))


def list_by_language(settings: Settings, language: str) -> list[EngineSpec]:
    """Parakeet's specs for a language, best first; others identify it themselves."""
    spoken = replace(settings, language=language)
    found = list_candidates(PARAKEET, language, settings.task)
    specs = [_make_spec(spoken, model.engine, model.name) for model in found]
    return [spec for spec in specs if not list_limits(spec)]


def engine_spec(settings: Settings, record: InstanceRecord | None = None) -> EngineSpec:
    """Resolves `auto`.

    Explicit settings win, then what `record` shows as prepared, then the best published model. On this
    machine, the best model is one that is here and can run.
    """
    engine, model = settings.engine, settings.model
    if model != AUTO:
        return _make_spec(settings, _find_engine(engine, model), model)
    if record and (kept := _keep_prepared(settings, record)):
        return kept
    published = list_candidates(engine, settings.language, settings.task)
    specs = (_make_spec(settings, each.engine, each.name) for each in published)
    able = [spec for spec in specs if not list_limits(spec)]
    if settings.provider == LOCAL:
        if found := next(filter(_is_usable, able), None):
            return found
        if engine in {AUTO, WHISPER}:
            return _make_spec(settings, WHISPER, choose_small_whisper(settings.language, settings.task))
    return able[0] if able else _make_spec(settings, WHISPER if engine == AUTO else engine, "")


def spec_on_this_machine(settings: Settings, given: EngineSpec, engine: str) -> EngineSpec:
    """The spec of an engine for this machine.

    Its model is the one of `given`, else of the settings, if that is the engine's; otherwise `auto`.
    """
    named = [(given.engine, given.model), (settings.engine, settings.model)]
    own = (model for owner, model in named if model and engine == _find_engine(owner, model))
    here = replace(
        settings,
        provider=LOCAL,
        engine=engine,
        model=next(own, AUTO),
        compute_type=settings.compute_type if given.compute_type == AUTO else given.compute_type,
    )
    return structs.replace(engine_spec(here), device=given.device)


def _find_engine(engine: str, model: str) -> str:
    return find_publisher(model) if engine == AUTO else engine


def _keep_prepared(settings: Settings, record: InstanceRecord) -> EngineSpec | None:
    """The engine that the host was prepared for, if it is suitable."""
    engine, model = (record.engine, record.model) if record.engine else BEFORE_RECORDS
    if settings.engine == AUTO:
        # Parakeet transcribes any language as one of its own, without a report: it needs a known one.
        safe = engine == WHISPER or (engine == PARAKEET and settings.language is not None)
    else:
        safe = engine == settings.engine
    spec = _make_spec(settings, engine, model)
    return spec if safe and not list_limits(spec) else None


def _is_usable(spec: EngineSpec) -> bool:
    """True if its packages and its model are on this machine."""
    return not known_factory(spec.engine).problems(spec)


def _make_spec(settings: Settings, engine: str, model: str) -> EngineSpec:
    factory = known_factory(engine)
    # A run on a paid GPU uses it or fails: it never falls back to the host's CPU.
    paid_gpu = settings.provider != LOCAL and factory.needs_gpu
    return EngineSpec(
        engine=engine,
        model=factory.model_name(model),
        compute_type=settings.compute_type,
        device="cuda" if paid_gpu else "auto",
        language=settings.language,
        task=settings.task,
        vocabulary=settings.read_vocabulary() or UNSET,
        speakers=settings.labels_speakers or UNSET,
    )
