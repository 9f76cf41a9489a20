"""The application of the pages on a state directory and a bucket on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from starlette.testclient import TestClient

from batchscribe.core import keys
from batchscribe.core.decide.money import Usd
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import QuarantineRecord
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.dashboard.context import Context, open_context
from batchscribe.dashboard.server import create_app
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.protocols import Store
from batchscribe.settings import Settings, load
from support import values

OWN = {"sec-fetch-site": "same-origin"}
"""Headers of a POST from our own page."""
TIMELINE = {"start": 20.0, "boot": 30.0, "load": 8.0, "audio": 2.0, "work": 200.0, "teardown": 60.0}


@dataclass(frozen=True, kw_only=True)
class Pages:
    context: Context
    client: TestClient

    def get(self, path: str, code: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == code, answer.text
        return answer.text

    def post(self, path: str) -> str:
        answer = self.client.post(path, headers=OWN, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]


def settings_of(home: Path, **names: str) -> Settings:
    bucket = home / "bucket"
    bucket.mkdir(exist_ok=True)
    defaults = {
        "BATCH_SOURCE": str(bucket),
        "BATCH_MIN_AGE_MINUTES": "0",
        "BATCH_ENGINE": "pocketsphinx",
        "GPU_PROVIDER": "local",
    }
    return load(defaults | names, folder=home)


@contextmanager
def open_pages(home: Path, *, token: str = "", **names: str) -> Iterator[Pages]:
    context = open_context(settings_of(home, **names))
    app = create_app(context, token=token)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield Pages(context=context, client=client)


def fill_ledger(home: Path, count: int, **changes: object) -> list[Run]:
    """Settled runs, one an hour, the last one now; every third one timed out."""
    runs = []
    with Ledger(home / ".batchscribe" / FILE_NAME, pragmas={}) as ledger:
        now = open_context(settings_of(home)).clock.now()
        for number in range(count):
            created = now - timedelta(hours=count - number)
            run = replace(
                values.run(),
                id=f"{created:%Y%m%d-%H%M%S}-{number:06x}",
                created=created,
                deadline=created + timedelta(hours=2),
                settled=created + timedelta(minutes=20),
                state=RunState.SETTLED,
                outcome=Outcome.TIMED_OUT if number % 3 == 0 else Outcome.COMPLETED,
                chunks_done=40,
                audio_seconds=3600.0,
                cost=Usd(170_000),
                timeline={
                    "start": 20.0,
                    "boot": 30.0,
                    "load": 8.0,
                    "audio": 2.0,
                    "work": 200.0,
                    "teardown": 60.0,
                },
                **changes,  # type: ignore[arg-type]
            )
            ledger.save_run(run, at=created, note="3 chunks pending")
            runs.append(run)
    return runs


def quarantine_chunk(output: Store, key: str, *, at: datetime = values.NOW) -> None:
    record = QuarantineRecord(
        key=key, etag="", decoder="", attempts=3, message="cannot be decoded" + "x" * 500, at=at
    )
    output.replace(keys.quarantine(key), wire.encode(record))
