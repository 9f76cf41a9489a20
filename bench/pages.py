"""CPU time and memory of the pages on a large ledger.

`python -m bench.pages [--runs 1000] [--requests 1000] [PATH ...]`. For each path: processor milliseconds per
request, and the process's resident memory after 100 requests and after all of them. The bucket is empty.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.dashboards import fill_ledger, open_pages

WARM = 100
PATHS = ("/", "/live", "/runs", "/quarantine", "/settings", "/healthz", "/money", "/metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        newest = fill_ledger(home, given.runs)[-1].id
        paths = given.paths or [*PATHS, f"/runs/{newest}"]
        print(f"{'path':<36} {'CPU ms':>8} {'MB after ' + str(WARM):>14} {'MB at the end':>14}")
        for path in paths:
            print(measure(home, path, given.requests))


def measure(home: Path, path: str, requests: int) -> str:
    with open_pages(home) as pages:
        for _ in range(WARM):
            pages.get(path)
        before, begin = memory(), time.process_time()
        for _ in range(requests):
            pages.get(path)
        spent = 1000 * (time.process_time() - begin) / requests
        return f"{path:<36} {spent:8.1f} {before:14.1f} {memory():14.1f}"


def memory() -> float:
    return psutil.Process().memory_info().rss / 1e6


if __name__ == "__main__":
    main()
