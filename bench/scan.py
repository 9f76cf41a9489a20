"""The original scanner's request pattern against ours: one bucket, one run, side by side.

`python -m bench.scan [--keys 10000] [--latency-ms 0 40]`. The bucket is moto's, in a process of its
own on 127.0.0.1. The original is imitated, not run: one LIST of everything, then for each session a
HEAD of its marker, a LIST of its audio and a LIST of its transcripts, all through one boto3 client
(it started an `aws` process for each, which costs far more). moto is slower than S3 and faster than
the way to it: `--latency-ms` holds every answer back, as a network would.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

from batchscribe.controller.scan import Scanner
from batchscribe.testing.clock import FakeClock
from batchscribe.wiring.stores import open_store

CHUNKS, DONE = 50, 47
BUCKET = "bench"
LAYER = "layers/layer-0-raw-transcription"


@dataclass(frozen=True)
class Row:
    name: str
    requests: int
    seconds: float
    cpu_seconds: float
    pending: int


class Bucket:
    """The server's process, from here: where it is, how much it was asked, how slow it shall be."""

    def __init__(self, keys: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.requests, self.latency = context.Value("i", 0), context.Value("d", 0.0)
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.requests, self.latency, keys), daemon=True
        )
        self._process.start()
        self.endpoint, self.keys = ours.recv()

    def measure(self, name: str, act: Callable[[], int]) -> Row:
        asked, wall, cpu = self.requests.value, time.perf_counter(), time.process_time()
        pending = act()
        return Row(
            name,
            self.requests.value - asked,
            time.perf_counter() - wall,
            time.process_time() - cpu,
            pending,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, requests: Any, latency: Any, keys: int) -> None:
    answer = WSGIRequestHandler.run_wsgi

    def counted(self: WSGIRequestHandler) -> None:
        with requests.get_lock():
            requests.value += 1
        time.sleep(latency.value)
        answer(self)

    WSGIRequestHandler.run_wsgi = counted  # type: ignore[method-assign]
    logging.getLogger("werkzeug").disabled = True
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    count = 0
    for session in range(keys // (CHUNKS + DONE)):
        for key in _session(session):
            backend.put_object(BUCKET, key, b"sound")
            count += 1
    pipe.send(("http://{}:{}".format(*server.get_host_and_port()), count))
    while True:
        time.sleep(60)


def _session(number: int) -> list[str]:
    folder = f"users/u{number % 20:03}/audio/sessions/session_{number:05}"
    audio = [f"{folder}/chunk-{chunk:03}.webm" for chunk in range(CHUNKS)]
    place = f"{LAYER}/" if number % 2 else "transcription-"  # the newer layout, and the older one
    return audio + [f"{folder}/{place}chunk-{chunk:03}.json" for chunk in range(DONE)]


def original(client: Any) -> int:
    """The request pattern of the original, and what it counts as missing."""
    audio, older = Counter[str](), Counter[str]()
    for key in _listed(client, ""):
        folder, _, name = key.rpartition("/")
        audio[folder] += name.endswith(".webm")
        older[folder] += name.startswith("transcription-")
    missing = 0
    for session in sorted(folder for folder, count in audio.items() if count):
        with suppress(client.exceptions.ClientError):
            client.head_object(Bucket=BUCKET, Key=f"{session}/.transcription-complete")
        chunks = sum(key.endswith(".webm") for key in _listed(client, session + "/"))
        newer = len(_listed(client, f"{session}/{LAYER}/"))
        missing += chunks - (newer or older[session])
    return missing


def _listed(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [row["Key"] for page in pages for row in page.get("Contents", ())]


def ours(endpoint: str) -> int:
    """What a tick does: opens the store and sums up the backlog, tomorrow: no object is too young then."""
    tomorrow = FakeClock(datetime.now(UTC) + timedelta(days=1))
    store = open_store(f"s3://{BUCKET}", endpoint=endpoint, region="us-east-1")
    return Scanner(store, store, clock=tomorrow).backlog().pending


def _show(keys: int, latency: float, rows: list[Row]) -> None:
    print(f"\n{keys} keys, {latency:g} ms held back on every request")
    print(f"{'':<28}{'requests':>10}{'seconds':>10}{'CPU s':>10}{'pending':>10}")
    for row in rows:
        print(
            f"{row.name:<28}{row.requests:>10}{row.seconds:>10.2f}{row.cpu_seconds:>10.2f}{row.pending:>10}"
        )
    first, last = rows
    print(
        f"{'ratio':<28}{first.requests / last.requests:>9.1f}x{first.seconds / last.seconds:>9.1f}x"
        f"{first.cpu_seconds / last.cpu_seconds:>9.1f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--latency-ms", type=float, nargs="*", default=[0.0, 40.0])
    wanted = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    bucket = Bucket(wanted.keys)
    try:
        client = boto3.client("s3", endpoint_url=bucket.endpoint, region_name="us-east-1")
        for latency in wanted.latency_ms:
            bucket.latency.value = latency / 1000
            rows = [
                bucket.measure("the original's pattern", lambda: original(client)),
                bucket.measure("batchscribe", lambda: ours(bucket.endpoint)),
            ]
            assert rows[0].pending == rows[1].pending, "the two do not agree"
            _show(bucket.keys, latency, rows)
    finally:
        bucket.close()


if __name__ == "__main__":
    main()
