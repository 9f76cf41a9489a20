"""The first page: the decision now, the GPU, the run in progress, the money."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchscribe.dashboard.context import Context, page


def routes(context: Context) -> list[Route]:
    """The overview."""
    return [Route("/", partial(show_overview, context))]


def show_overview(context: Context, request: Request) -> Response:
    """The overview."""
    with context.open_ledger() as ledger:
        last = ledger.last_tick()
    return page("overview.html", request, last=last)
