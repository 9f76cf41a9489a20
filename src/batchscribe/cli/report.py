"""`report` and `metrics`: a period's runs and costs, and Prometheus numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click
import msgspec

from batchscribe.cli.app import App, Duration, json_option, pass_app, write_result
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.cli.terminal.times import show_times
from batchscribe.core.decide.baselines import format_baseline
from batchscribe.core.decide.fixed import describe_fixed_costs
from batchscribe.core.decide.hosted import format_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import mark_age
from batchscribe.core.figures import encode_json, format_clock, format_count, format_hours
from batchscribe.core.redaction import printable, printable_json
from batchscribe.core.run.engine_time import flag_text, format_engine_time
from batchscribe.core.run.period import NESTED, DayRow, Period, ReportRow
from batchscribe.core.run.report import Totals
from batchscribe.core.run.session_costs import SessionCost
from batchscribe.core.run.timeline import format_timeline
from batchscribe.core.run.usage import Usage
from batchscribe.wiring.estimates import read_period
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.seams import open_ledger

PERIOD = Duration("hdw", "{value!r} is not a period: use 24h, 7d, 30d", number="[1-9][0-9]{0,3}")
HOUR = 3600.0


@click.command()
@click.option("--last", type=PERIOD, default="24h", show_default=True, help="How far back: 24h, 7d, 30d.")
@click.option("--format", "shape", type=click.Choice(["table", "json", "csv", "html"]), default="table")
@click.option(
    "--by",
    type=click.Choice(["run", "session", "day"]),
    default="run",
    show_default=True,
    help="Lines of the table and of the CSV; JSON has all.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file for JSON, CSV or HTML; default stdout.",
)
@json_option
@pass_app
def report(app: App, last: timedelta, shape: str, by: str, output: Path | None, *, as_json: bool) -> None:
    """The runs of a period, and their cost."""
    shape = "json" if as_json else shape
    if output and shape == "table":
        raise click.UsageError("a file needs --format html, csv or json: the table is for a terminal.")
    now = open_clock().now()
    with open_ledger(app.settings, remember=False) as ledger:
        if shape == "html":
            from batchscribe.dashboard.report import render_report

            text = render_report(app.settings, ledger, now, last)
        else:
            period = read_period(app.settings, ledger, now, last)
            if shape == "table":
                show_table(app, period, by)
                return
            text = render_csv(period, by) if shape == "csv" else render_json(period)
    write_result(app, output, text.encode())


@click.command()
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.prom",
    help="Replace this file of node_exporter's textfile collector, instead of stdout.",
)
@pass_app
def metrics(app: App, *, textfile: Path | None) -> None:
    """Metrics for Prometheus, from the ledger alone."""
    from batchscribe.dashboard.metrics import render_metrics, write_metrics

    with open_ledger(app.settings, remember=False) as ledger:
        data = render_metrics(app.settings, ledger, open_clock().now())
    if textfile:
        write_metrics(textfile, data)
    else:
        click.echo(data, nl=False)


def render_json(period: Period) -> str:
    return f"{printable_json(encode_json(period).decode())}\n"


def render_csv(period: Period, by: str = "run") -> str:
    """CSV with a line for each run, session or day; usage last."""
    rows: Sequence[ReportRow | DayRow | SessionCost]
    match by:
        case "day":
            kind, rows = DayRow.__struct_fields__, period.days
        case "session":
            kind, rows = SessionCost.__struct_fields__, period.sessions
        case _:
            kind, rows = ReportRow.__struct_fields__, period.runs
    usage = Usage.__struct_fields__ if "usage" in kind else ()
    text = io.StringIO()
    names = [name for name in kind if name not in NESTED]
    writer = csv.DictWriter(text, [*names, *usage], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_to_cells(row) for row in rows)
    return text.getvalue()


def _to_cells(row: ReportRow | DayRow | SessionCost) -> dict[str, object]:
    """Text cells of a row; stages and flags are joined."""
    found: dict[str, object] = msgspec.to_builtins(row)
    cells = {name: value for name, value in found.items() if name not in NESTED}
    if not isinstance(row, SessionCost):
        cells |= msgspec.to_builtins(row.usage)
    if isinstance(row, ReportRow):
        cells |= {"to_blame": ", ".join(row.to_blame), "flags": flag_text(row.flags)}
        cells["timeline"] = format_timeline(row.timeline)
    return {name: _escape_cell(value) for name, value in cells.items()}


def _escape_cell(value: object) -> object:
    """Escapes control characters, and prevents spreadsheet formulas."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def show_table(app: App, period: Period, by: str = "run") -> None:
    if not period.runs:
        app.console.print(f"No runs since {period.since:%Y-%m-%d %H:%M} UTC.")
        return
    match by:
        case "day":
            print_table(app.console, _build_day_columns(period.days))
        case "session":
            print_table(app.console, _build_session_columns(period.sessions))
        case _:
            print_table(app.console, _build_columns(period.runs))
    fixed = describe_fixed_costs(period.fixed_costs) if period.fixed_costs else ""
    lines = [
        _describe_rest(period) if by == "session" else "",
        fixed,
        describe_totals(period.totals, period.until),
    ]
    lines += [f"{format_baseline(each)}." for each in period.baselines]
    lines += [_describe_waits(period.usage), _describe_use(period)]
    lines += format_engine_time(period.totals.work)
    lines += [f"Timeline of {row.run}: {format_timeline(row.timeline)}" for row in _find_timed(period.runs)]
    app.console.print("\n".join(filter(None, lines)), markup=False)


