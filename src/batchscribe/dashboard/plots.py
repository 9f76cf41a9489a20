"""Plots of a report's numbers, as specifications for plots.js (templates/macros.html describes them)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import TypedDict

from batchscribe.core.decide.fixed import MONTH_HOURS
from batchscribe.core.decide.hosted import HOSTED
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.simulation import PolicyResult
from batchscribe.core.decide.simulation_text import list_points
from batchscribe.core.run.period import UNDIVIDED, DayRow, Period
from batchscribe.core.run.report import QueueSample

MOST_POINTS = 400
"""Of a line: more than the pixels of a phone's screen, and few enough for a table of its numbers."""
MOST_BARS = 100
_PARTS = {
    "boot": "GPU: boot",
    "load": "GPU: model load",
    "work": "GPU: work",
    "idle": "GPU: idle",
    "minimum": "GPU: 60 s minimum",
    UNDIVIDED: "GPU: not divided",
    "address": "Address",
    "requests": "Requests",
}
"""Components of a day's cost, and their names in plots."""
_DAY = timedelta(days=1)
Values = list[float | None]


class Series(TypedDict):
    name: str
    values: Values
    dash: bool


class Plot(TypedDict):
    """Specification of a plot. `labels` are texts of each `x`."""

    title: str
    unit: str
    kind: str
    stacked: bool
    numeric: bool
    """Numbers in `x` are no times."""
    across: str
    x: list[float] | list[str]
    labels: list[str]
    series: list[Series]


class Bar(TypedDict):
    """Consecutive days of a plot, and their part of a month."""

    label: str
    days: list[DayRow]
    months: float


def make_plots(period: Period, samples: Sequence[QueueSample], limit: timedelta) -> list[Plot]:
    """The plots of a report. `limit`: the longest wait.

    Left out are plots without a number, and lines of one point: the tables have it.
    """
    plots = (
        plot_costs(period),
        plot_backlog(period, samples),
        plot_waits(period, limit),
        plot_unit_costs(period),
        plot_alternatives(period),
        plot_runs(period, "Speed by run", "x", "Audio for each second of work", "audio_per_second"),
        plot_runs(
            period, "Set-up by run", "s", "From the start request to the first window", "setup_seconds"
        ),
    )
    return [plot for plot in plots if _is_worth_drawing(plot)]


def _is_worth_drawing(plot: Plot) -> bool:
    least = 1 if plot["kind"] == "bars" else 2
    return len(plot["x"]) >= least and any(value for each in plot["series"] for value in each["values"])


def plot_costs(period: Period) -> Plot:
    """Dollars of each day by component, fixed costs included."""
    bars = _make_bars(period)
    parts = [
        make_series(name, [_sum_part(bar["days"], part) for bar in bars]) for part, name in _PARTS.items()
    ]
    fixed = [
        make_series(f"Fixed: {each.name.lower()}", [each.per_month * bar["months"] for bar in bars])
        for each in (period.fixed_costs.parts if period.fixed_costs else ())
    ]
    used = [each for each in (*parts, *fixed) if any(each["values"])]
    span = math.ceil(_count_days(period) / len(bars)) if bars else 1
    title = "Dollars per day, by component" if span == 1 else f"Dollars per {span} days, by component"
    return _make_plot(title, "$", "bars", bars, used, stacked=True)


def plot_unit_costs(period: Period) -> Plot:
    """Dollars of an audio hour, beside the prices of hosted services."""
    bars = [bar for bar in _make_bars(period) if _sum_hours(bar["days"])]
    month = period.fixed_costs.per_month if period.fixed_costs else 0.0
    series = [
        make_series("GPU", [_sum_dollars(bar["days"]) / _sum_hours(bar["days"]) for bar in bars]),
        make_series(
            "GPU and fixed costs",
            [(_sum_dollars(bar["days"]) + month * bar["months"]) / _sum_hours(bar["days"]) for bar in bars],
        ),
        *(
            make_series(each.name, [each.per_audio_hour.dollars] * len(bars), dash=True)
            for each in HOSTED
            if bars
        ),
    ]
    return _make_plot("Dollars per audio hour, beside hosted prices", "$", "lines", bars, series)


def plot_backlog(period: Period, samples: Sequence[QueueSample]) -> Plot:
    """Chunks at each check, and those of the starts between them."""
    found: dict[datetime, tuple[int, int | None]] = {
        run.created: (taken, None) for run in period.runs if (taken := run.chunks_done + run.chunks_failed)
    }
    found |= {each.at: (each.pending, each.waiting) for each in samples}
    rows = sorted((at, pending, waiting) for at, (pending, waiting) in found.items() if at >= period.since)
    kept = list(_thin_out(rows))
    return _make_time_plot(
        "Backlog",
        "chunks",
        [at for at, _pending, _waiting in kept],
        [
            make_series("Pending", [pending for _at, pending, _waiting in kept]),
            make_series("Waiting to be complete", [waiting for _at, _pending, waiting in kept]),
        ],
    )


