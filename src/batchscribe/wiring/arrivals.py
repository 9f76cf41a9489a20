"""Arrivals of audio in the past, from the source's time stamps or from the ledger."""

from __future__ import annotations

from datetime import UTC, datetime

from batchscribe.core.decide.arrivals import Arrival, make_arrivals, make_recorded_arrivals
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.usage import History, make_history
from batchscribe.ledger import Ledger
from batchscribe.settings import Settings
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
