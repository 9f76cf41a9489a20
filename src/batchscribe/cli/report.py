"""`batchscribe report`: runs of a period and their cost, from the ledger."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timedelta

import click
import msgspec

from batchscribe.cli.app import App, Duration, json_option, pass_app, print_json
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.cli.terminal.times import show_times
from batchscribe.core.decide.fixed import CostBasis, FixedCosts, describe_fixed_costs
from batchscribe.core.decide.hosted import format_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import mark_age
from batchscribe.core.figures import format_clock, format_count, format_hours
from batchscribe.core.redaction import printable
from batchscribe.core.run.engine_time import flag_text, format_engine_time, make_engine_time
from batchscribe.core.run.report import Totals, totals
from batchscribe.core.run.runs import Run
from batchscribe.core.run.timeline import format_timeline
from batchscribe.wiring.costs import read_cost_basis
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.seams import open_ledger

PERIOD = Duration("hdw", "{value!r} is not a period: use 24h, 7d, 30d", number="[1-9][0-9]{0,3}")
HOUR = 3600.0


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a report; `cost` is an upper bound in dollars."""

    run: str
    created: datetime
    status: str
    type: str
    chunks_done: int
    chunks_failed: int
    audio_hours: float
    billed_hours: float
    rate: float
    rate_source: str
    rate_as_of: str
    cost: float
    cost_micros: int
    load_seconds: float | None
    busy_share: float | None
    """Shares of the engines' time after loading; None if no worker reported it."""
    starved_share: float | None
    blocked_share: float | None
    to_blame: tuple[str, ...]
    flags: dict[str, int]
    timeline: dict[str, float]
    """Seconds of each phase, in order."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Runs settled in a period or open at its end, with totals."""

    since: datetime
    until: datetime
    runs: tuple[ReportRow, ...]
    totals: Totals
    fixed_costs: FixedCosts | None = None
    """None if they cannot be read."""


@click.command()
@click.option("--last", type=PERIOD, default="24h", show_default=True, help="How far back: 24h, 7d, 30d.")
@click.option("--format", "shape", type=click.Choice(["table", "json", "csv"]), default="table")
@json_option
@pass_app
def report(app: App, last: timedelta, shape: str, *, as_json: bool) -> None:
    """The runs of a period, and their cost."""
    now = open_clock().now()
    with open_ledger(app.settings, remember=False) as ledger:
        costs = read_cost_basis(app.settings, ledger, now)
        period = period_of(ledger.runs(now - last), now - last, now, costs)
    if as_json or shape == "json":
        print_json(period)
    elif shape == "csv":
        click.echo(render_csv(period), nl=False)
    else:
        show_table(app, period)


def period_of(
    runs: Sequence[Run], since: datetime, until: datetime, costs: CostBasis | None = None
) -> Period:
    return Period(
        since=since,
        until=until,
        runs=tuple(_to_row(run) for run in runs),
        totals=totals(runs),
        fixed_costs=costs.fixed_costs() if costs else None,
    )


def render_csv(period: Period) -> str:
    """CSV with a header and one line for each run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ReportRow.__struct_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_to_cells(row) for row in period.runs)
    return text.getvalue()


def _to_cells(row: ReportRow) -> dict[str, object]:
    """Returns the row as text cells; stages and flags are joined for reading."""
    cells: dict[str, object] = msgspec.to_builtins(row)
    cells |= {"to_blame": ", ".join(row.to_blame), "flags": flag_text(row.flags)}
    cells["timeline"] = format_timeline(row.timeline)
    return {name: _escape_cell(value) for name, value in cells.items()}


def _escape_cell(value: object) -> object:
    """Escapes control characters, and prevents spreadsheet formulas."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def show_table(app: App, period: Period) -> None:
    if not period.runs:
        app.console.print(f"No runs since {period.since:%Y-%m-%d %H:%M} UTC.")
        return
    print_table(app.console, _build_columns(period.runs))
    fixed = describe_fixed_costs(period.fixed_costs) if period.fixed_costs else ""
    lines = [fixed, summary(period.totals, period.until), *format_engine_time(period.totals.work)]
    lines += [f"Timeline of {row.run}: {format_timeline(row.timeline)}" for row in _find_timed(period.runs)]
    app.console.print("\n".join(filter(None, lines)), markup=False)


def _find_timed(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """The latest run with a timeline; empty if there is none."""
    timed = [row for row in rows if row.timeline]
    return [max(timed, key=lambda row: row.created)] if timed else []


def summary(sums: Totals, now: datetime) -> str:
    """Totals of a period in three lines."""
    unproductive = Usd(sums.unproductive_cost_micros)
    of_it = f", {unproductive} of it for starts without a transcript" if unproductive.micros else ""
    each = (
        ""
        if sums.cost_per_audio_hour is None
        else f", at most {Usd.parse(sums.cost_per_audio_hour)} per audio hour"
    )
    return (
        f"{format_count(sums.runs, 'run')} settled, {format_count(sums.starts, 'GPU start')}; "
        f"{format_count(sums.chunks_done, 'chunk')} done, {sums.chunks_failed} failed; "
        f"{format_hours(sums.audio_hours * HOUR)} of audio in {format_hours(sums.billed_hours * HOUR)} "
        f"of GPU.\nCost: at most {Usd(sums.cost_micros)}{each}{of_it}.\n"
        f"Savings: {format_savings(sums.savings, now)}."
    )


def _build_columns(rows: Sequence[ReportRow]) -> list[Column]:
    return [
        Column("Run", [row.run for row in rows]),
        Column("Started", [show_times(f"{row.created:%Y-%m-%d %H:%M} UTC") for row in rows], optional=3),
        Column("Status", [row.status for row in rows]),
        Column("GPU", [row.type for row in rows], optional=2),
        Column("Done", [str(row.chunks_done) for row in rows], right=True),
        Column("Failed", [str(row.chunks_failed) for row in rows], right=True),
        Column("Audio", [format_clock(row.audio_hours * HOUR) for row in rows], right=True),
        Column("GPU time", [format_clock(row.billed_hours * HOUR) for row in rows], optional=1, right=True),
        Column("$/h", [_format_rate(row) for row in rows], optional=4, right=True),
        Column("Cost", [str(Usd(row.cost_micros)) for row in rows], right=True),
    ]


def _format_rate(row: ReportRow) -> str:
    """The hourly rate, with its age if it was old at the time of the run."""
    return f"${Usd.parse(row.rate).text(3)}{mark_age(row.rate_as_of, row.created)}"


def _to_row(run: Run) -> ReportRow:
    work = make_engine_time(run.worked)
    return ReportRow(
        run=run.id,
        created=run.created,
        status=(run.outcome if run.outcome and not run.open else run.state).value,
        type=run.instance_type or run.provider,
        chunks_done=run.chunks_done,
        chunks_failed=run.chunks_failed,
        audio_hours=run.audio_seconds / 3600,
        billed_hours=run.billed_seconds / 3600,
        rate=run.rate.per_hour.dollars,
        rate_source=run.rate.source,
        rate_as_of=run.rate.as_of,
        cost=run.cost.dollars,
        cost_micros=run.cost.micros,
        load_seconds=work.load_seconds if work else None,
        busy_share=work.busy_share if work else None,
        starved_share=work.starved_share if work else None,
        blocked_share=work.blocked_share if work else None,
        to_blame=work.to_blame if work else (),
        flags=work.flags if work else {},
        timeline=run.timeline,
    )
