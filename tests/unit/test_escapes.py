"""Nothing from a store controls a terminal: not in session files, not on a console, not in a table."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.cli.app import App, PlainConsole
from batchscribe.cli.chunks import export
from batchscribe.cli.report import render_csv, show_table
from batchscribe.core.decide.money import FREE
from batchscribe.core.run.period import Period, period_of
from batchscribe.core.run.runs import Machine, Run
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.subtitles import FORMATS, render
from batchscribe.core.text.transcripts import ForeignTranscript, Segment, SessionTranscript, Word, encode
from batchscribe.settings import load
from support.stores import NOW

TRICKS = "\x1b]0;title\x07 \x1b[2J \x9b31m \x7f \x00 \u202eevil\u202c \u2066x\u2069"
SAID = f"before {TRICKS} after"


def heard(text: str) -> ForeignTranscript:
    words = tuple(Word(word=word, start=float(at), end=at + 0.5) for at, word in enumerate(text.split(" ")))
    return ForeignTranscript(
        segments=(
            Segment(text=text, start=0.0, end=9.0),
            Segment(text=text, start=0.0, end=9.0, words=words),
        ),
        duration=10.0,
        language="\x9ben",
    )


def session(text: str) -> SessionTranscript:
    key = "s/chunk-002\x1b[2J.mp3"
    return stitch(
        "s/",
        [
            PartInput(key="s/chunk-001.mp3", transcript="t", content=heard(text)),
            PartInput(key=key, transcript=f"{key}.json"),
        ],
    )


def controls(text: str) -> set[str]:
    kinds = {letter: unicodedata.category(letter) for letter in set(text) - {"\n", "\t"}}
    bidi = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    return {letter for letter, kind in kinds.items() if kind in {"Cc", "Cs", "Zl", "Zp"} or letter in bidi}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_session_file_holds_no_control_character(kind: str) -> None:
    text = render(session(SAID), kind).decode()
    assert controls(text) == set()
    assert "before" in text
    assert "after" in text


def test_json_holds_the_same_strings() -> None:
    whole = session(SAID)
    assert msgspec.json.decode(render(whole, "json"), type=SessionTranscript) == whole


@pytest.mark.parametrize("kind", FORMATS)
def test_what_people_write_stays_as_it_is(kind: str) -> None:
    said = "größe 会議 שלום\u200f 🎙️ مرحبا\u061c naïve"
    text = render(session(said), kind).decode()
    for word in ("größe", "会議", "🎙️", "naïve"):
        assert word in text


def test_line_ends_of_windows_are_line_ends() -> None:
    assert render(session("one\r\ntwo"), "txt").decode().startswith("one\ntwo")


@pytest.mark.parametrize("kind", FORMATS)
def test_export_prints_no_control_character(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/chunk-001.mp3").write_bytes(b"12345")
    (tmp_path / "s/transcription-chunk-001.json").write_bytes(encode(heard(SAID)))
    app = App()
    app.__dict__["settings"] = load({"BATCH_SOURCE": str(tmp_path)}, folder=tmp_path)
    exported = CliRunner().invoke(export, ["s", "--format", kind], obj=app)
    assert exported.exit_code == 0
    assert "before" in exported.stdout
    assert controls(exported.stdout) == set()


def period(instance_type: str) -> Period:
    run = Run(
        id="r",
        provider="ec2",
        machines=(Machine(id="i-1"),),
        policy="now",
        reason="",
        created=NOW,
        deadline=NOW,
        rate=FREE,
        instance_type=instance_type,
    )
    return period_of([run], NOW, NOW)


def test_a_console_spells_texts_and_cells_out() -> None:
    stream = io.StringIO()
    app = App()
    app.__dict__["console"] = console = PlainConsole(file=stream, width=200, force_terminal=True)
    console.print(f"detail {TRICKS}", markup=False)
    show_table(app, period("[red]\x1b]0;title\x07"))
    shown = stream.getvalue()
    assert "\x1b]0" not in shown
    assert "\x07" not in shown
    assert "[red]\\x1b]0;title" in shown


@pytest.mark.parametrize(
    ("text", "cell"), [("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("\x1b[2J", "\\x1b[2J")]
)
def test_a_cell_is_neither_a_formula_nor_an_escape(text: str, cell: str) -> None:
    (row,) = csv.DictReader(io.StringIO(render_csv(period(text))))
    assert row["type"] == cell
