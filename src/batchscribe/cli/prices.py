"""`batchscribe prices`: the price table with its age, and its refresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import click
import msgspec

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.core.decide.hosted import HOSTED
from batchscribe.core.decide.prices import OLD_DAYS, Price, PriceKind, count_age_days
from batchscribe.settings import Settings
from batchscribe.wiring.prices import (
    load_prices,
    name_price_settings,
    open_price_source,
    price_region,
    refresh_prices,
)
from batchscribe.wiring.process import open_clock

BY_SIZE = (PriceKind.ON_DEMAND, PriceKind.SPOT)


class PriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One price; `price` is the highest of the region's zones, in dollars."""

    kind: PriceKind
    name: str
    price: float
    lowest: float
    """The lowest of the region's zones."""
    unit: str
    region: str
    source: str
    as_of: str
    """Empty for a price from the settings."""
    age_days: int | None
    old: bool
    """Older than 90 days."""


class PriceList(msgspec.Struct, frozen=True, kw_only=True):
    """The prices in effect in a region."""

    region: str
    prices: tuple[PriceRow, ...]


@click.command()
@click.option("--refresh", is_flag=True, help="Ask AWS for the present prices, and keep them.")
@click.option(
    "--region", "regions", multiple=True, help="Region instead of AWS_REGION. Can be repeated with --refresh."
)
@click.option("--all", "every", is_flag=True, help="All sizes, not the smallest of each family alone.")
@json_option
@pass_app
def prices(app: App, *, refresh: bool, regions: tuple[str, ...], every: bool, as_json: bool) -> None:
    """The price table, with its sources and its age."""
    clock = open_clock()
    wanted = regions or (price_region(app.settings),)
    if refresh:
        file = refresh_prices(app.settings, open_price_source(app.settings, clock), wanted)
        click.echo(f"prices of {', '.join(wanted)} written to {file}", err=True)
    now = clock.now()
    lists = [
        PriceList(
            region=region,
            prices=tuple(_to_row(price, now) for price in list_prices(app.settings, region)),
        )
        for region in wanted
    ]
    if as_json:
        print_json({"regions": lists})
        return
    for each in lists:
        _print_list(app, each, every=every)


def list_prices(settings: Settings, region: str) -> Iterator[Price]:
    """Yields the prices in effect in a region, the settings' first."""
    for kind, name, amount, setting in (
        (PriceKind.ON_DEMAND, settings.instance_type or "GPU", settings.hourly_cost, "GPU_HOURLY_COST"),
        (PriceKind.HOST, "scheduler host", settings.host_hourly_cost, "BATCH_HOST_HOURLY_COST"),
    ):
        if amount is not None:
            yield Price(kind=kind, name=name, region=region, low=amount, high=amount, source=setting)
    yield from load_prices(settings).list_prices(region)
    for each in HOSTED:
        yield Price(
            kind=PriceKind.HOSTED,
            name=each.name,
            low=each.per_audio_hour,
            high=each.per_audio_hour,
            source=each.source,
            as_of=each.as_of,
        )


def _to_row(price: Price, now: datetime) -> PriceRow:
    age = count_age_days(price.as_of, now)
    return PriceRow(
        kind=price.kind,
        name=price.name,
        price=price.high.dollars,
        lowest=price.low.dollars,
        unit=price.kind.unit,
        region=price.region,
        source=price.source,
        as_of=price.as_of,
        age_days=age,
        old=age is not None and age > OLD_DAYS,
    )


def _print_list(app: App, found: PriceList, *, every: bool) -> None:
    rows = [row for row in found.prices if every or _is_shown(row, app.settings)]
    app.console.print(f"Prices in {found.region}")
    print_table(
        app.console,
        [
            Column("Kind", [row.kind for row in rows]),
            Column("Name", [row.name for row in rows], folded=14),
            Column("Dollars", [_format_amount(row) for row in rows], right=True),
            Column("Per", [row.unit for row in rows], optional=1),
            Column("As of", [row.as_of or "-" for row in rows], optional=3),
            Column("Age", [_format_age(row) for row in rows], optional=2, right=True),
            Column("Source", [row.source for row in rows], optional=4),
        ],
    )
    app.console.print("\n".join(_list_notes(app.settings, found, rows)), markup=False)


def _is_shown(row: PriceRow, settings: Settings) -> bool:
    """False for larger sizes of instances that no setting names."""
    size = row.name.partition(".")[2]
    configured = {settings.instance_type, *settings.instance_types}
    small = size == "xlarge" or row.name.startswith("g6f.")
    return row.kind not in BY_SIZE or small or row.name in configured or not row.as_of


def _list_notes(settings: Settings, found: PriceList, shown: Sequence[PriceRow]) -> Iterator[str]:
    remedy = f"`batchscribe prices --refresh --region {found.region}` reads AWS's present prices"
    if len(shown) < len(found.prices):
        yield f"{len(found.prices) - len(shown)} larger sizes: --all"
    if not any(row.kind == PriceKind.ON_DEMAND and row.as_of for row in found.prices):
        own = name_price_settings(settings)
        yield f"No price of a GPU in {found.region} is known: {remedy}, or set {own}."
    elif any(row.old for row in shown):
        yield f"Prices marked with ! are older than {OLD_DAYS} days: {remedy}."
    else:
        yield f"{remedy}."


def _format_amount(row: PriceRow) -> str:
    high = _format_dollars(row.price)
    return high if row.lowest == row.price else f"{_format_dollars(row.lowest)}-{high}"


def _format_dollars(amount: float) -> str:
    return f"{amount:.4f}" if amount >= 0.0001 else f"{amount:.6f}"


def _format_age(row: PriceRow) -> str:
    if row.age_days is None:
        return "-"
    if row.age_days < 0:
        return "in the future"
    return f"{row.age_days} d{' !' if row.old else ''}"
