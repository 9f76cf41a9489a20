"""Prices in effect, from the user's file, the last refresh and the package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from batchscribe.adapters.aws.prices import decode_sheets, load_packaged_prices
from batchscribe.core.decide.prices import (
    DEFAULT_REGION,
    PriceSheet,
    PriceTable,
    combine_sheets,
    replace_sheets,
)
from batchscribe.core.messages import describe_install
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.detached import write_atomically
from batchscribe.errors import MisconfiguredError
from batchscribe.machine_settings import LOCAL
from batchscribe.protocols import Clock, PriceSource
from batchscribe.settings import Settings

_NUMBER = re.compile(r"Expected `str`, got `(int|float)` .*\.prices")
FILE_NAME = "prices.json"
"""File of refreshed prices in the state directory."""


def load_prices(settings: Settings) -> PriceTable:
    """The prices in effect. Raises MisconfiguredError for an unreadable price file."""
    own = _read_file(settings.price_file, "correct BATCH_PRICE_FILE") if settings.price_file else ()
    return combine_sheets(own, (*_read_refreshed(settings), *load_packaged_prices().sheets))


def refresh_prices(settings: Settings, source: PriceSource, regions: Iterable[str]) -> Path:
    """Reads present prices into a file of the state directory; returns its path.

    Prices of other regions stay. A file that cannot be read is replaced.
    """
    path = settings.state_dir / FILE_NAME
    fresh = [sheet for region in regions for sheet in source.read(region)]
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
    try:
        from batchscribe.adapters.aws.price_list import AwsPriceList
    except ImportError as error:
        raise MisconfiguredError(f"prices of AWS need their extra: {describe_install('aws')}") from error
    return AwsPriceList(clock, endpoint=settings.endpoint_url or None)


def price_region(settings: Settings) -> str:
    """The region of EC2: as set, else of AWS's own settings; for a local GPU the default one."""
    found = settings.region or ("" if settings.provider == LOCAL else find_default_region())
    return found or DEFAULT_REGION


def find_default_region() -> str:
    """The region of AWS's own settings; empty if none is set or boto3 is not installed."""
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
