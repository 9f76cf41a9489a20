"""The guarded buttons; everything else only reads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from batchscribe.controller.commands.redo import list_quarantined, release_quarantined
from batchscribe.controller.observe import PAUSED, observe
from batchscribe.core.decide.policy import FOREVER, Launch, decide
from batchscribe.core.run.cost_block import estimate_block
from batchscribe.core.run.manifest import QuarantineRecord
from batchscribe.core.run.runs import Run
from batchscribe.dashboard.cached import Cached
from batchscribe.dashboard.context import Context, page
from batchscribe.detached import is_running, start_once
from batchscribe.errors import ObjectNotFoundError
from batchscribe.settings import Settings
from batchscribe.wiring.process import read_log_end
from batchscribe.wiring.seams import open_ledger

LONGEST_PAUSE_HOURS = 24 * 30
SHOWN = 1000
"""Quarantined chunks on the page."""
QUARANTINE_AGE = timedelta(seconds=60)
"""After this time the list of quarantined chunks is read again, by the next request."""
PATIENCE = 5.0
"""Seconds that a page waits for a list."""
OUTPUT_BYTES = 16 * 1024
STOP_POLLING = 286
"""Status of an answer after which htmx polls no more."""
_STARTS = threading.Lock()


def routes(context: Context) -> list[Route]:
    """The pages before the buttons, and what the buttons do."""
    quarantined = Cached(partial(list_quarantined, context.output), context.clock)
    return [
        Route("/run", partial(ask_run, context)),
        Route("/run", partial(start_run, context), methods=["POST"]),
        Route("/run/live", partial(show_run_live, context)),
        Route("/pause", partial(pause, context), methods=["POST"]),
        Route("/resume", partial(resume, context), methods=["POST"]),
        Route("/quarantine", partial(show_quarantine, context, quarantined)),
        Route("/quarantine/release", partial(ask_release, context, quarantined)),
        Route("/quarantine/release", partial(release, context, quarantined), methods=["POST"]),
    ]


def ask_run(context: Context, request: Request) -> Response:
    """Preview of a manual run, or the run in progress.

    The preview has its price, and the button that starts it.
    """
    started = read_started(context)
    if started["running"]:
        return page("ask_run.html", request, **started)
    with context.open_scheduler() as made:
        config = replace(made.config, policy=replace(made.config.policy, manual=True))
        seen = observe(made.world, config)
        decision = decide(seen, config.policy)
        launch = decision if isinstance(decision, Launch) else None
        refused = made.find_refusal(check_start=launch is not None)
        costs = made.cost_basis()
    batch = launch.batch if launch else None
    kind = launch.offer.instance_type or "local" if launch else ""
    return page(
        "ask_run.html",
        request,
        decision=decision,
        refused=str(refused or ""),
        batch=batch,
        lines=estimate_block(batch.estimate, kind, seen.now, costs) if batch else [],
        **started,
    )


def show_run_live(context: Context, request: Request) -> Response:
    """Part of the page that changes during a manual run."""
    started = read_started(context)
    status = 200 if started["running"] else STOP_POLLING
    return page("run_live.html", request, status=status, **started)


def read_started(context: Context) -> dict[str, Any]:
    """Values of the last manual run here; `run` may be None."""
    record, output = find_places(context.settings)
    running = is_running(record)
    return {"running": running, "output": read_output(output), "run": find_started(context, record)}


def find_started(context: Context, record: Path) -> Run | None:
    """Newest manual run since the process of `record` began, if any."""
    try:
        begin = datetime.fromtimestamp(record.stat().st_mtime, UTC)
    except OSError:
        return None
    with context.open_ledger() as ledger:
        runs = [run for run in ledger.runs(begin) if run.by_hand and run.created >= begin]
    return runs[-1] if runs else None


def start_run(context: Context, _request: Request) -> Response:
    """Starts `batchscribe run` unless it runs; it outlives this server."""
    record, output = find_places(context.settings)
    with _STARTS:
        if not is_running(record):
            record.unlink(missing_ok=True)
            output.unlink(missing_ok=True)
            command = [sys.executable, "-P", "-m", "batchscribe", "run"]  # no module of this folder
            start_once(record, command, environment=context.settings.child_environment(), log=output)
    return RedirectResponse("/run", status_code=303)


def find_places(settings: Settings) -> tuple[Path, Path]:
    """(identity of the process of the last manual run, its output)."""
    return settings.state_dir / "dashboard-run.json", settings.log_dir / "dashboard-run.log"


def read_output(path: Path) -> str:
    """End of the output of the last manual run; empty without one."""
    try:
        return "\n".join(read_log_end(path, OUTPUT_BYTES)[0])
    except OSError:
        return ""


def pause(context: Context, request: Request) -> Response:
    """Suspends scheduling, with `?for=8h` for these hours, else until it is resumed."""
    length = request.query_params.get("for", "").removesuffix("h")
    hours = int(length) if length.isascii() and length.isdigit() and len(length) < 4 else 0
    now = context.clock.now()
    until = now + timedelta(hours=min(hours, LONGEST_PAUSE_HOURS)) if hours else FOREVER
    return put_pause(context, until.isoformat())


def resume(context: Context, _request: Request) -> Response:
    """Resumes scheduling."""
    return put_pause(context, None)


def put_pause(context: Context, until: str | None) -> Response:
    """Writes the end of the pause into the ledger."""
    with open_ledger(context.settings) as ledger:
        ledger.put(PAUSED, until)
    return RedirectResponse("/", status_code=303)


def show_quarantine(
    context: Context, quarantined: Cached[Sequence[QuarantineRecord]], request: Request
) -> Response:
    """Quarantined chunks with their last errors, as of the last listing."""
    reading = context.renew(quarantined, QUARANTINE_AGE, patience=PATIENCE)
    records = (reading.value or ()) if reading else ()
    return page("quarantine.html", request, reading=reading, records=records[:SHOWN], total=len(records))


def ask_release(
    context: Context, quarantined: Cached[Sequence[QuarantineRecord]], request: Request
) -> Response:
    """Asks before `?key=` is released, or all chunks without a key."""
    reading = context.renew(quarantined, QUARANTINE_AGE, patience=PATIENCE)
    key = request.query_params.get("key", "")
    records = [each for each in (reading.value or ()) if key in {"", each.key}] if reading else []
    if not records:
        raise ObjectNotFoundError(f"{key!r} is not in quarantine" if key else "nothing is in quarantine")
    return page("ask_release.html", request, key=key, count=len(records), record=records[0])


def release(context: Context, quarantined: Cached[Sequence[QuarantineRecord]], request: Request) -> Response:
    """Forgets the failures of `?key=`, or of all chunks."""
    key = request.query_params.get("key", "")
    release_quarantined(context.output, [key] if key else None)
    quarantined.refresh(patience=PATIENCE)
    return RedirectResponse("/quarantine", status_code=303)
