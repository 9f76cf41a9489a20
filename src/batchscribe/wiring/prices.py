"""Prices in effect: the user's, the refreshed and the package's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from batchscribe.adapters.aws.prices import decode_sheets, load_packaged_prices
from batchscribe.core.decide.offers import FLEET, LOCAL, Market
from batchscribe.core.decide.prices import (
    DEFAULT_REGION,
    PriceKind,
    PriceSheet,
    PriceTable,
    combine_sheets,
    replace_sheets,
)
from batchscribe.core.messages import require_extra
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.detached import write_atomically
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.protocols import Clock, PriceSource
from batchscribe.settings import Settings

log = structlog.get_logger("batchscribe")

_NUMBER = re.compile(r"Expected `str`, got `(int|float)` .*\.prices")
FILE_NAME = "prices.json"
"""File of refreshed prices in the state directory."""


def load_prices(settings: Settings) -> PriceTable:
    """The prices in effect. Raises MisconfiguredError for an unreadable price file."""
    own = _read_file(settings.price_file, "correct BATCH_PRICE_FILE") if settings.price_file else ()
    return combine_sheets(own, (*_read_refreshed(settings), *load_packaged_prices().sheets))


def refresh_prices(settings: Settings, source: PriceSource, regions: Iterable[str]) -> Path:
    """Reads present prices into a file of the state directory.

    Returns its path. Prices of other regions stay. A file that cannot be read is replaced.
    """
    return _write_refreshed(settings, [sheet for region in regions for sheet in source.read(region)])


def refresh_spot_prices(settings: Settings, source: PriceSource, now: datetime) -> None:
    """Adds the present spot prices to the same file, once a day.

    A failure is only logged: the prices before it, or those of on-demand machines, bound the cost.
    """
    region, today = price_region(settings), now.astimezone(UTC).date().isoformat()
    try:
        kept = _read_refreshed(settings)
        known = {
            name
            for sheet in kept
            if sheet.kind is PriceKind.SPOT and sheet.as_of == today and _is_zone(sheet, region)
            for name in sheet.prices
        }
        if not known.issuperset(settings.instance_types):
            _write_refreshed(settings, source.read_spot(region, settings.instance_types))
    except BatchscribeError as error:
        log.warning("spot_prices.not_read", region=region, error=str(error))


def name_price_settings(settings: Settings) -> str:
    """Names of the settings that give a GPU's price."""
    return "BATCH_PRICE_FILE" if settings.provider == FLEET else "GPU_HOURLY_COST or BATCH_PRICE_FILE"


def read_spot_prices(settings: Settings, clock: Clock) -> None:
    """Reads the day's spot prices, if needed: offers send no request."""
    if settings.provider == FLEET and Market.SPOT in settings.markets:
        source = open_price_source(settings, clock)
        for there in settings.by_region():
            refresh_spot_prices(there, source, clock.now())


def _is_zone(sheet: PriceSheet, region: str) -> bool:
    return all(place.startswith(region) and place != region for place in sheet.regions)


def _write_refreshed(settings: Settings, fresh: Iterable[PriceSheet]) -> Path:
    path = settings.state_dir / FILE_NAME
    try:
        kept = _read_refreshed(settings)
    except MisconfiguredError:
        kept = ()
    data = msgspec.json.format(msgspec.json.encode(replace_sheets(kept, fresh)), indent=2)
    try:
        write_atomically(path, data + b"\n")
    except OSError as error:
        raise MisconfiguredError(
            f"{path} cannot be written ({error.strerror}): the prices before it stay in effect"
        ) from error
    return path


def open_price_source(settings: Settings, clock: Clock) -> PriceSource:
    with require_extra("prices of AWS need their extra", "aws"):
        from batchscribe.adapters.aws.price_list import AwsPriceList
    return AwsPriceList(clock, endpoint=settings.endpoint_url or None)


def price_region(settings: Settings) -> str:
    """The region of EC2; for a local GPU the default one."""
    found = settings.region or ("" if settings.provider == LOCAL else find_default_region())
    return found or DEFAULT_REGION


def find_default_region() -> str:
    """The region of AWS's own settings; empty if unknown."""
    try:
        from batchscribe.adapters.aws.regions import default_region
    except ImportError:
        return ""
    return default_region()


def _read_refreshed(settings: Settings) -> tuple[PriceSheet, ...]:
    path = settings.state_dir / FILE_NAME
    return _read_file(path, "delete it, or run `batchscribe prices --refresh`") if path.exists() else ()


def _read_file(path: Path, remedy: str) -> tuple[PriceSheet, ...]:
    try:
        return decode_sheets(path.read_bytes())
    except OSError as error:
        raise MisconfiguredError(
            f"the price file {path} cannot be read ({error.strerror}): {remedy}"
        ) from error
    except UNREADABLE as error:
        quoted = ', with prices as quoted texts such as "0.41"' if _NUMBER.search(str(error)) else ""
        raise MisconfiguredError(
            f"the price file {path} is not readable ({error}): {remedy}{quoted}"
        ) from error
