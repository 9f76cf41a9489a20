"""The page of costs: report of a period, and simulation of policies.

The policies are simulated on the arrivals of the period.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchscribe.core.decide.arrivals import make_recorded_arrivals
from batchscribe.core.decide.simulation import Simulation, simulate
from batchscribe.core.decide.simulation_text import explain, format_ratio
from batchscribe.dashboard.context import Context, page
from batchscribe.dashboard.plots import plot_policies
from batchscribe.dashboard.report import read_report
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.wiring.estimates import describe_assumed, make_offer
from batchscribe.wiring.lane import read_lane_offer
from batchscribe.wiring.scheduler import make_policy

CHOICES = {
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
}
DEFAULT = "7d"
MOST_CHUNKS = 20_000
"""Newest chunks in a simulation, which takes about 2 s for them (a laptop's core)."""
REPORT_AGE = timedelta(minutes=10)
"""Of a cached report: its replays of 90 days may take seconds, and it changes with runs and checks."""
FIELDS = {
    "max_wait_hours": (8760.0, "Longest wait, hours"),
    "rate": (10_000.0, "Price of an hour, $"),
    "setup_seconds": (86_400.0, "Set-up, s"),
    "speed": (1_000_000.0, "Speed, x"),
}
"""Numbers of the form, each with its maximum and its label."""
_State = tuple[datetime | None, int]
"""Last tick and number of open runs: what a report depends on."""


def routes(context: Context) -> list[Route]:
    """The page, with its cache."""
    reports, turn = Reports(context), Lock()

    def show_money(request: Request) -> Response:
        last = request.query_params.get("last", DEFAULT)
        last = last if last in CHOICES else DEFAULT
        asked = "simulate" in request.query_params
        result: dict[str, Any] = {"simulated": None, "problem": ""}
        if asked:
            with turn:  # one at a time: a simulation takes a whole core
                result |= _try_simulation(context, CHOICES[last], request.query_params)
        given = {name: request.query_params.get(name, "")[:20] for name in FIELDS}
        return page(
            "money.html",
            request,
            **reports.read(last),
            **result,
            choices=list(CHOICES),
            last=last,
            given=given,
            fields=FIELDS,
        )

    return [Route("/money", show_money)]


class Reports:
    """Last report of each period, read again after changes or REPORT_AGE."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = Lock()
        self._kept: dict[str, tuple[_State, datetime, dict[str, Any]]] = {}

    def read(self, last: str) -> dict[str, Any]:
        """Values of the report's template for one of CHOICES."""
        now = self._context.clock.now()
        with self._context.open_ledger() as ledger, self._turn:
            state = ledger.last_tick(), len(ledger.open_runs())
            kept = self._kept.get(last)
            if kept and kept[0] == state and timedelta(0) <= now - kept[1] < REPORT_AGE:
                return kept[2]
            values = read_report(self._context.settings, ledger, now, CHOICES[last])
            self._kept[last] = state, now, values
        return values


def _try_simulation(context: Context, last: timedelta, given: Mapping[str, str]) -> dict[str, Any]:
    """Values of a simulation, or the problem that prevented it."""
    try:
        found, assumed = run_simulation(context, last, read_numbers(given))
    except BatchscribeError as error:
        return {"problem": str(error)}
    if not found.chunks:
        return {"problem": "The ledger has no arrivals of this period: checks and runs record them."}
    lines = list(explain(found, assumed, make_policy(context.settings).hours))
    return {
        "simulated": found,
        "lines": lines[: -len(found.env)],
        "plot_of_policies": plot_policies(found.policies),
        "ratio": format_ratio,
    }


def read_numbers(given: Mapping[str, str]) -> dict[str, float]:
    """The form's numbers by name, without empty ones. Raises MisconfiguredError."""
    numbers = {}
    for name, (most, label) in FIELDS.items():
        text = given.get(name, "").strip()
        if not text:
            continue
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        least = 0.0 if name in {"rate", "setup_seconds"} else 0.01
        if not least <= number <= most:
            raise MisconfiguredError(f"{label}: {text[:40]!r} is no number from {least:g} to {most:g}")
        numbers[name] = number
    return numbers


def run_simulation(context: Context, last: timedelta, numbers: Mapping[str, float]) -> tuple[Simulation, str]:
    """Simulates each policy on the ledger's arrivals; also returns its assumptions."""
    settings, since = context.settings, context.clock.now() - last
    with context.open_ledger() as ledger:
        arrivals = make_recorded_arrivals(ledger.samples(since), ledger.runs(since))[-MOST_CHUNKS:]
    setup, speed = numbers.get("setup_seconds"), numbers.get("speed")
    offer = make_offer(settings, rate=numbers.get("rate"), setup=setup, speed=speed)
    policy = make_policy(settings)
    if hours := numbers.get("max_wait_hours"):
        policy = replace(policy, max_wait=timedelta(hours=hours))
    lane = None if "rate" in numbers else read_lane_offer(settings)
    found = simulate(arrivals, policy, [offer], "the ledger", lane=lane)
    return found, describe_assumed([offer], setup, speed)
