"""Checks before a GPU is started: engine, key file, stop role, and set-up of the GPU host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.machine.files import check_key_file, check_state_folder
from batchscribe.core import keys
from batchscribe.core.decide.published_models import (
    AUTO,
    PARAKEET,
    WHISPER,
    choose_small_whisper,
    find_publisher,
    list_candidates,
)
from batchscribe.core.near_names import suggest
from batchscribe.core.run.host import (
    CREDENTIALS,
    CREDENTIALS_FIX,
    ClaimLaunch,
    Finding,
    InstanceRecord,
    failed,
    passed,
    warned,
)
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, UnreadableError
from batchscribe.protocols import Store
from batchscribe.reading import read_record
from batchscribe.settings import Settings
from batchscribe.wiring.engines import (
    engine_factory,
    engine_names,
    known_factory,
    list_limits,
)
from batchscribe.wiring.seams import LOCAL

BOOT = "boot"
SET_UP = "run `batchscribe gpu setup`"
BEFORE_RECORDS = (WHISPER, "small.en")
"""Engine and model of set-ups that did not record them: the defaults of that time."""


def choose_engine(settings: Settings, output: Store) -> EngineSpec:
    """Resolves `auto` for the next run.

    Reads the record of the host's set-up if that decides. Raises what the store raises.
    """
    if settings.provider == LOCAL or settings.model != AUTO or not settings.instance_id:
        return engine_spec(settings)
    record = read_instance_record(output, settings.instance_id)
    return engine_spec(settings, None if isinstance(record, Finding) else record)


def engine_spec(settings: Settings, record: InstanceRecord | None = None) -> EngineSpec:
    """Resolves `auto`: explicit settings win, then what `record` shows as prepared, then the best model.

    On this machine, the best model is one that is here and can run.
    """
    engine, model = settings.engine, settings.model
    if model != AUTO:
        return _make_spec(settings, find_publisher(model) if engine == AUTO else engine, model)
    if record and (kept := _keep_prepared(settings, record)):
        return kept
    published = list_candidates(engine, settings.language, settings.task)
    specs = (_make_spec(settings, each.engine, each.name) for each in published)
    able = [spec for spec in specs if not list_limits(spec)]
    if settings.provider == LOCAL:
        here = (spec for spec in able if not known_factory(spec.engine).problems(spec))
        if found := next(here, None):
            return found
        if engine in {AUTO, WHISPER}:
            return _make_spec(settings, WHISPER, choose_small_whisper(settings.language, settings.task))
    return able[0] if able else _make_spec(settings, WHISPER if engine == AUTO else engine, "")


def spec_on_this_machine(settings: Settings, given: EngineSpec, engine: str) -> EngineSpec:
    """The spec of an engine for this machine: the model of `given` if that is the engine's, else `auto`."""
    publisher = find_publisher(given.model) if given.engine == AUTO else given.engine
    model = given.model if given.model and engine == publisher else AUTO
    here = replace(settings, provider=LOCAL, engine=engine, model=model, compute_type=given.compute_type)
    return structs.replace(engine_spec(here), device=given.device)


def _keep_prepared(settings: Settings, record: InstanceRecord) -> EngineSpec | None:
    """The engine that the host was set up for, if `auto` may choose it and it can do the settings' work."""
    engine, model = (record.engine, record.model) if record.engine else BEFORE_RECORDS
    if settings.engine == AUTO:
        # Parakeet transcribes any language as one of its own, without a report: it needs a known one.
        safe = engine == WHISPER or (engine == PARAKEET and settings.language is not None)
    else:
        safe = engine == settings.engine
    spec = _make_spec(settings, engine, model)
    return spec if safe and not list_limits(spec) else None


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
    )


def unsupported(spec: EngineSpec) -> str:
    """Why no machine can run this engine configuration; empty if one can."""
    return "; ".join(list_limits(spec))


def preflight(settings: Settings, output: Store) -> None:
    """Raises MisconfiguredError, with a remedy, if a started GPU could not do its work."""
    _refuse_failures(_check_start(settings, output))


def refuse_manual_start(settings: Settings) -> None:
    """Raises MisconfiguredError if the GPU host could not be set up, checked or reached."""
    if settings.provider != LOCAL:
        checks = (check_engine(engine_spec(settings)), check_key_file(settings.ssh_key_path))
        _refuse_failures((*checks, check_state_folder(settings.state_dir)))


def check_engine(spec: EngineSpec) -> Finding:
    """Checks that the engine exists and that a machine can run this configuration of it."""
    names = (AUTO, *engine_names())
    if spec.engine not in names:
        detail = f"no speech engine {spec.engine!r} is installed here"
        fix = f"{suggest(spec.engine, names)}BATCH_ENGINE may be {', '.join(names)}"
        return failed("engine", detail, fix)
    if why := unsupported(spec):
        return failed("engine", why)
    return passed("engine", f"{spec.engine}, {spec.model or 'its own model'}")


