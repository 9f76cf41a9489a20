"""The dated price table in the package."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from batchscribe.core.decide.prices import PriceSheet, PriceTable, combine_sheets


@cache
def load_packaged_prices() -> PriceTable:
    """The table without a user's own or refreshed prices."""
    return combine_sheets((), decode_sheets((resources.files(__package__) / "prices.json").read_bytes()))


def decode_sheets(data: bytes) -> tuple[PriceSheet, ...]:
    """Decodes the content of a price file. Raises one of UNREADABLE."""
    return msgspec.json.decode(data, type=tuple[PriceSheet, ...])