def _describe_rest(period: Period) -> str:
    """The cost that belongs to no session; empty if there is none."""
    rest, old = Usd(period.cost_without_session_micros), period.runs_without_sessions
    recorded = f" {format_count(old, 'run')} of an earlier version recorded no sessions." if old else ""
    return f"In no session: {rest}.{recorded}" if rest.micros or old else ""


def _describe_waits(usage: Usage) -> str:
    """Waits of a period; empty if none is known."""
    if usage.late is None:
        return ""
    waits = (usage.mean_wait_hours, usage.p95_wait_hours, usage.max_wait_hours)
    mean, p95, longest = (format_hours((wait or 0.0) * HOUR) for wait in waits)
    late = f"{format_count(usage.late, 'chunk')} late" if usage.late else "no chunk late"
    return f"Waits: mean {mean}, p95 {p95}, longest {longest}; {late}."


def _describe_use(period: Period) -> str:
    """The GPU's time and speed in a period; empty if unbilled."""
    speed = period.usage.audio_per_gpu_second
    if speed is None or period.gpu_share is None:
        return ""
    share, recorded = period.gpu_share, format_hours(period.recorded_hours * HOUR)
    return f"The GPU was up for {_format_share(share)} of {recorded}: {speed:.1f} s of audio for each second."


def _format_share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _find_timed(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """The latest run with a timeline; empty if there is none."""
    timed = [row for row in rows if row.timeline]
    return [max(timed, key=lambda row: row.created)] if timed else []


def describe_totals(sums: Totals, now: datetime) -> str:
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
        *_build_usage_columns([row.usage for row in rows]),
    ]


def _build_day_columns(rows: Sequence[DayRow]) -> list[Column]:
    return [
        Column("Day", [row.day for row in rows]),
        Column("Starts", [str(row.starts) for row in rows], right=True),
        Column("Done", [str(row.chunks_done) for row in rows], right=True),
        Column("Failed", [str(row.chunks_failed) for row in rows], optional=1, right=True),
        Column("Audio", [format_clock(row.audio_hours * HOUR) for row in rows], right=True),
        Column("Queue", [_format_trend(row.queue_hours) for row in rows], right=True),
        Column("GPU up", [_format_share(row.gpu_share) for row in rows], right=True),
        Column("Cost", [str(Usd(row.cost_micros)) for row in rows], right=True),
        *_build_usage_columns([row.usage for row in rows]),
    ]


def _build_session_columns(rows: Sequence[SessionCost]) -> list[Column]:
    return [
        Column("Session", [row.session for row in rows]),
        Column("Runs", [str(row.runs) for row in rows], optional=1, right=True),
        Column("Done", [str(row.chunks_done) for row in rows], right=True),
        Column("Audio", [format_clock(row.audio_hours * HOUR) for row in rows], right=True),
        Column("Cost", [str(Usd(row.cost_micros)) for row in rows], right=True),
        Column("Longest wait", [f"{row.max_wait_hours:.2f} h" for row in rows], right=True),
        Column("Late", [str(row.late) for row in rows], right=True),
        _build_usage_column("$/audio hour", [row.cost_per_audio_hour for row in rows], "{:.4f}", 2),
        _build_usage_column("Mean wait", [row.mean_wait_hours for row in rows], "{:.2f} h", 3),
    ]


def _build_usage_columns(rows: Sequence[Usage]) -> list[Column]:
    """Columns that a narrow terminal leaves out first."""
    return [
        _build_usage_column("Late", [row.late for row in rows], "{:.0f}", 5),
        _build_usage_column("p95 wait", [row.p95_wait_hours for row in rows], "{:.2f} h", 6),
        _build_usage_column("$/audio hour", [row.cost_per_audio_hour for row in rows], "{:.4f}", 7),
        _build_usage_column("Speed", [row.audio_per_gpu_second for row in rows], "{:.1f} x", 8),
        _build_usage_column("Mean wait", [row.mean_wait_hours for row in rows], "{:.2f} h", 9),
        _build_usage_column("Longest", [row.max_wait_hours for row in rows], "{:.2f} h", 10),
        _build_usage_column("Chunks/$", [row.chunks_per_dollar for row in rows], "{:.0f}", 11),
    ]


def _build_usage_column(name: str, values: Sequence[float | None], shape: str, optional: int) -> Column:
    """A column of numbers; `-` is unknown."""
    cells = ["-" if value is None else shape.format(value) for value in values]
    return Column(name, cells, optional=optional, right=True)


def _format_trend(hours: float | None) -> str:
    """Growth of the backlog as h:mm:ss, with its sign."""
    if hours is None:
        return "-"
    return f"{'-' if hours < 0 else '+'}{format_clock(abs(hours) * HOUR)}"


def _format_rate(row: ReportRow) -> str:
    """The hourly rate, with its age if it was old then."""
    return f"${Usd.parse(row.rate).text(3)}{mark_age(row.rate_as_of, row.created)}"
