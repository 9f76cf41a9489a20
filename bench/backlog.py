"""Processor time of a tick at 1,000 and at 100,000 pending chunks, side by side, on doubles.

`python -m bench.backlog [--chunks 1000 100000]`. The production tick runs on an in-memory store, with a
batch of at most 20,000 chunks for each manifest; a played worker publishes it between two passes, which is
not measured. The first pass lists, decides and writes the manifest, the last one lists again, settles and
writes the session files.
"""

from __future__ import annotations

import argparse
import logging
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import structlog

from batchscribe.controller.tick import tick
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.manifest import WorkerEnd
from batchscribe.core.text.transcripts import encode
from batchscribe.testing.worker import make_transcript
from support.world import Stage, stage

PASS_SECONDS = 60.0
EACH_SESSION = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1_000, 100_000])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(
        f"{'chunks':>8} {'batch':>6} {'first':>10} {'passes':>6} {'in all':>10} {'the last':>11} {'peak':>8}"
    )
    for count in parser.parse_args().chunks:
        print_row(count)


def print_row(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        at = stage(Path(folder), policy=Policy(max_runtime=timedelta(hours=24)))
        at.worker.seconds_each = math.inf
        for number in range(count // EACH_SESSION):
            at.upload(EACH_SESSION, session=f"user{number % 50}/session{number:05}")
        at.clock.sleep(timedelta(hours=10).total_seconds())
        first = measure(lambda: tick(at.world, at.config, wait=False))
        (run,) = at.ledger.open_runs()
        passes = [measure(lambda: tick(at.world, at.config, wait=False)) for _ in follow(at)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        times = f"{first:8.2f} s {len(passes):6} {sum(passes):8.2f} s {passes[-1]:9.2f} s"
        print(f"{count:8} {run.planned_chunks:6} {times} {peak:5.0f} MB", flush=True)


def follow(at: Stage) -> Iterator[None]:
    """Yields before each pass until no run is open; workers publish everything between two passes."""
    ended = set[tuple[str, int]]()
    while at.ledger.open_runs():
        yield
        at.clock.sleep(PASS_SECONDS)
        for name in at.worker.started.keys() - ended:
            worker = at.worker.started[name]
            for chunk in worker.manifest.chunks:
                transcript = make_transcript(chunk, worker.manifest, at=at.clock.now())
                at.store.create(chunk.transcript, encode(transcript))
            worker.end(WorkerEnd.FINISHED)
            ended.add(name)


def measure(act: Callable[[], object]) -> float:
    """Seconds of CPU."""
    begin = time.process_time()
    act()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
