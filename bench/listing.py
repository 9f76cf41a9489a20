"""A scan of a large bucket beside other ways to list it: one canned server, one run.

`python -m bench.listing [--keys 1000000] [--latency-ms 40] [--shape sessions|flat] [--tools PYTHON]`.
Each way is a process of its own, so that its CPU seconds and its peak memory are its own. `PYTHON` is the
interpreter of an environment with boto3 and awscli, which no part of this project needs:
`python -m venv tools && tools/bin/pip install boto3 awscli`, then `--tools tools/bin/python`.

The goal of a scan is 1.4 times the larger of pages x latency / streams and its CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from batchscribe.adapters.stores.ranges import STREAMS, RangeLister
from batchscribe.controller.scan import Scanner
from batchscribe.testing.clock import FakeClock
from batchscribe.wiring.stores import open_store
from bench.canned_s3 import NOW, PAGE, SHAPES, CannedBucket, canned_bucket

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
BOTO3 = """
import boto3, sys
pages = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1").get_paginator("list_objects_v2")
print(sum(len(page["Contents"]) for page in pages.paginate(Bucket="bench")))
"""
OBSTORE = """
import obstore, sys
from obstore.store import S3Store
options = {"allow_http": True}
store = S3Store("bench", endpoint=sys.argv[1], region="us-east-1", client_options=options)
print(sum(len(page) for page in obstore.list(store, chunk_size=1000)))
"""
"""The floor of a scan's CPU seconds: transport, XML and rows, without a use of them."""


@dataclass(frozen=True)
class Row:
    name: str
    requests: int
    wall: float
    cpu: float
    peak_mb: float


def measure(name: str, command: Sequence[str], bucket: CannedBucket) -> Row:
    """Runs a process to its end; CPU seconds of both kinds, peak of its resident memory."""
    before, started = bucket.requests.value, time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | KEYS)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{name} failed"
    requests = bucket.requests.value - before
    return Row(name, requests, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _list_ways(bucket: CannedBucket, state: str, tools: str | None) -> list[tuple[str, list[str]]]:
    """(name, command) of each way."""
    ours = [sys.executable, "-m", "bench.listing", "--scan", bucket.endpoint]
    ways = [
        ("scan, nothing remembered", [*ours, "--state", state]),
        ("scan", [*ours, "--state", state]),
        ("scan in one stream", ours),
        ("obstore's listing alone", [sys.executable, "-c", OBSTORE, bucket.endpoint]),
    ]
    if tools is None:
        return ways
    aws = [str(Path(tools).with_name("aws")), "--endpoint-url", bucket.endpoint]
    return [
        *ways,
        ("boto3's paginator", [tools, "-c", BOTO3, bucket.endpoint]),
        ("aws s3 ls --recursive", [*aws, "s3", "ls", "s3://bench", "--recursive"]),
    ]


def scan(endpoint: str, state: str | None) -> None:
    """A tick's listing and sums; without `state` in one stream."""
    store = open_store("s3://bench", endpoint=endpoint, region="us-east-1")
    scanner = Scanner(store, store, clock=FakeClock(NOW))
    if state is not None:
        scanner.list_all = RangeLister(Path(state))
    print(scanner.backlog().pending)


def compare(keys: int, latency: float, shape: str, tools: str | None) -> None:
    """Prints a row for each way, and the goal."""
    print(f"{keys:,} keys ({shape}), {latency * 1000:g} ms for each request, {STREAMS} streams")
    print(
        f"{'':<26}{'requests':>10}{'wall s':>9}{'CPU s':>9}{'goal s':>9}{'peak MB':>9}{'us/key':>9}",
        flush=True,
    )
    with canned_bucket(keys, shape, latency) as bucket, TemporaryDirectory() as state:
        for name, command in _list_ways(bucket, state, tools):
            row = measure(name, command, bucket)
            goal = 1.4 * max(keys / PAGE * latency / STREAMS, row.cpu)
            print(
                f"{row.name:<26}{row.requests:>10}{row.wall:>9.1f}{row.cpu:>9.1f}{goal:>9.1f}{row.peak_mb:>9.0f}"
                f"{row.cpu / keys * 1e6:>9.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=40.0)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sessions")
    parser.add_argument("--tools", help="interpreter of an environment with boto3 and awscli")
    parser.add_argument("--scan", help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.scan:
        os.environ |= KEYS
        scan(wanted.scan, wanted.state)
    else:
        compare(wanted.keys, wanted.latency_ms / 1000, wanted.shape, wanted.tools)


if __name__ == "__main__":
    main()
