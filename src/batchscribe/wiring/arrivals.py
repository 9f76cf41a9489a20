"""Records of the past: arrivals of audio, and the report of a period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from batchscribe.core.decide.arrivals import Arrival, make_arrivals, make_recorded_arrivals
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.period import Period, period_of
from batchscribe.core.run.usage import History, make_history
from batchscribe.ledger import Ledger
from batchscribe.settings import Settings
from batchscribe.wiring.costs import read_cost_basis
from batchscribe.wiring.estimates import RECENT
from batchscribe.wiring.scanners import open_scanner
from batchscribe.wiring.scheduler import make_policy
from batchscribe.wiring.seams import open_ledger

EVER = datetime.min.replace(tzinfo=UTC)


def read_arrivals(settings: Settings, priors: Priors) -> tuple[tuple[Arrival, ...], str]:
    """(arrivals, their origin): the source's audio or, if it has none, the backlog that ticks recorded."""
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
    """The report of the time from `last` before `now` on, from the ledger alone."""
    since = now - last
    costs = read_cost_basis(settings, ledger, now)
    return period_of(ledger.runs(since), since, now, costs, read_history(settings, ledger, since))
