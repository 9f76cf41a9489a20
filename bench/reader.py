"""The sessions' pages: CPU with 10,000 sessions and with ten hours in one, memory over 1,000 requests.

`python -m bench.reader [--sessions 10000] [--chunks 7200] [--requests 1000]`. The store is in memory, and the
requests go through the whole application without a network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from starlette.testclient import TestClient

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript, Word, encode
from batchscribe.dashboard.context import open_context
from batchscribe.dashboard.server import create_app
from batchscribe.dashboard.sessions import make_url
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOURS, WORDS = 10, 100_000
TEXT = [
    "we",
    "left",
    "the",
    "house",
    "early",
    "in",
    "the",
    "morning,",
    "and",
    "walked",
    "along",
    "the",
    "river.",
    "It",
    "was",
    "cold",
]
SEGMENT = 14
"""Words of a segment."""


def fill(store: MemoryStore, sessions: int, chunks: int) -> None:
    """Many sessions of one chunk, half of them transcribed, and a long one with its session files."""
    for number in range(sessions):
        key = f"user/{number:06}/chunk-001.mp3"
        store.place(key, b"\xff\xfbaudio", modified=NOW - timedelta(hours=number))
        if number % 2:
            store.place(f"user/{number:06}/transcription-chunk-001.json", _transcribe(key, 10.0, 30))
    for number in range(chunks):
        key = f"long/chunk-{number:05}.mp3"
        store.place(key, b"\xff\xfbaudio", modified=NOW - timedelta(days=1))
        name = f"long/transcription-chunk-{number:05}.json"
        store.place(name, _transcribe(key, HOURS * 3600 / chunks, WORDS // chunks))
    publish_session(Scanner(store, store, clock=FakeClock()), "long/", Rendering())


def _transcribe(key: str, seconds: float, count: int) -> bytes:
    step = seconds / count
    words = tuple(
        Word(word=f" {TEXT[n % len(TEXT)]}", start=n * step, end=(n + 0.8) * step, probability=0.9)
        for n in range(count)
    )
    groups = [words[begin : begin + SEGMENT] for begin in range(0, count, SEGMENT)]
    segments = tuple(
        Segment(
            text="".join(word.word for word in group).strip(),
            start=group[0].start,
            end=group[-1].end,
            words=group,
        )
        for group in groups
    )
    made = Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration=seconds,
        engine="e",
        model="m",
        settings_hash="h",
        audio=AudioRef(name=key.rpartition("/")[2], key=key, etag="e"),
        run="r",
        created_at=NOW,
    )
    return encode(made)


def measure(client: TestClient, name: str, path: str) -> None:
    begun = time.process_time()
    answer = client.get(path)
    used = time.process_time() - begun
    assert answer.status_code == 200, answer.text[:200]
    print(f"{name:<44} {used * 1000:8.0f} ms CPU  {len(answer.content) / 1e6:7.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--chunks", type=int, default=7_200)
    parser.add_argument("--requests", type=int, default=1_000)
    given = parser.parse_args()
    store = MemoryStore(FakeClock())
    fill(store, given.sessions, given.chunks)
    with tempfile.TemporaryDirectory() as home:
        settings = load({"BATCH_SOURCE": home, "GPU_PROVIDER": "local"}, folder=Path(home))
        context = open_context(settings)
        world = replace(context.scheduler.world, source=store, output=store, clock=FakeClock())
        app = create_app(replace(context, scheduler=replace(context.scheduler, world=world)))
        with TestClient(app, base_url="http://localhost") as client:
            while "as listed" not in client.get("/sessions").text:
                time.sleep(0.1)
            pages = {
                "list": "/sessions",
                "list, last page, longest first": "/sessions?page=9999&order=longest",
                "search of a name": "/sessions?q=777",
                "reader of a short session": make_url("sessions", "user/000001/"),
                f"reader of {HOURS} h, opened first": make_url("sessions", "long/"),
                f"reader of {HOURS} h, again": make_url("sessions", "long/"),
                "audio, one part": make_url("audio/7", "long/"),
            }
            for name, path in pages.items():
                measure(client, name, path)
            process = psutil.Process()
            paths = [path for name, path in pages.items() if str(HOURS) not in name]
            for round_ in range(4):
                for number in range(given.requests // 4):
                    client.get(paths[number % len(paths)])
                    client.get(make_url("sessions", f"user/{2 * number + 1:06}/"))
                done, held = (round_ + 1) * given.requests // 2, process.memory_info().rss / 1e6
                print(f"after {done} requests: {held:.0f} MB")


if __name__ == "__main__":
    main()
