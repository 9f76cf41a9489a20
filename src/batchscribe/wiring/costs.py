"""Facts for the costs beside the GPU's."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import msgspec
import structlog

from batchscribe.core import keys
from batchscribe.core.decide.fixed import VOLUME_PERIOD, CostBasis, ParkedParts
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.runs import Run
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import MisconfiguredError, TransientError
from batchscribe.ledger import Ledger
from batchscribe.protocols import Store
from batchscribe.reading import read_if_valid
from batchscribe.settings import Settings
from batchscribe.wiring.prices import load_prices, price_region

_PARKED = "parked/"
"""Prefix of the ledger's copies of what is billed while an instance is stopped, for `report`."""
log = structlog.get_logger("batchscribe")


def read_cost_basis(
    settings: Settings,
    ledger: Ledger,
    now: datetime,
    *,
    store: Store | None = None,
    settling: Run | None = None,
) -> CostBasis | None:
    """Prices and facts for the costs beside the GPU's.

    None without readable prices: no report and no estimate fails for a price file, the reason is logged. Disk
    and address come from the instance's record in `store`, or else from the ledger's copy. `settling`: a run
    that the ledger shows as open.
    """
    cloud = settings.provider != LOCAL
    parked = _find_parked(settings.instance_id, ledger, store) if cloud else None
    if settings.creates_machines:
        parked = parked or ParkedParts()  # between two runs there is no machine
    try:
        return CostBasis(
            table=load_prices(settings),
            region=price_region(settings),
            now=now,
            cloud=cloud,
            parked=parked,
            host_per_hour=settings.host_hourly_cost,
            s3=any(url.startswith("s3://") for url in (settings.source, settings.output, settings.control)),
            audio_hours=_sum_audio_hours(ledger, now, settling),
        )
    except MisconfiguredError as error:
        log.warning("costs.unknown", error=str(error))
        return None


def copy_parked_parts(ledger: Ledger, store: Store, settings: Settings) -> None:
    """Copies what is billed while the instance is stopped into the ledger."""
    instance = settings.instance_id
    if settings.provider != LOCAL and (parked := _find_parked(instance, ledger, store)):
        ledger.put(f"{_PARKED}{instance}", msgspec.json.encode(parked).decode())


def _find_parked(instance: str, ledger: Ledger, store: Store | None) -> ParkedParts | None:
    with suppress(TransientError, MisconfiguredError):
        record = read_if_valid(store, keys.instance(instance), InstanceRecord) if store else None
        if record and record.parked:
            return record.parked
    with suppress(*UNREADABLE):
        copied = ledger.get(f"{_PARKED}{instance}")
        return msgspec.json.decode(copied, type=ParkedParts) if copied else None
    return None


def _sum_audio_hours(ledger: Ledger, now: datetime, settling: Run | None) -> float:
    settled = {run.id: run for run in ledger.runs(now - VOLUME_PERIOD) if not run.open}
    counted = settled | ({settling.id: settling} if settling else {})
    return sum(run.audio_seconds for run in counted.values()) / 3600
