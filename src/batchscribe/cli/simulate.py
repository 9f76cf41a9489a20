"""`simulate`: policies replayed on past arrivals, beside the optimum."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from batchscribe.cli.app import App, json_option, pass_app, print_json, source_option
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.cli.terminal.plot import check_plot, draw_points
from batchscribe.core.decide.arrivals import Arrival, parse_arrivals
from batchscribe.core.decide.hours import Hours
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import PolicyName
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.simulation import PolicyResult, Simulation, list_rows
from batchscribe.core.decide.simulation import simulate as simulate_policies
from batchscribe.core.decide.simulation_text import explain, format_ratio, format_speed, list_points
from batchscribe.settings import Settings
from batchscribe.wiring.estimates import describe_assumed, make_offer, read_arrivals
from batchscribe.wiring.lane import read_lane_offer
from batchscribe.wiring.scheduler import make_policy


class FiniteRange(click.FloatRange):
    """A range without infinity, and without what is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number in the range.", param, ctx)
        return number


@click.command()
@source_option
@click.option(
    "--arrivals",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with the header arrived,audio_seconds; default: the source's time stamps, or the ledger.",
)
@click.option(
    "--rate", type=FiniteRange(0, 10_000), metavar="DOLLARS", help="Price of an hour; default: as for `tick`."
)
@click.option(
    "--setup-seconds",
    type=FiniteRange(0, 86_400),
    metavar="SECONDS",
    help="Billed seconds of a start besides its work; default: measured by runs, or assumed.",
)
@click.option(
    "--speed",
    type=FiniteRange(0.01, 1_000_000),
    metavar="FACTOR",
    help="Audio seconds for each second of work; default: measured by runs, or assumed.",
)
@click.option(
    "--max-wait-hours",
    type=FiniteRange(0, 8760, min_open=True),
    metavar="HOURS",
    help="Longest wait instead of BATCH_MAX_WAIT_HOURS.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw cost against wait into a .png, .svg or .pdf.",
)
@json_option
@pass_app
def simulate(
    app: App,
    *,
    arrivals: Path | None,
    rate: float | None,
    setup_seconds: float | None,
    speed: float | None,
    max_wait_hours: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Cost and waits of each policy on past arrivals, beside the optimum.

    Nothing is started. Every simulated start succeeds, at a check of the schedule.
    """
    if plot:
        check_plot(plot)
    price = partial(make_offer, app.settings, rate=rate, setup=setup_seconds, speed=speed)
    offers = [price("")]
    if rate is None:
        others = dict.fromkeys(app.settings.instance_types)
        offers += [price(kind) for kind in others if kind != offers[0].instance_type]
    trace, origin = _read_trace(app.settings, offers[0], arrivals)
    policy = make_policy(app.settings)
    if max_wait_hours is not None:
        policy = replace(policy, max_wait=timedelta(hours=max_wait_hours))
    lane = read_lane_offer(app.settings) if rate is None else None
    rows = len(list_rows(policy, offers, lane))
    with _show_progress(len(trace) * len(PolicyName) * rows, quiet=app.quiet) as report:
        found = simulate_policies(trace, policy, offers, origin, report, lane=lane)
    if plot:
        draw_points(
            plot,
            list_points(found.policies),
            across="p95 of the waits, hours",
            up="dollars",
            least_height=0.01,
        )
    if as_json:
        print_json(found)
    else:
        _print_simulation(app, found, describe_assumed(offers, setup_seconds, speed), policy.hours)


def _read_trace(settings: Settings, offer: Offer, file: Path | None) -> tuple[tuple[Arrival, ...], str]:
    if file is None:
        return read_arrivals(settings, offer.priors)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return parse_arrivals(lines, str(file)), str(file)


@contextmanager
def _show_progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal; yields what advances it."""
    hidden = quiet or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        row = bar.add_task("simulating", total=total)
        yield lambda done: bar.advance(row, done)


def _print_simulation(app: App, found: Simulation, assumed: str, hours: Hours | None) -> None:
    if not found.chunks:
        app.console.print(f"Nothing to simulate: no audio in {found.origin}.", markup=False)
        return
    print_table(app.console, _build_columns(found.policies))
    if len(found.offers) > 1:
        app.console.print()
        print_table(app.console, _build_offer_columns(found))
    for line in explain(found, assumed, hours):
        app.console.print(line, markup=False)


def _build_columns(rows: Sequence[PolicyResult]) -> list[Column]:
    waits = [row.wait_hours for row in rows]
    return [
        Column("Policy", [row.name for row in rows]),
        Column("Cost", [str(Usd(row.dollars_micros)) for row in rows], right=True),
        Column(
            "$/audio hour", [f"{row.dollars_per_audio_hour or 0:.4f}" for row in rows], optional=1, right=True
        ),
        Column("Starts", [str(row.starts) for row in rows], right=True),
        Column("Mean wait", [f"{wait.mean:.2f} h" for wait in waits], right=True),
        Column("p95", [f"{wait.p95:.2f} h" for wait in waits], right=True),
        Column("Longest", [f"{wait.max:.2f} h" for wait in waits], optional=2, right=True),
        Column("Late", [str(row.late) for row in rows], right=True),
        Column("Ratio", [format_ratio(row) for row in rows], right=True),
    ]


def _build_offer_columns(found: Simulation) -> list[Column]:
    """Columns of instance types, each with its cheapest policy."""
    best = [offer.find_best(found.present) for offer in found.offers]
    return [
        Column("Type", [offer.instance_type for offer in found.offers]),
        Column("$/h", [f"{offer.rate:.4f}" for offer in found.offers], right=True),
        Column("Speed", [format_speed(offer.speed) for offer in found.offers], right=True),
        Column("Lowest bill", [str(Usd(each.dollars_micros)) for each in best], right=True),
        Column("Policy", [each.name for each in best]),
        Column("p95", [f"{each.wait_hours.p95:.2f} h" for each in best], right=True),
        Column("Late", [str(each.late) for each in best], right=True),
    ]
