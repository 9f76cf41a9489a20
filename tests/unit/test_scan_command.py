from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.cli.app import App
from batchscribe.cli.chunks import export, why
from batchscribe.cli.scan import SessionRow, _build_columns, _collect_rows, scan
from batchscribe.cli.terminal.layout import choose_columns
from batchscribe.controller.sessions import known_unreadable, record_unreadable, session_parts
from batchscribe.core.run.manifest import EngineTimeSummary
from batchscribe.core.scan.backlog import SessionScan
from batchscribe.core.scan.chunks import Chunk
from batchscribe.core.text.flags import PARTIAL, UNHEARD
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Store
from batchscribe.settings import Settings, load
from batchscribe.wiring import scanners
from batchscribe.wiring.scanners import new_scanner
from batchscribe.wiring.seams import open_ledger, open_stores
from support.values import NOW, chunk, run


@pytest.fixture
def app(tmp_path: Path) -> App:
    for name in ("a/chunk-001.mp3", "a/chunk-002.mp3", "b/chunk-001.mp3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "b/transcription-chunk-001.json").write_text('{"text": ""}')
    app = App()
    app.__dict__["settings"] = load(
        {"BATCH_SOURCE": str(tmp_path), "BATCH_MIN_AGE_MINUTES": "0"}, folder=tmp_path
    )
    return app


def test_the_store_of_the_live_lock_is_opened_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = open_stores(app.settings)
    scanner = new_scanner(app.settings, source, output, SystemClock(), manual=False)
    opened: list[str] = []

    def open_counted(_settings: Settings, url: str) -> Store:
        opened.append(url)
        return source

    monkeypatch.setattr(scanners, "open_settings_store", open_counted)
    scanner.rules()
    scanner.rules()
    assert len(opened) == 1


def test_every_session_is_one_object_of_counts(app: App) -> None:
    document = json.loads(CliRunner().invoke(scan, ["--json"], obj=app).output)
    first, second = document["sessions"]
    oldest, age = first.pop("oldest"), first.pop("oldest_age_seconds")
    assert first == {
        "session": "a",
        "pending": 2,
        "waiting": 0,
        "done": 0,
        "stale": 0,
        "unreadable": [],
        "quarantined": 0,
        "empty": 0,
        "bytes": 10,
        "live": False,
        "complete": False,
    }
    assert oldest
    assert age >= 0
    assert (second["session"], second["done"], second["oldest"]) == ("b", 1, None)
    assert second["complete"] is True
    assert (document["pending"], document["done"], document["bytes"]) == (2, 1, 10)


def test_people_see_what_has_work_and_all_on_demand(app: App) -> None:
    shown = CliRunner().invoke(scan, [], obj=app).output
    assert "1 session not shown; `--all` shows every session" in shown
    assert "2 pending (10 B)" in shown
    lines = [line.split() for line in CliRunner().invoke(scan, ["--all"], obj=app).output.splitlines()]
    assert [line[:4] for line in lines[1:3]] == [["a", "2", "-", "-"], ["b", "-", "-", "1"]]


def test_a_narrow_table_keeps_pending_and_done() -> None:
    kept: list[SessionRow] = []
    list(_collect_rows(iter([SessionScan(session="interviews/2026-11-23/", waiting=(chunk(1),))]), kept))
    columns = choose_columns(_build_columns(kept, NOW), 60)
    assert [column.name for column in columns] == ["session", "pending", "waiting", "done", "oldest"]


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        ({"pending": (chunk(1),)}, {"waiting", "unreadable"}),
        ({"stale": (chunk(1),)}, {"pending size", "unreadable"}),
    ],
)
def test_what_a_table_of_80_columns_leaves_out(counts: dict[str, Any], left_out: set[str]) -> None:
    kept: list[SessionRow] = []
    list(_collect_rows(iter([SessionScan(session="interviews/2026/", **counts)]), kept))
    columns = _build_columns(kept, NOW)
    shown = choose_columns(columns, 80)
    assert {column.name for column in columns if column not in shown} == left_out


def test_of_a_session_that_went_past_no_chunk_is_kept() -> None:
    def sessions() -> Iterator[SessionScan]:
        for number in range(20):
            yield SessionScan(session=f"s{number}/", pending=tuple(chunk(each) for each in range(10)))

    gc.collect()
    before = sum(type(found) is Chunk for found in gc.get_objects())
    kept: list[SessionRow] = []
    for _scan in _collect_rows(sessions(), kept):
        pass
    del _scan
    gc.collect()
    assert [row.pending for row in kept] == [10] * 20
    assert sum(type(found) is Chunk for found in gc.get_objects()) <= before


