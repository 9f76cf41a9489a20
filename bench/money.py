"""CPU seconds of the page of costs and of /metrics, and memory over 1,000 requests: `python -m bench.money`.

The ledger has 90 days of checks, each 15 minutes, and 1,000 runs of 15 chunks.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request

from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run
from batchscribe.dashboard.context import Context, open_context
from batchscribe.dashboard.money import CHOICES
from batchscribe.dashboard.server import create_app
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import load
from support.ledgers import settled_run

RUNS, CHUNKS, DAYS, REQUESTS = 1000, 15, 90, 1000
CHECK = timedelta(minutes=15)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = open_ledger_of_runs(Path(folder))
        app = create_app(context)
        for last in CHOICES:
            times = [measure(app, "/money", f"last={last}") for _ in range(2)]
            print(f"/money?last={last}: {times[0]:.3f} s after a tick, {times[1]:.3f} s again")
        for query in ("last=30d&simulate=1", "last=90d&simulate=1"):
            print(f"/money?{query}: {measure(app, '/money', query):.3f} s")
        print(f"/metrics: {min(measure(app, '/metrics') for _ in range(3)):.3f} s")
        for path, query in (("/money", "last=7d"), ("/metrics", "")):
            before = measure_memory()
            for _ in range(REQUESTS):
                measure(app, path, query)
            print(f"{path}: {measure_memory() - before:.1f} MB more after {REQUESTS} requests")


def open_ledger_of_runs(folder: Path) -> Context:
    (folder / "rec").mkdir()
    context = open_context(load({"BATCH_SOURCE": "rec", "GPU_HOURLY_COST": "0.526"}, folder=folder))
    with Ledger(context.settings.state_dir / FILE_NAME, pragmas={"synchronous": "OFF"}) as ledger:
        for each in make_records(context.clock.now()):
            if isinstance(each, Run):
                ledger.save_run(each, at=each.settled or each.created)
            else:
                ledger.save_sample(each)
    return context


def make_records(now: datetime) -> Iterator[Run | QueueSample]:
    begin, every = now - timedelta(days=DAYS), timedelta(days=DAYS) / RUNS
    for number in range(RUNS):
        at = begin + number * every
        yield settled_run(f"run-{number}", at + every / 2, CHUNKS)
        for check in range(int(every / CHECK)):
            pending = min(CHUNKS, check + 1) if check * CHECK < every / 2 else 0
            yield QueueSample(
                at=at + check * CHECK,
                pending=pending,
                triggering=pending,
                waiting=0,
                oldest=at if pending else None,
                decision="below-threshold",
                sentence="",
            )


def measure(app: Starlette, path: str, query: str = "") -> float:
    """CPU seconds of one request, without the server's parsing."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        "app": app,
    }
    (route,) = (each for each in app.routes if getattr(each, "path", "") == path)
    begin = time.process_time()
    answer = route.endpoint(Request(scope))  # type: ignore[attr-defined]
    assert answer.status_code == 200
    return time.process_time() - begin


def measure_memory() -> float:
    """Megabytes in use at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
