"""Report of a period as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from batchscribe import __version__
from batchscribe.core.decide.baselines import BASELINE_LABELS, BaselineName, describe_saved
from batchscribe.core.decide.hosted import HOSTED, format_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.figures import format_count, format_hours
from batchscribe.core.run.period import Period
from batchscribe.core.run.report import QueueSample
from batchscribe.dashboard.pages import render_page
from batchscribe.dashboard.plots import make_plots
from batchscribe.ledger import Ledger
from batchscribe.settings import Settings
from batchscribe.wiring.estimates import read_period

MOST_ROWS = 200
"""Rows of a table; JSON and CSV have all."""
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure; `tone` is good, warn or bad."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to transcribe the same audio; unknown texts are empty."""

    name: str
    cost: str
    each: str
    """Dollars of an audio hour."""
    saved: str
    note: str
    tone: str = ""


def render_report(settings: Settings, ledger: Ledger, now: datetime, last: timedelta) -> str:
    """The report as a single file."""
    return render_page("report.html", "file", **read_report(settings, ledger, now, last))


def read_report(settings: Settings, ledger: Ledger, now: datetime, last: timedelta) -> dict[str, Any]:
    """Values of the template, from the ledger alone."""
    period = read_period(settings, ledger, now, last)
    return make_values(period, ledger.samples(now - last), settings.max_wait)


def make_values(period: Period, samples: Sequence[QueueSample], limit: timedelta) -> dict[str, Any]:
    """Values of the template. `limit`: the longest wait."""
    return {
        "period": period,
        "tiles": list(_make_tiles(period)),
        "plots": make_plots(period, samples, limit),
        "alternatives": list(_list_alternatives(period)),
        "runs": list(reversed(period.runs[-MOST_ROWS:])),
        "sessions": period.sessions[:MOST_ROWS],
        "days": list(reversed(period.days[-MOST_ROWS:])),
        "money": _show_micros,
        "dollars": _show_dollars,
        "version": __version__,
    }


def _show_micros(micros: int) -> str:
    return str(Usd(micros))


def _show_dollars(amount: float) -> str:
    return str(Usd.parse(amount))


def _make_tiles(period: Period) -> Iterator[Tile]:
    sums = period.totals
    yield Tile("GPU cost, at most", str(Usd(sums.cost_micros)), _describe_waste(period))
    if sums.cost_per_audio_hour is not None:
        yield Tile("Per audio hour, at most", _show_dollars(sums.cost_per_audio_hour), "the GPU alone")
    yield from _make_fixed_tile(period)
    yield Tile(
        "Audio transcribed",
        format_hours(sums.audio_hours * _HOUR),
        f"{format_count(sums.chunks_done, 'chunk')}, {sums.chunks_failed} failed",
        "warn" if sums.chunks_failed else "",
    )
    yield Tile("GPU starts", str(sums.starts), f"{format_hours(sums.billed_hours * _HOUR)} billed, at most")
    if sums.savings:
        saved = Usd(sums.savings.saved_micros)
        note = format_savings(sums.savings, period.until).partition(": ")[2]
        yield Tile("Savings, at least", str(saved), note, "bad" if saved.micros < 0 else "good")
    if period.usage.late is not None:
        wait = format_hours((period.usage.p95_wait_hours or 0.0) * _HOUR)
        late = period.usage.late
        yield Tile("p95 of the waits", wait, f"{format_count(late, 'chunk')} late", "bad" if late else "good")
    if period.gpu_share is not None:
        note = f"of {format_hours(period.recorded_hours * _HOUR)}"
        yield Tile("GPU up", f"{100 * period.gpu_share:.1f} %", note)


def _describe_waste(period: Period) -> str:
    wasted = Usd(period.totals.unproductive_cost_micros)
    return f"{wasted} of it for starts without a transcript" if wasted.micros else ""


def _make_fixed_tile(period: Period) -> Iterator[Tile]:
    fixed = period.fixed_costs
    if fixed is None:
        yield Tile("Fixed costs", "unknown", "the prices could not be read; the log has the reason", "warn")
    elif fixed.parts or fixed.unknown:
        names = [part.name.lower() for part in fixed.parts]
        unknown = [f"{name.lower()} unknown: {remedy}" for name, remedy in fixed.unknown.items()]
        tone = "warn" if fixed.unknown else ""
        yield Tile("Fixed costs, a month", str(Usd(fixed.per_month_micros)), "; ".join(names + unknown), tone)


def _list_alternatives(period: Period) -> Iterator[Alternative]:
    """Baselines and hosted services: savings against several are never summed."""
    sums, hours = period.totals, period.totals.audio_hours
    for each in period.baselines:
        known = each.cost_micros is not None and each.saved_micros is not None
        cost = Usd(each.cost_micros or 0)
        yield Alternative(
            name=BASELINE_LABELS[BaselineName(each.against)],
            cost=str(cost) if known else "–",
            each=_divide(cost, hours) if known else "–",
            saved=str(Usd(each.saved_micros or 0)) if known else "–",
            note=describe_saved(each),
            tone="bad" if (each.saved_micros or 0) < 0 else "",
        )
    for service in HOSTED if hours else ():
        price = service.per_audio_hour.times(hours)
        saved = price - Usd(sums.cost_micros)
        yield Alternative(
            name=f"Against {service.name}",
            cost=str(price),
            each=str(service.per_audio_hour),
            saved=str(saved),
            note=f"list price as of {service.as_of}, {service.source}",
            tone="bad" if saved.micros < 0 else "",
        )


def _divide(cost: Usd, hours: float) -> str:
    each = cost.per(hours)
    return str(each) if each else "–"
