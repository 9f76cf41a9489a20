"""Pages on request: a chunk's history, the settings, the doctor's checks."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from batchscribe.controller.commands.why import NAMED, find_similar, list_events, read_history
from batchscribe.core.decide.policy import decide
from batchscribe.core.run.host import Finding
from batchscribe.core.scan.backlog import ChunkState
from batchscribe.dashboard.cached import Cached
from batchscribe.dashboard.context import Context, page
from batchscribe.errors import ObjectNotFoundError, PermanentError
from batchscribe.settings import Settings
from batchscribe.wiring.doctor import open_preconditions
from batchscribe.wiring.scanners import open_scanner
from batchscribe.wiring.scheduler import derived_values

Checks = tuple[tuple[str, Finding], ...]


def routes(context: Context) -> list[Route]:
    """The pages /why, /settings and /doctor."""
    checks = Cached(partial(run_checks, context.settings), context.clock)
    return [
        Route("/why", partial(explain_chunk, context)),
        Route("/settings", partial(show_settings, context.settings)),
        Route("/doctor", partial(show_checks, checks)),
        Route("/doctor/live", partial(show_checks_live, checks)),
        Route("/doctor", partial(start_checks, checks), methods=["POST"]),
    ]


def explain_chunk(context: Context, request: Request) -> Response:
    """The history of the chunk `?key=`; a form without it.

    `key` is a whole key, or a part that only one has.
    """
    asked = request.query_params.get("key", "")
    key = asked.removeprefix(context.settings.source.rstrip("/") + "/")
    life, error, similar = None, "", list[str]()
    if key:
        scanner = open_scanner(context.settings)
        try:
            life = read_history(scanner, key, max_wait=context.settings.max_wait)
        except ObjectNotFoundError as failure:
            error = str(failure)
            similar = [audio.info.key for audio in find_similar(scanner, key)[:NAMED]]
        except PermanentError as failure:
            error = str(failure)
    return page(
        "why.html",
        request,
        asked=asked,
        life=life,
        error=error,
        similar=similar,
        next_tick=find_next_tick(context) if life and life.state is ChunkState.PENDING else "",
        events=sorted(list_events(life)) if life else [],
    )


def find_next_tick(context: Context) -> str:
    """Decision on the last poll of store and cloud; empty without one."""
    around = context.around.last
    observed = around.value.observed if around and around.value else None
    if observed is None:
        return ""
    decision = decide(observed, context.scheduler.config.policy)
    return f"would {type(decision).__name__.lower()}: {decision.reason.sentence}"


def show_settings(settings: Settings, request: Request) -> Response:
    """The effective settings, with the origin of each; secrets are masked."""
    return page(
        "settings.html",
        request,
        rows=settings.list_effective(),
        derived=derived_values(settings),
        warnings=settings.warnings,
        folder=settings.folder,
    )


def run_checks(settings: Settings) -> Checks:
    """The doctor's checks; starts no GPU."""
    return tuple(open_preconditions(settings).check())


def show_checks(checks: Cached[Checks], request: Request) -> Response:
    """The last results of the checks, and the button that starts them."""
    return page("doctor.html", request, **read_checks(checks))


def show_checks_live(checks: Cached[Checks], request: Request) -> Response:
    """The part of the page that changes while checks are in progress."""
    return page("doctor_live.html", request, **read_checks(checks))


def start_checks(checks: Cached[Checks], _request: Request) -> Response:
    """Starts the checks in a thread."""
    checks.refresh()
    return RedirectResponse("/doctor", status_code=303)


def read_checks(checks: Cached[Checks]) -> dict[str, Any]:
    """Values of both templates."""
    last = checks.last
    rows = (last.value or ()) if last else ()
    groups = [(name, [row[1] for row in group]) for name, group in groupby(rows, key=itemgetter(0))]
    return {"last": last, "groups": groups, "reading": checks.reading}
