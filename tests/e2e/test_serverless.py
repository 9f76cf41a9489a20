"""A scheduler without a disk: each pass is a process in an empty folder, its state is in a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import batchscribe
from batchscribe.core import keys
from batchscribe.deploy.lambda_function import handle
from support.booted import Cloud, booted_cloud
from support.cli import PATIENCE, Desk, wait_for
from support.forked import ENGINES
from support.s3 import CREDENTIALS, create_bucket

pytestmark = pytest.mark.e2e
KILLED = """
import os, signal, sys
from batchscribe.cli.main import main
from batchscribe.ledger.kept_state import KeptState

KeptState.save = lambda _state: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["batchscribe", *sys.argv[1:]]
main()
"""
"""A command line that is killed before its state is stored."""
OVERTAKEN = """
import subprocess, sys
from batchscribe.cli.main import main
from batchscribe.controller import tick

open_run, words = tick._open_run, sys.argv[1:]

def open_late(*args):
    subprocess.run([sys.executable, "-m", "batchscribe", *words], check=True, stdout=2)
    return open_run(*args)

tick._open_run = open_late
sys.argv = ["batchscribe", *words]
main()
"""
"""A command line that decided to start a run, when another one makes a whole pass."""
SOURCES = Path(batchscribe.__file__).parents[1]


@dataclass
class Serverless:
    """A cloud whose scheduler has no disk."""

    cloud: Cloud
    folder: Path
    names: dict[str, str]
    numbers: Iterator[int]

    def make_folder(self) -> Path:
        place = self.folder / f"pass-{next(self.numbers)}"
        place.mkdir()
        return place

    def json(self, *words: str) -> Any:
        return Desk(self.make_folder(), self.names).json(*words)

    def run_script(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        names = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCES}:{ENGINES}"} | self.names
        return subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=self.make_folder(),
            env=names,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def finish(self) -> Counter[str]:
        """Makes passes of the watchdog until none is open; the outcomes of the runs that they closed."""
        outcomes: Counter[str] = Counter()

        def closed() -> Iterator[bool]:
            while True:
                document = self.json("watchdog")
                outcomes.update(run["outcome"] for run in document["released"])
                time.sleep(0.5)  # a pass would take the core from the worker
                yield "no run is open" in document["found"] and self.cloud.state == "stopped"

        wait_for(closed())
        return outcomes

    @property
    def transcripts(self) -> list[str]:
        return [info.key for info in self.cloud.home.list("walk/") if "/transcription-chunk-" in info.key]

    @property
    def intents(self) -> list[str]:
        return [info.key for info in self.cloud.home.list(keys.RUNS) if info.key.endswith("/intent.json")]


@pytest.fixture
def serverless(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serverless]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with booted_cloud(tmp_path, endpoint) as cloud:
        env = (cloud.desk.home / ".env").read_text().splitlines()
        names = dict(line.split("=", 1) for line in env)
        names["BATCH_STATE_DIR"] = create_bucket(endpoint, f"state-{os.urandom(4).hex()}")
        cloud.speech(3)
        yield Serverless(cloud, tmp_path, names, count())


def test_passes_with_an_empty_disk_each_make_a_whole_run(serverless: Serverless) -> None:
    begun = serverless.json("tick")
    assert (begun["decision"], serverless.transcripts) == ("launch", []), "it does not wait"
    assert serverless.finish() == {"completed": 1}
    assert (len(serverless.transcripts), len(serverless.intents)) == (3, 1)
    assert (serverless.cloud.orders, serverless.cloud.record.claim) == ([], None)
    (listed,) = serverless.json("report", "--last", "24h")["runs"]
    assert listed["run"] == begun["runs"][0]["run"], "the ledger was kept"
    assert serverless.json("tick", "--no-wait")["decision"] == "hold"
    assert len(serverless.intents) == 1, "nothing is paid twice"


def test_a_pass_that_was_killed_before_its_state_was_stored_is_continued(serverless: Serverless) -> None:
    assert serverless.json("watchdog")["released"] == []
    killed = serverless.run_script(KILLED, "tick", "--no-wait")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(serverless.intents) == 1
    assert serverless.finish() == {"completed": 1}
    assert (len(serverless.transcripts), len(serverless.intents)) == (3, 1)
    assert (serverless.cloud.orders, serverless.cloud.record.claim) == ([], None)


def test_of_two_passes_at_once_one_is_refused_and_pays_nothing(serverless: Serverless) -> None:
    assert serverless.json("watchdog")["released"] == []
    slow = serverless.run_script(OVERTAKEN, "tick", "--no-wait")
    assert (slow.returncode, "changed by another process" in slow.stderr) == (1, True), slow.stderr
    assert "abandoned" in slow.stdout
    assert "Cost: at most $0.00" in slow.stdout
    assert serverless.finish() == {"completed": 1}
    assert (len(serverless.transcripts), len(serverless.intents)) == (3, 2)
    assert (serverless.cloud.orders, serverless.cloud.record.claim) == ([], None)


def test_the_function_makes_a_pass_and_reports_its_failure(
    serverless: Serverless, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in serverless.names.items():
        monkeypatch.setenv(name, value)
    handle({"pass": "watchdog"}, None)
    assert "no run is open" in capfd.readouterr().out
    monkeypatch.setenv("BATCH_THRESHOLD", "many")
    with pytest.raises(Exception, match="exit code 2"):
        handle({"pass": "tick"}, None)
    with pytest.raises(Exception, match="nothing was done"):
        handle({"pass": "gpu start"}, None)


def test_a_pause_from_elsewhere_holds_the_next_pass(serverless: Serverless) -> None:
    paused = Desk(serverless.make_folder(), serverless.names).run("pause")
    assert paused.returncode == 0, paused.stderr
    held = serverless.json("tick", "--no-wait")
    assert json.dumps(held["reason"]).count("paused")


def test_without_its_state_a_pass_starts_nothing_and_fails(serverless: Serverless) -> None:
    serverless.names["BATCH_STATE_DIR"] = "s3://no-such-bucket"
    for command in (("watchdog",), ("tick", "--no-wait")):
        done = Desk(serverless.make_folder(), serverless.names).run(*command)
        assert done.returncode == 2, done.stderr
        assert "no-such-bucket" in done.stderr
    assert (serverless.intents, serverless.cloud.state) == ([], "stopped")
