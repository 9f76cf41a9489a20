"""`tick --dry-run`, `run --dry-run` and `scan` of a folder, as a user reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchscribe.cli.app import App
from batchscribe.cli.scan import scan
from batchscribe.cli.tick import run, tick
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.scanners import audio_prefixes
from support.cli import app_of

AUDIO = b"12345" * 1000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("mine/README", "talks/b/one.mp3", "calls/chunk-001.mp3", "pictures/a.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(AUDIO)
    return tmp_path / "data"


def output(app: App, command: str) -> str:
    called, *words = command.split()
    chosen = {"scan": scan, "tick": tick, "run": run}[called]
    return CliRunner().invoke(chosen, words, obj=app, catch_exceptions=False).output


@pytest.mark.parametrize("command", ["scan", "run --dry-run", "tick --dry-run"])
def test_an_empty_prefix_is_reported_with_the_audio_beside_it(source: Path, command: str) -> None:
    url = source.as_uri()
    assert (
        f"nothing was found under {url}/mine; audio is under {url}/calls, {url}/talks: "
        "set BATCH_SOURCE or --source\n"
    ) in output(app_of(source / "mine"), command)
    assert "nothing was found" not in output(app_of(source), command)


def test_up_to_three_folders_with_audio_are_named() -> None:
    store = MemoryStore(FakeClock())
    for number in range(300):
        store.create(f"aside/{number:03}.txt", b"text")
    for key in ("b.txt", "d/x/1.mp3", "d/x/2.mp3", "e/1.mp3", "loose.wav", "z/1.mp3"):
        store.create(key, AUDIO)
    assert audio_prefixes(store) == ["d", "e", ""]


def test_a_hold_shows_the_sum_and_the_expected_start(source: Path) -> None:
    shown = output(app_of(source, BATCH_MAX_WAIT_HOURS="30", GPU_HOURLY_COST="0.526"), "tick --dry-run")
    assert (
        "Would hold: 2 chunks pending, below the threshold of 100\n"
        "Backlog: 2 chunks, 1 s of audio, the oldest waits for N s\n"
        "A start now: about $0.0088, $25.25 an audio hour, 100% of it for set-up and stop\n"
        "AWS Transcribe for the same audio: $0.00012, $0.0086 cheaper than a start now\n"
        "Expected start: at the first check from 2"
    ) in re.sub(r"for [0-9]+ s", "for N s", shown)
    assert " UTC on, if nothing else arrives\n" in shown


def test_what_stands_in_the_way_comes_first_even_if_the_policy_holds(source: Path) -> None:
    app = app_of(source, BATCH_HOURS="sat 3:00-3:01", BATCH_MAX_WAIT_HOURS="8760", BATCH_THRESHOLD="2")
    assert output(app, "tick --dry-run").startswith("Would hold: BATCH_HOURS (sat 3:00-3:01) begin again at ")
    below = app_of(source, BATCH_HOURS="sat 3:00-3:01", BATCH_MAX_WAIT_HOURS="8760")
    shown = output(below, "tick --dry-run").splitlines()
    assert shown[0].startswith("In the way of a start: BATCH_HOURS (sat 3:00-3:01) begin again at ")
    assert shown[1] == "Would hold: 2 chunks pending, below the threshold of 100"


def test_json_carries_the_sum(source: Path) -> None:
    app = app_of(source, GPU_HOURLY_COST="0.526")
    document = json.loads(output(app, "tick --dry-run --json"))
    total = document["sum"]
    assert (total["chunks"], total["runs"], total["dollars"]) == (2, 1, 0.008767)
    assert (total["hosted"]["against"], total["hosted_is_cheaper"]) == ("AWS Transcribe", True)
    assert total["setup_share"] == 1.0
    assert total["expected_start"].startswith("20")
    assert total["obstacles"] == []


def test_a_launch_shows_the_audio_once_and_explains_the_minimum(source: Path) -> None:
    shown = output(app_of(source, GPU_HOURLY_COST="0.526"), "run --dry-run")
    assert "Batch: 2 chunks, 0 left for later\n" in shown
    assert shown.count("about 1 s") == 1
    assert "billed as 60 s: the minimum of a start\n  Estimated Cost:  $0.0088\n" in shown


def test_a_hold_is_no_reason_to_hide_what_a_later_start_would_refuse(source: Path) -> None:
    app = app_of(source, BATCH_ENGINE="poketsphinx")
    first, second, *_ = output(app, "tick --dry-run").splitlines()
    assert first.startswith("Would not start: no speech engine 'poketsphinx' is installed here: did you mean")
    assert second == "Would otherwise hold: 2 chunks pending, below the threshold of 100"


def test_quiet_ticks_print_nothing(source: Path) -> None:
    app = app_of(source)
    assert "\nHold: 2 chunks pending, below the threshold of 100\n" in f"\n{output(app, 'tick')}"
    app.quiet = True
    assert "\nHold: " not in f"\n{output(app, 'tick')}"
    assert '"decision": "hold"' in output(app, "tick --json")
