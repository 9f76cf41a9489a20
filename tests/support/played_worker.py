"""Runs the played worker as a process on a real store.

Usage: `played_worker.py [HOLD] URL [OPTIONS]`. While the file HOLD is there, the last chunk is not done.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from batchscribe import aws_environment
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Manifest
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.worker import ChunkFate, PlayedWorker, WorkerScript
from batchscribe.wiring.stores import open_store


def main() -> None:
    sys.modules["obstore.auth.boto3"] = None  # type: ignore[assignment]  # beside a GPU there is none
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    hold, url = _arguments(sys.argv[1:])
    root, mark, rest = url.rpartition(keys.RUNS)
    region, endpoint = aws_environment.find_place()
    store = open_store(root.rstrip("/"), region=region, endpoint=endpoint)
    manifest = wire.decode(store.get(mark + rest).data, Manifest)

    def fate(key: str) -> ChunkFate:
        if hold and key == manifest.chunks[-1].key:
            _wait_while(hold)
        return ChunkFate.GOOD

    clock = FakeClock(datetime.now(UTC))
    worker = PlayedWorker(clock, store, manifest, WorkerScript(seconds=lambda: 0.2, fate=fate))
    while worker.alive:
        clock.sleep(1.0)


def _arguments(words: list[str]) -> tuple[Path | None, str]:
    """The file HOLD, if it is named, and the URL; options of a real worker are of no use here."""
    (number,) = (number for number, word in enumerate(words) if keys.RUNS in word)
    return Path(words[0]) if number else None, words[number]


def _wait_while(hold: Path) -> None:
    """A bound for a broken test, not a measure."""
    for _ in range(1200):
        if not hold.exists():
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()