@pytest.mark.parametrize("data", [b"", b"{}", b"not JSON"])
def test_a_transcript_that_is_none_is_named_with_the_way_out(app: App, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b/transcription-chunk-001.json").write_bytes(data)
    shown = CliRunner().invoke(scan, [], obj=app).output
    assert "b/chunk-001.mp3; `batchscribe why KEY`" in shown
    assert "`batchscribe redo KEY`" in shown


def test_what_assembly_could_not_read_is_named_until_it_changes(app: App, tmp_path: Path) -> None:
    torn = tmp_path / "b/transcription-chunk-001.json"
    torn.write_text('{"text": "cut in the mid')
    scanner = new_scanner(app.settings, *open_stores(app.settings), SystemClock(), manual=False)
    with open_ledger(app.settings) as ledger:
        record_unreadable(ledger, session_parts(scanner, "b/"))
    document = json.loads(CliRunner().invoke(scan, ["--json"], obj=app).output)
    assert [session["unreadable"] for session in document["sessions"]] == [[], ["b/chunk-001.mp3"]]
    torn.write_text('{"text": "whole again"}')
    document = json.loads(CliRunner().invoke(scan, ["--json"], obj=app).output)
    assert [session["unreadable"] for session in document["sessions"]] == [[], []]
    with open_ledger(app.settings) as ledger:
        record_unreadable(ledger, session_parts(scanner, "b/"))
        assert known_unreadable(ledger) == {}


def test_why_and_export_name_what_scan_names(app: App, tmp_path: Path) -> None:
    for number, data in ((1, b'{"text": "one"}'), (2, b"")):
        (tmp_path / f"b/chunk-00{number}.mp3").write_bytes(b"12345")
        (tmp_path / f"b/transcription-chunk-00{number}.json").write_bytes(data)
    exported = CliRunner().invoke(export, ["b"], obj=app)
    assert exported.exit_code == 0
    assert "b/transcription-chunk-002.json is not read; `batchscribe redo b/chunk-002.mp3`" in exported.stderr
    assert "[missing: chunk-002.mp3]" in exported.stdout
    told = CliRunner().invoke(why, ["b/chunk-002.mp3"], obj=app).output
    assert "state       pending" in told
    assert "`batchscribe redo b/chunk-002.mp3`" in " ".join(told.split())


@pytest.mark.parametrize(
    ("session", "error"),
    [
        ("talks", "'talks' is a folder of several sessions: 'talks/one.mp3', 'talks/two.mp3'"),
        ("mp3", "; similar: 'talks/one.mp3', 'talks/two.mp3'"),
        ("onee", "; similar: 'talks/one.mp3'"),
        ("talks/on", "no transcript of session 'talks/one.mp3' is there yet"),
        ("talks/ona.mp3", "; similar: 'talks/one.mp3'"),
        ("zzz", "; see `batchscribe scan --all`"),
        ("a", "no transcript of session 'a/' is there yet"),
    ],
)
def test_export_of_an_unknown_session_names_others(
    app: App, tmp_path: Path, session: str, error: str
) -> None:
    (tmp_path / "talks").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"talks/{name}.mp3").write_bytes(b"12345")
    assert error in str(CliRunner().invoke(export, [session], obj=app).exception)


def test_export_to_a_file_prints_a_line(app: App, tmp_path: Path) -> None:
    (tmp_path / "b/transcription-chunk-001.json").write_text('{"text": "one"}')
    result = CliRunner().invoke(export, ["b", "-o", str(tmp_path / "b.txt")], obj=app)
    assert (tmp_path / "b.txt").read_text() == "one\n\n"
    assert (result.stdout, result.stderr) == (f"wrote {tmp_path / 'b.txt'}, 5 B\n", "")
    refused = CliRunner().invoke(export, ["b", "-o", str(tmp_path / "no/b.txt")], obj=app).exception
    assert isinstance(refused, MisconfiguredError)
    assert "the file was not written" in str(refused)


def test_the_flags_of_all_runs_are_counted(app: App) -> None:
    with open_ledger(app.settings) as ledger:
        for number, flags in enumerate(({UNHEARD: 2}, {UNHEARD: 1, PARTIAL: 1}, {})):
            ledger.save_run(run(id=f"run-{number}", worked=EngineTimeSummary(workers=1, flags=flags)), at=NOW)
    shown = CliRunner().invoke(scan, [], obj=app).output
    assert "Flags of transcripts, of all runs in the ledger: 1 partial, 3 unheard\n" in shown
    document = json.loads(CliRunner().invoke(scan, ["--json"], obj=app).output)
    assert document["flags"] == {PARTIAL: 1, UNHEARD: 3}
