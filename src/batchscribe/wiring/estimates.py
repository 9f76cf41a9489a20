"""Work and cost of audio, and records of the past."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from batchscribe.core.decide.arrivals import Arrival, make_arrivals, make_recorded_arrivals
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import LOCAL, Market, Offer
from batchscribe.core.decide.packing import Estimate, Priors, estimate
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.run.period import Period, period_of
from batchscribe.core.run.usage import History, make_history
from batchscribe.core.scan.backlog import ScanRules, make_chunks
from batchscribe.core.scan.folders import AudioObject
from batchscribe.ledger import Ledger
from batchscribe.settings import Settings
from batchscribe.wiring.costs import read_cost_basis
from batchscribe.wiring.engine_choice import EngineChoice, engine_spec
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scanners import open_scanner
from batchscribe.wiring.scheduler import LOCAL_PRIORS, make_policy
from batchscribe.wiring.seams import open_ledger, open_stores, rate_of

RECENT = timedelta(days=30)
EVER = datetime.min.replace(tzinfo=UTC)
GIVEN = "as given"
"""Source of a price that a user gives, as an option or on the page."""


def estimate_audio(settings: Settings, found: Iterable[AudioObject]) -> Estimate:
    """Estimates one run over these objects.

    On GPU_INSTANCE_TYPE, or on the type of the last run. Raises MisconfiguredError if the price is unknown.
    """
    kind, priors = read_expected(settings)
    chunks = make_chunks(found, ScanRules(now=open_clock().now()))
    return estimate(chunks, priors, rate_of(settings)(kind))


def read_expected(settings: Settings, instance_type: str = "", *, priced: bool = False) -> tuple[str, Priors]:
    """(instance type, its set-up time and speed), measured or assumed.

    Without a type, that of the next run. A machine that is `priced` is assumed to be a GPU in the cloud.
    """
    spec, now = _find_engine(settings), open_clock().now()
    with open_ledger(settings, remember=False) as ledger:
        runs = [run for run in ledger.runs(now - RECENT) if not run.lane]
        kind = instance_type or settings.instance_type or (runs[-1].instance_type if runs else "")
        priors = ledger.priors(
            engine=spec.engine,
            model=spec.model,
            instance_type=kind,
            default=LOCAL_PRIORS if settings.provider == LOCAL and not priced else Priors(),
        )
    return kind, priors


def describe_assumed(offers: Sequence[Offer], setup: float | None = None, speed: float | None = None) -> str:
    """Describes what is assumed; empty if runs or arguments gave all values."""
    names = [name for name, value in (("set-up", setup), ("speed", speed)) if value is None]
    kinds = [_name_machine(offer) for offer in offers if not offer.priors.learned]
    if not names or not kinds:
        return ""
    return f"{' and '.join(names).capitalize()} of {', '.join(kinds)}: assumed, not measured"


def _name_machine(offer: Offer) -> str:
    local = offer.provider == LOCAL and offer.rate.source != GIVEN
    return offer.instance_type or ("this machine" if local else "a GPU in the cloud")


def make_offer(
    settings: Settings,
    kind: str = "",
    *,
    rate: float | None = None,
    setup: float | None = None,
    speed: float | None = None,
) -> Offer:
    """An offer of an instance type, by the settings and earlier runs.

    `rate` (dollars an hour), `setup` (seconds) and `speed` replace their values.
    """
    priced = rate is not None or bool(kind or settings.instance_type)
    kind, priors = read_expected(settings, kind, priced=priced)
    if setup is not None:
        # A slow start is assumed to take twice as long, as before the first runs.
        priors = replace(priors, setup_seconds=setup, setup_p95_seconds=2 * setup, release_seconds=0.0)
    if speed is not None:
        priors = replace(priors, speed=speed)
    price = rate_of(settings)(kind) if rate is None else Rate(per_hour=Usd.parse(rate), source=GIVEN)
    return Offer(
        provider=settings.provider, instance_type=kind, market=Market.ON_DEMAND, rate=price, priors=priors
    )


def _find_engine(settings: Settings) -> EngineSpec:
    if not settings.output:
        return engine_spec(settings)
    return EngineChoice(settings, open_stores(settings)[1]).choose("")


def read_arrivals(settings: Settings, priors: Priors) -> tuple[tuple[Arrival, ...], str]:
    """(arrivals, their origin): of the source, else of earlier ticks."""
    listed = make_arrivals((audio.info for audio in open_scanner(settings).audio()), priors)
    if listed:
        return listed, f"the time stamps in {settings.source}"
    with open_ledger(settings, remember=False) as ledger:
        recorded = make_recorded_arrivals(ledger.samples(EVER), ledger.runs(EVER))
    return recorded, "the ledger" if recorded else f"{settings.source}, and none in the ledger"


def read_history(settings: Settings, ledger: Ledger, since: datetime) -> History:
    """Records of a period, and of 30 days before it."""
    begin = since - RECENT
    return make_history(ledger.samples(begin), ledger.runs(begin), make_policy(settings))


def read_period(settings: Settings, ledger: Ledger, now: datetime, last: timedelta) -> Period:
    """The report of the time `last` before `now`, from the ledger alone."""
    since = now - last
    costs = read_cost_basis(settings, ledger, now)
    history, shares = read_history(settings, ledger, since), ledger.sessions(since)
    return period_of(ledger.runs(since), since, now, costs, history, shares=shares)