def plot_waits(period: Period, limit: timedelta) -> Plot:
    """Hours from a chunk's first check to its transcript, by run."""
    runs = [run for run in period.runs if run.usage.max_wait_hours is not None and run.settled]
    hours = limit / timedelta(hours=1)
    return _make_time_plot(
        "Waits by run",
        "h",
        [run.settled for run in runs if run.settled],
        [
            make_series("Longest", [run.usage.max_wait_hours for run in runs]),
            make_series("p95", [run.usage.p95_wait_hours for run in runs]),
            make_series("Mean", [run.usage.mean_wait_hours for run in runs]),
            make_series("Limit", [hours for _ in runs], dash=True),
        ],
    )


def plot_runs(period: Period, title: str, unit: str, name: str, field: str) -> Plot:
    """One number of each run."""
    runs = [run for run in period.runs if getattr(run, field) is not None]
    values = [getattr(run, field) for run in runs]
    return _make_time_plot(
        title, unit, [run.created for run in runs], [make_series(name, values)], kind="points"
    )


def plot_alternatives(period: Period) -> Plot:
    """Dollars for the same audio by other rules, always-on GPUs excluded."""
    rows = [("Paid", period.totals.cost)] if period.baselines else []
    names = {"optimum": "Optimum", "threshold-100": "At 100 chunks", "each-arrival": "Each arrival"}
    costs = {each.against: each.cost for each in period.baselines}
    rows += [(name, cost) for key, name in names.items() if (cost := costs.get(key)) is not None]
    if rows and period.totals.savings:
        rows.append((period.totals.savings.against, period.totals.savings.hosted))
    return Plot(
        title="Dollars for the same audio",
        unit="$",
        kind="bars",
        stacked=False,
        numeric=False,
        across="Rule",
        x=[name for name, _ in rows],
        labels=[name for name, _ in rows],
        series=[make_series("Dollars", [cost for _, cost in rows])],
    )


def plot_policies(results: Sequence[PolicyResult]) -> Plot:
    """Cost of each policy against the 95th percentile of its waits."""
    points = sorted(list_points(results), key=itemgetter(1))
    return Plot(
        title="Cost against wait",
        unit="$",
        kind="points",
        stacked=False,
        numeric=True,
        across="p95 of the waits, h",
        x=[wait for _, wait, _ in points],
        labels=[f"{wait:.2f}" for _, wait, _ in points],
        series=[
            make_series(names, [cost if other == names else None for other, _, _ in points])
            for names, _, cost in points
        ],
    )


def make_series(name: str, values: Iterable[float | None], *, dash: bool = False) -> Series:
    return Series(name=name, values=list(values), dash=dash)


def _make_time_plot(
    title: str, unit: str, times: Sequence[datetime], series: list[Series], *, kind: str = "lines"
) -> Plot:
    return Plot(
        title=title,
        unit=unit,
        kind=kind,
        stacked=False,
        numeric=False,
        across="Time (UTC)",
        x=[at.timestamp() for at in times],
        labels=[f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" for at in times],
        series=series,
    )


def _make_plot(
    title: str, unit: str, kind: str, bars: Sequence[Bar], series: list[Series], *, stacked: bool = False
) -> Plot:
    labels = [bar["label"] for bar in bars]
    return Plot(
        title=title,
        unit=unit,
        kind=kind,
        stacked=stacked,
        numeric=False,
        across="Day (UTC)",
        x=[label[5:] for label in labels],
        labels=labels,
        series=series,
    )


def _make_bars(period: Period) -> list[Bar]:
    """The recorded days in at most MOST_BARS bars of equal length."""
    count, first = _count_days(period), _find_first_day(period)
    rows = {row.day: row for row in period.days}
    span = math.ceil(count / MOST_BARS)
    return [_make_bar(period, rows, first + start * _DAY, span) for start in range(0, count, span or 1)]


def _make_bar(period: Period, rows: dict[str, DayRow], first: date, span: int) -> Bar:
    days = [(first + number * _DAY).isoformat() for number in range(span)]
    midnight = datetime.combine(first, datetime.min.time(), UTC)
    hours = min(period.until, midnight + span * _DAY) - max(_find_begin(period), midnight)
    return Bar(
        label=days[0],
        days=[rows[day] for day in days if day in rows],
        months=max(0.0, hours / timedelta(hours=MONTH_HOURS)),
    )


def _find_begin(period: Period) -> datetime:
    return period.until - timedelta(hours=period.recorded_hours)


def _find_first_day(period: Period) -> date:
    return min([_find_begin(period).date(), *(date.fromisoformat(row.day) for row in period.days)])


def _count_days(period: Period) -> int:
    if not period.days and not period.recorded_hours:
        return 0
    return (period.until.date() - _find_first_day(period)).days + 1


def _sum_part(days: Iterable[DayRow], part: str) -> float:
    return Usd(sum((day.cost_parts_micros | day.other_costs_micros).get(part, 0) for day in days)).dollars


def _sum_dollars(days: Iterable[DayRow]) -> float:
    """Dollars of the days' runs, address and requests included."""
    return Usd(sum(day.cost_micros + sum(day.other_costs_micros.values()) for day in days)).dollars


def _sum_hours(days: Iterable[DayRow]) -> float:
    return sum(day.audio_hours for day in days)


_Row = tuple[datetime, int, int | None]


def _thin_out(rows: Sequence[_Row]) -> Iterator[_Row]:
    """Keeps the peak of each equal part of the rows."""
    size = math.ceil(len(rows) / MOST_POINTS) or 1
    for begin in range(0, len(rows), size):
        yield max(rows[begin : begin + size], key=lambda row: row[1])