def check_local_engine(spec: EngineSpec) -> Finding:
    """Checks that this machine has the engine's packages and its model."""
    try:
        problems = engine_factory(spec.engine).problems(spec)
    except MisconfiguredError as error:
        return failed("model", str(error))
    if problems:
        return failed("model", f"{spec.engine} cannot run here: {'; '.join(problems)}")
    return passed("model", f"{spec.model or 'its own model'} is on this machine")


def check_guard_role(settings: Settings) -> Finding:
    """Checks that a stop order can be armed, if there is to be one."""
    if settings.cloud_guard == "off":
        detail = "off: nothing outside this machine would stop the GPU"
        return warned("guard", detail, "BATCH_CLOUD_GUARD=eventbridge, see docs/aws.md")
    if settings.guard_role_arn:
        return passed("guard", settings.guard_role_arn)
    return failed(
        "guard",
        "nothing outside this machine could stop the GPU: BATCH_GUARD_ROLE_ARN is not set",
        "create the stack that `batchscribe iam-policy --template` prints and set its role there, or disable "
        "the guard with BATCH_CLOUD_GUARD=off",
    )


def read_instance_record(output: Store, instance: str) -> InstanceRecord | Finding:
    """Reads the record of `gpu setup`; a finding if there is none. Raises what the store raises."""
    try:
        return read_record(output, keys.instance(instance), InstanceRecord)
    except ObjectNotFoundError:
        return failed("set-up", f"{instance} is not set up", SET_UP)
    except UnreadableError as error:
        return failed("set-up", f"the record of {instance} is {error}", f"{SET_UP}, which rewrites it")


def check_record(settings: Settings, record: InstanceRecord) -> Iterator[Finding]:
    """Checks the host as its last set-up recorded it: version, launch, credentials and model."""
    detail = f"{record.instance} has batchscribe {record.release}"
    if record.release != __version__:
        yield failed("set-up", f"{detail}, this is {__version__}", SET_UP)
    else:
        yield passed("set-up", f"{detail}, since {record.at:%Y-%m-%d %H:%M} UTC")
    boots = record.launch(ClaimLaunch.BOOT) is ClaimLaunch.BOOT
    if settings.launch == BOOT and not boots:
        missing = (
            "does not show its tags in its metadata" if record.boots else "has no units that start at boot"
        )
        detail = f"BATCH_LAUNCH is boot, and {record.instance} {missing}"
        yield failed("launch", detail, f"{SET_UP}, or use BATCH_LAUNCH=auto")
    else:
        yield passed("launch", "over ssh" if needs_ssh(settings, record) else "at boot, without ssh")
    if record.credentials:
        yield passed(CREDENTIALS, "found on the host by its last set-up")
    else:
        yield failed(CREDENTIALS, f"no AWS credentials on {record.instance}", CREDENTIALS_FIX)
    yield check_model(record, engine_spec(settings, record))


def check_model(record: InstanceRecord, spec: EngineSpec) -> Finding:
    """Compares engine and model with those that the host's last set-up prepared: a run fetches none."""
    prepared, wanted = f"{record.engine} {record.model}".strip(), f"{spec.engine} {spec.model}".strip()
    if not prepared:
        return warned("model", "not recorded by an older set-up", SET_UP)
    if prepared != wanted:
        return failed("model", f"{record.instance} was prepared for {prepared}, not for {wanted}", SET_UP)
    return passed("model", f"{prepared}, fetched by its last set-up")


def needs_ssh(settings: Settings, record: InstanceRecord | Finding) -> bool:
    """True if a run, or a missing set-up, needs to log in to the host."""
    if isinstance(record, Finding) or settings.launch == "ssh":
        return True
    return record.launch(ClaimLaunch.BOOT) is not ClaimLaunch.BOOT


def _check_start(settings: Settings, output: Store) -> Iterator[Finding]:
    instance = "" if settings.provider == LOCAL else settings.require("GPU_INSTANCE_ID")
    record = read_instance_record(output, instance) if instance else None
    spec = engine_spec(settings, record if isinstance(record, InstanceRecord) else None)
    engine = check_engine(spec)
    yield engine
    yield check_state_folder(settings.state_dir)
    if record is None:
        if engine.ok:
            yield check_local_engine(spec)
        return
    yield check_guard_role(settings)
    if needs_ssh(settings, record):
        yield check_key_file(settings.ssh_key_path)
    if isinstance(record, Finding):
        yield record
    else:
        yield from check_record(settings, record)


def _refuse_failures(findings: Iterable[Finding]) -> None:
    """Raises MisconfiguredError with all failures, each with its fix."""
    failures = [finding for finding in findings if not finding.ok]
    if failures:
        obstacles = "; ".join(": ".join(filter(None, (each.detail, each.fix))) for each in failures)
        raise MisconfiguredError(f"{obstacles} (nothing was started)")
