"""The main job on this machine, through the command line; with a real engine where words count."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path

import pytest

from batchscribe.core import keys
from batchscribe.core.decide.packing import Priors
from batchscribe.core.text.transcripts import Transcript, decode
from batchscribe.ledger import Ledger
from support.cli import Desk, finish_by_timer, local_desk, put_speech, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return local_desk(tmp_path, BATCH_THRESHOLD="4")


def transcripts(desk: Desk, session: str) -> list[Path]:
    return sorted((desk.bucket / session).glob("transcription-*.json"))


def some_transcript(desk: Desk, session: str) -> Iterator[bool]:
    while True:
        yield bool(transcripts(desk, session))


def test_below_the_threshold_nothing_is_started(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    (desk.bucket / "team-meeting" / "chunk-004.m4v").unlink()
    held = desk.spawn("tick", "--json")
    assert held.returncode == 0, held.stderr
    document = json.loads(held.stdout)
    assert document["decision"] == "hold"
    assert document["reason"]["sentence"] == "3 chunks pending, below the threshold of 4"
    assert not transcripts(desk, "team-meeting")
    assert not list(desk.home.glob("batch-reports/*"))


def test_a_tick_transcribes_and_reports(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    for path in (desk.bucket / "team-meeting").glob("chunk-00[34].*"):
        path.unlink()  # an engine with real words takes its time
    before = desk.json("scan")
    assert (before["pending"], before["done"]) == (2, 0)
    document = desk.json("tick", BATCH_ENGINE="pocketsphinx", BATCH_THRESHOLD="2")
    assert document["decision"] == "launch"
    (report,) = document["runs"]
    assert report["status"] == "completed"
    assert report["transcription"]["done"] == 2
    after = desk.json("scan")
    assert (after["pending"], after["done"]) == (0, 2)
    session = desk.bucket / "team-meeting"
    first = decode((session / "transcription-chunk-001.json").read_bytes())
    assert isinstance(first, Transcript)
    assert "good morning" in first.text
    assert first.audio.key == "team-meeting/chunk-001.webm"
    for kind in ("json", "srt", "vtt", "txt"):
        assert (session / f"transcript.{kind}").stat().st_size
    (written,) = (desk.home / "batch-reports").glob("batch-*.json")
    assert json.loads(written.read_text())["run"] == report["run"]
    log = (desk.home / "logs" / f"batchscribe-{report['run']}.log").read_text()
    assert re.search(r"^Cost Tracking:\n  GPU Type:       local\n(  .*\n){6}", log, re.MULTILINE)


def test_control_objects_go_to_their_own_folder(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    control = desk.home / "control"
    (report,) = desk.json("tick", BATCH_CONTROL=str(control))["runs"]
    assert (report["status"], report["transcription"]["done"]) == ("completed", 4)
    assert not (desk.bucket / "_batchscribe").exists()
    assert (control / "runs" / report["run"] / "settlement.json").exists()
    done = desk.run("redo", "team-meeting", "--yes", BATCH_CONTROL=str(control))
    assert (control / "superseded").as_uri() in done.stdout
    assert len(list((control / "superseded").rglob("transcription-*.json"))) == 4


@pytest.mark.parametrize("moved_to", ["", "control"])
def test_a_run_ends_where_its_control_objects_were_when_it_began(desk: Desk, moved_to: str) -> None:
    put_speech(desk.bucket, "team-meeting")
    places = {"": desk.bucket / "_batchscribe", "control": desk.home / "control"}
    before = "" if moved_to else "control"
    desk.environment["BATCH_CONTROL"] = before
    desk.json("tick", "--no-wait")
    desk.environment["BATCH_CONTROL"] = moved_to
    refused = desk.run("tick", "--no-wait")
    assert (refused.returncode, "BATCH_CONTROL was changed" in refused.stderr) == (2, True), refused.stderr
    run = finish_by_timer(desk)
    assert len(transcripts(desk, "team-meeting")) == 4
    assert list(places[before].glob("runs/*/settlement.json"))
    assert not list(places[moved_to].glob("runs/*"))
    assert run["outcome"] == "completed"
    assert desk.json("tick", "--no-wait")["decision"] == "hold"


def test_the_environment_beats_dotenv(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    document = desk.json("tick", "--dry-run", BATCH_THRESHOLD="50")
    assert document["reason"]["sentence"] == "4 chunks pending, below the threshold of 50"
    assert desk.json("config")["BATCH_THRESHOLD"] == {"value": 4, "origin": ".env"}


def test_a_dry_run_says_it_all_and_touches_nothing(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    before = sorted(path for path in desk.home.rglob("*"))
    done = desk.run("tick", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Would launch: 4 chunks pending, threshold 4 reached" in done.stdout
    assert "Estimated Cost" in done.stdout
    assert sorted(path for path in desk.home.rglob("*")) == before


def test_a_language_that_the_model_does_not_know_is_refused_before_anything_is_started(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    for words in (("tick",), ("tick", "--dry-run"), ("run",)):
        for threshold in ("4", "50"):
            done = desk.run(
                *words, BATCH_ENGINE="pocketsphinx", BATCH_LANGUAGE="fr", BATCH_THRESHOLD=threshold
            )
            assert done.returncode == 2, words
            said = done.stdout if "--dry-run" in words else done.stderr.splitlines()[-1]
            assert "pocketsphinx supports English only, and BATCH_LANGUAGE is fr" in said
    assert desk.json("status")["run"] is None


def test_dotenv_is_parsed_never_executed(desk: Desk) -> None:
    env = desk.home / ".env"
    env.write_text(env.read_text() + "GPU_INSTANCE_TYPE=$(touch PWNED)\n")
    done = desk.run("scan")
    assert done.returncode == 2
    assert "GPU_INSTANCE_TYPE" in done.stderr
    assert not (desk.home / "PWNED").exists()


def test_an_unknown_setting_names_the_nearest(desk: Desk) -> None:
    done = desk.run("scan", BATCH_TRESHOLD="5")
    assert done.returncode == 2
    assert "BATCH_THRESHOLD" in done.stderr


def test_a_missing_folder_is_an_error_never_an_empty_backlog(desk: Desk) -> None:
    desk.bucket.rmdir()
    done = desk.run("tick")
    assert done.returncode == 2
    assert "nothing is pending" not in done.stdout
    assert "bucket" in done.stderr


def test_one_bad_chunk_costs_one_chunk_and_is_quarantined_in_the_end(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    bad = desk.bucket / "team-meeting" / "chunk-002.aac"
    bad.write_bytes(os.urandom(5000))
    first = desk.json("tick", code=1)
    assert first["runs"][0]["status"] == "incomplete"
    assert len(transcripts(desk, "team-meeting")) == 3
    assert desk.json("tick")["decision"] == "hold"
    for _ in range(2):
        desk.run("run", "--json")
    (record,) = desk.json("quarantine", "list")["quarantined"]
    assert record["key"] == "team-meeting/chunk-002.aac"
    assert record["attempts"] == 3
    assert desk.json("scan")["quarantined"] == 1
    assert (desk.bucket / "team-meeting" / "transcript.json").exists()
    assert desk.run("quarantine", "release", "--all").returncode == 0
    assert desk.json("scan")["pending"] == 1


def test_kill_9_in_the_middle_then_the_next_tick_finishes(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting", "morning-walk")
    process = desk.start("tick")
    wait_for(some_transcript(desk, "morning-walk"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in desk.bucket.rglob("transcription-*.json")}
    assert 0 < len(finished) < 9
    document = desk.json("tick")
    assert document["runs"][0]["status"] == "completed"
    done = {path: path.stat().st_mtime_ns for path in desk.bucket.rglob("transcription-*.json")}
    assert len(done) == 9
    assert finished.items() <= done.items(), "no transcript is written twice"
    assert desk.json("status")["gpu"]["state"] == "stopped"
    assert desk.json("status")["run"] is None


def test_a_second_tick_meanwhile_follows_the_same_run(desk: Desk) -> None:
    for copy in range(2):
        put_speech(desk.bucket / f"copy{copy}", "morning-walk")
    process = desk.start("tick", "--json")
    wait_for(some_transcript(desk, "copy0/morning-walk"))
    second = desk.json("tick")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    for document in (json.loads(stdout), second):
        assert [run["status"] for run in document["runs"]] == ["completed"]
    assert len(transcripts(desk, "copy1/morning-walk")) == 5
    assert len(list((desk.home / "batch-reports").iterdir())) == 1


def test_a_tick_that_waits_reports_a_run_that_the_timer_settled(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    process = desk.start("tick", "--json", BATCH_POLL_SECONDS="60")
    closed = finish_by_timer(desk)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert [run["status"] for run in json.loads(stdout)["runs"]] == [closed["outcome"]] == ["completed"]


def test_a_tick_that_waits_fails_with_a_run_that_the_timer_settled(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    (desk.bucket / "team-meeting" / "chunk-002.aac").write_bytes(os.urandom(5000))
    process = desk.start("tick", "--json", BATCH_POLL_SECONDS="60")
    assert finish_by_timer(desk)["outcome"] == "incomplete"
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_done_and_stops(desk: Desk, number: signal.Signals) -> None:
    put_speech(desk.bucket, "morning-walk", "notes", "team-meeting")
    process = desk.start("tick", "--json")
    wait_for(some_transcript(desk, "morning-walk"))
    process.send_signal(number)
    stdout, _ = process.communicate()
    assert process.returncode == 130
    report = json.loads(stdout)["runs"][0]
    assert report["status"] == "interrupted"
    assert report["transcription"]["done"] == len(list(desk.bucket.rglob("transcription-*.json")))
    assert desk.json("status")["gpu"]["state"] == "stopped"
    assert desk.json("tick")["runs"][0]["status"] == "completed"


def test_the_longest_runtime_stops_the_run(desk: Desk) -> None:
    for copy in range(3):
        put_speech(desk.bucket / f"copy{copy}", "morning-walk", "notes", "team-meeting")
    with Ledger(desk.home / ".batchscribe" / "ledger.sqlite") as ledger:
        taught = {"run": "before", "engine": "scripted", "model": "", "instance_type": ""}
        ledger.learn(
            **taught,
            at=datetime(2026, 11, 1, tzinfo=UTC),
            measured=Priors(speed=10_000.0, setup_seconds=0.1, release_seconds=0.1),
        )
    document = desk.json("tick", code=1, BATCH_MAX_RUNTIME_HOURS="0.002")
    report = document["runs"][0]
    assert report["status"] == "timed-out"
    assert report["transcription"]["done"] == len(list(desk.bucket.rglob("transcription-*.json")))
    assert desk.json("status")["gpu"]["state"] == "stopped"


def test_one_pass_at_a_time_comes_to_the_same_end(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    begun = desk.json("tick", "--no-wait")
    assert begun["decision"] == "launch"
    (run,) = begun["runs"]
    assert desk.json("tick", "--no-wait")["decision"] == "resume"
    assert finish_by_timer(desk) == {"run": run["run"], "outcome": "completed"}
    assert len(transcripts(desk, "team-meeting")) == 4
    (report,) = (desk.home / "batch-reports").iterdir()
    assert json.loads(report.read_text())["status"] == "completed"
    assert desk.json("status")["gpu"]["state"] == "stopped"
    assert desk.json("watchdog") == {"found": "no run is open", "released": []}


def test_a_worker_lives_on_after_the_pass_that_started_it(desk: Desk) -> None:
    put_speech(desk.bucket, "morning-walk")
    desk.json("tick", "--no-wait")
    wait_for("transcribing" in desk.json("watchdog").get("found", "") for _ in repeat(None))
    # No pass is made meanwhile.
    wait_for(len(list(desk.bucket.rglob("transcription-*.json"))) == 5 for _ in repeat(None))
    assert finish_by_timer(desk)["outcome"] == "completed"
    assert len(list(desk.bucket.glob("_batchscribe/runs/*/workers/*/manifest.json"))) == 1


def test_a_session_that_is_being_recorded_waits(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting", "morning-walk")
    lock = {"locked": True, "sessionId": "morning-walk", "userId": "u"}
    (desk.bucket / "batch-lock.json").write_text(json.dumps(lock))
    document = desk.json("tick")
    assert document["runs"][0]["transcription"]["done"] == 4
    assert not transcripts(desk, "morning-walk")
    assert desk.json("scan")["waiting"] == 5
    (desk.bucket / "batch-lock.json").unlink()
    assert desk.json("tick")["runs"][0]["transcription"]["done"] == 5


def test_why_redo_and_export(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    desk.json("tick")
    key = "team-meeting/chunk-001.webm"
    life = desk.json("why", key)
    assert life["state"] == "done"
    assert life["runs"][0]["outcome"] == "completed"
    text = desk.run("export", "team-meeting", "--format", "srt").stdout
    assert "-->" in text
    assert "w0 w1" in text
    assert desk.json("redo", key, "--yes")["redone"][0]["key"] == key
    assert desk.json("scan")["pending"] == 1
    assert list(desk.bucket.glob("_batchscribe/superseded/*/team-meeting/transcription-chunk-001.json"))
    assert desk.json("run")["runs"][0]["transcription"]["done"] == 1


def test_a_folder_of_ones_own(desk: Desk) -> None:
    own = desk.home / "my recordings"
    put_speech(own, "notes")
    document = desk.json("run", "--source", "./my recordings", "--limit", "2")
    assert document["runs"][0]["transcription"]["done"] == 2
    assert len(list(own.glob("notes/transcription-*.json"))) == 2
    assert not list(desk.bucket.iterdir())


def test_pause_holds_and_resume_goes_on(desk: Desk) -> None:
    put_speech(desk.bucket, "team-meeting")
    assert desk.run("pause", "--for", "8h").returncode == 0
    assert desk.json("tick")["reason"]["code"] == "paused"
    assert desk.run("resume").returncode == 0
    assert desk.json("tick", "--dry-run")["decision"] == "launch"


def test_results_may_lie_elsewhere(tmp_path: Path) -> None:
    desk = local_desk(tmp_path, BATCH_OUTPUT="./results", BATCH_POLICY="now")
    put_speech(desk.bucket, "team-meeting")
    desk.json("tick")
    assert not transcripts(desk, "team-meeting")
    assert len(list((desk.home / "results" / "team-meeting").glob("transcription-*.json"))) == 4
    assert desk.json("tick")["decision"] == "hold"


def test_help_lists_every_command_and_every_command_helps() -> None:
    from batchscribe.cli.main import COMMANDS

    desk = Desk(Path.cwd())
    text = desk.run("--help").stdout
    for name in COMMANDS:
        assert name in text
        shown = desk.run(name, "--help")
        assert shown.returncode == 0, shown.stderr


def test_a_torn_record_of_the_instance_is_one_line_for_a_person(tmp_path: Path) -> None:
    desk = local_desk(tmp_path)
    instance = desk.json("gpu", "status")["instance"]
    record = desk.bucket / keys.instance(instance)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(b'{"instance": "')
    done = desk.run("gpu", "status")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "stopped" in done.stdout
    assert keys.instance(instance) in done.stderr
