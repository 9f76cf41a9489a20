"""What an hour of an instance type costs, from a dated table that comes with batchscribe.

It knows the GPU families in the regions whose prices it lists, and nothing else: a price guessed
from another region would be a lie of ten to fifty percent.
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


class PriceTable:
    """What an hour of an instance type costs on demand, by the dated table that comes with the package."""

    def rate(self, instance_type: str, region: str) -> Rate | None:
        """The rate, with its source and date; None where it is not known for this type and region.

        No region is a machine outside AWS: it is priced as the same type would be in the first one.
        """
        table = _table()
        price = table.per_hour.get(instance_type)
        where = region or table.regions[0]
        if price is None or where not in table.regions:
            return None
        return Rate(per_hour=Usd.parse(price), source=f"{table.source}, {where}", as_of=table.as_of)


@cache
def _table() -> _Table:
    text = (resources.files(__package__) / "prices.json").read_bytes()
    return msgspec.json.decode(text, type=_Table)
