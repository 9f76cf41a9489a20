"""Estimated work and cost of audio objects under the present settings."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from batchscribe.core.decide.packing import Estimate, Priors, estimate
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.scan.backlog import ScanRules, make_chunks
from batchscribe.core.scan.folders import AudioObject
from batchscribe.settings import LOCAL, Settings
from batchscribe.wiring.engine_choice import EngineChoice, engine_spec
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scheduler import LOCAL_PRIORS
from batchscribe.wiring.seams import open_ledger, open_stores, rate_of

RECENT = timedelta(days=30)


def estimate_audio(settings: Settings, found: Iterable[AudioObject]) -> Estimate:
    """Estimates one run over these objects, on GPU_INSTANCE_TYPE or the type of the last run.

    Raises MisconfiguredError if the price is unknown.
    """
    kind, priors = read_expected(settings)
    chunks = make_chunks(found, ScanRules(now=open_clock().now()))
    return estimate(chunks, priors, rate_of(settings)(kind))


def read_expected(settings: Settings, instance_type: str = "", *, priced: bool = False) -> tuple[str, Priors]:
    """(instance type, its set-up time and speed), measured by earlier runs or assumed.

    Without a type, that of the next run. A machine that is `priced` is assumed to be a GPU in the cloud.
    """
    spec, now = _find_engine(settings), open_clock().now()
    with open_ledger(settings, remember=False) as ledger:
        runs = ledger.runs(now - RECENT)
        kind = instance_type or settings.instance_type or (runs[-1].instance_type if runs else "")
        priors = ledger.priors(
            engine=spec.engine,
            model=spec.model,
            instance_type=kind,
            default=LOCAL_PRIORS if settings.provider == LOCAL and not priced else Priors(),
        )
    return kind, priors


def _find_engine(settings: Settings) -> EngineSpec:
    """The engine of the next run; the arrivals of a file need no store."""
    if not settings.output:
        return engine_spec(settings)
    return EngineChoice(settings, open_stores(settings)[1]).choose("")
