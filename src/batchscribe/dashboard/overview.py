"""The first page, and /healthz."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from batchscribe.controller.commands.attention import check_health, list_attention
from batchscribe.controller.commands.overview import Overview, overview
from batchscribe.controller.commands.rehearsal import describe_proof
from batchscribe.core.decide.hosted import Savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.planned_start import find_waiting_since
from batchscribe.core.decide.start_sum import describe_sum
from batchscribe.dashboard.context import Context, page
from batchscribe.errors import BatchscribeError

OBSERVED = timedelta(seconds=60)
"""Store and cloud are polled again after this time, by the next request."""
FIRST_PATIENCE = 2.0
"""Seconds that the first page waits for the first poll of store and cloud."""


def routes(context: Context) -> list[Route]:
    """The overview, its live part, and the health check."""
    return [
        Route("/", partial(show_overview, context)),
        Route("/live", partial(show_live, context)),
        Route("/healthz", partial(report_health, context)),
    ]


def show_overview(context: Context, request: Request) -> Response:
    """The overview; the browser then polls its live part."""
    return page("overview.html", request, **read_values(context, patience=FIRST_PATIENCE))


def show_live(context: Context, request: Request) -> Response:
    """The part of the overview that changes."""
    return page("live.html", request, **read_values(context))


def report_health(context: Context, _request: Request) -> Response:
    """Status 200 if all is well, else 503.

    All is well if the ledger is readable, no run is past its deadline, and the last tick is recent.
    """
    try:
        with context.open_scheduler() as made:
            findings = check_health(made.world, made.config)
    except BatchscribeError as error:
        return JSONResponse({"ok": False, "reasons": [str(error)]}, status_code=503)
    reasons = [each.detail for each in findings if not each.ok]
    return JSONResponse({"ok": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)


def read_values(context: Context, *, patience: float = 0.0) -> dict[str, Any]:
    """Values of the template: the overview, and what needs attention."""
    around = context.renew(context.around, OBSERVED, patience=patience)
    schedule = context.schedule.get(OBSERVED, patience=patience)
    started_by = (schedule.value if schedule else None) or "unknown: not read yet"
    with context.open_scheduler() as made:
        now = overview(made.world, made.config, around.value) if around and around.value else None
        found = list_attention(now, made.world, made.config, started_by) if now else ()
    return {
        "now": now,
        "error": around.error if around else "",
        "attention": found,
        "policy": context.scheduler.config.policy,
        "source": context.settings.source,
        "total": tuple(describe_sum(now.total)) if now and now.total else (),
        "decided": type(now.decision).__name__.lower() if now and now.decision else "",
        "waited": _measure_wait(now),
        "saved": _describe_savings(now.savings if now else None),
        "proofs": [(proof, describe_proof(proof)) for proof in now.proofs] if now else [],
    }


def _measure_wait(now: Overview | None) -> timedelta | None:
    """Wait of the oldest chunk, failed ones included, if any waits."""
    if now is None or now.observed is None:
        return None
    since = find_waiting_since(now.observed)
    return now.at - since if since else None


def _describe_savings(savings: Savings | None) -> str:
    if savings is None:
        return "no audio yet"
    amount = Usd(abs(savings.saved_micros))
    if savings.saved_micros < 0:
        return f"{savings.against} would be {amount} cheaper"
    return f"saved at least {amount} against {savings.against}"
