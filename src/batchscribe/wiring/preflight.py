"""Checks before a GPU is started: engine, stop role, version and set-up of the GPU host."""

from __future__ import annotations

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, InstanceRecord
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, UnreadableError
from batchscribe.protocols import Store
from batchscribe.reading import read_record
from batchscribe.settings import Settings
from batchscribe.wiring.engines import engine_factory, known_factory, resolve, unable
from batchscribe.wiring.seams import LOCAL

BOOT = "boot"


def engine_spec(settings: Settings) -> EngineSpec:
    engine = resolve(settings.engine)
    factory = known_factory(engine)
    # A run on a paid GPU uses it or fails: it never falls back to the host's CPU.
    paid_gpu = settings.provider != LOCAL and factory.needs_gpu
    return EngineSpec(
        engine=engine,
        model=factory.model_name(settings.model),
        compute_type=settings.compute_type,
        device="cuda" if paid_gpu else "auto",
        language=settings.language,
        task=settings.task,
    )


def unfit(spec: EngineSpec) -> str:
    """Why no machine can run this engine configuration; empty if one can."""
    return "; ".join(unable(spec))


def preflight(settings: Settings, output: Store) -> None:
    """Raises MisconfiguredError, with a remedy, if a started GPU could not do its work."""
    spec = engine_spec(settings)
    if settings.provider == LOCAL:
        if problems := engine_factory(spec.engine).problems(spec):
            raise MisconfiguredError(f"{spec.engine} cannot run here: {'; '.join(problems)}")
        return
    instance = settings.required("GPU_INSTANCE_ID")
    if settings.cloud_guard != "off" and not settings.guard_role_arn:
        raise MisconfiguredError(
            "nothing outside this machine could stop the GPU: BATCH_GUARD_ROLE_ARN is not set; create the "
            "stack that `batchscribe iam-policy --template` prints and set its role there, or disable the "
            "guard with BATCH_CLOUD_GUARD=off (nothing was started)"
        )
    record = _instance_record(output, instance)
    if record.release != __version__:
        raise MisconfiguredError(
            f"{instance} has batchscribe {record.release}, this is {__version__}: run "
            "`batchscribe gpu setup` (nothing was started)"
        )
    if settings.launch == BOOT and record.launch(ClaimLaunch.BOOT) is not ClaimLaunch.BOOT:
        missing = (
            "does not show its tags in its metadata" if record.boots else "has no units that start at boot"
        )
        raise MisconfiguredError(
            f"BATCH_LAUNCH is boot, and {instance} {missing}: run `batchscribe gpu setup`, or use "
            "BATCH_LAUNCH=auto (nothing was started)"
        )


def _instance_record(output: Store, instance: str) -> InstanceRecord:
    try:
        return read_record(output, keys.instance(instance), InstanceRecord)
    except ObjectNotFoundError as error:
        raise MisconfiguredError(
            f"{instance} is not set up: run `batchscribe gpu setup` (nothing was started)"
        ) from error
    except UnreadableError as error:
        raise MisconfiguredError(
            f"the record of {instance} is {error}: run `batchscribe gpu setup`, which rewrites it "
            "(nothing was started)"
        ) from error
