"""Hourly prices of instance types, from a dated table in the package.

It covers only GPU families in the listed regions: prices of other regions differ by ten to fifty percent.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from batchscribe.core.decide.money import Rate, Usd


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    as_of: str
    source: str
    about: str
    regions: tuple[str, ...]
    per_hour: dict[str, str]


def find_rate(instance_type: str, region: str) -> Rate | None:
    """The on-demand rate with its source and date; None if the type or region is not in the table.

    A machine outside AWS has no region: it is priced as the same type in the first region.
    """
    table = _load_table()
    price = table.per_hour.get(instance_type)
    where = region or table.regions[0]
    if price is None or where not in table.regions:
        return None
    return Rate(per_hour=Usd.parse(price), source=f"{table.source}, {where}", as_of=table.as_of)


@cache
def _load_table() -> _Table:
    text = (resources.files(__package__) / "prices.json").read_bytes()
    return msgspec.json.decode(text, type=_Table)
