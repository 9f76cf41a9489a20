"""`demo`: one complete run on this machine, on bundled speech.

It is a real tick: a bucket on disk, this machine as the GPU, and Whisper tiny.en from a Python package.
Only the audio and its spoken text are bundled.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from batchscribe import settings as configuration
from batchscribe.cli.app import App, pass_app
from batchscribe.cli.compare import WordErrorRate, find_completed, load_word_error_rate, split_words
from batchscribe.cli.terminal.render import render_decision, render_run
from batchscribe.cli.tick import open_app_scheduler
from batchscribe.controller.tick import tick as one_tick
from batchscribe.core.decide.money import cost
from batchscribe.core.decide.prices import describe_rate
from batchscribe.core.decide.published_models import WHISPER
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.chunks import audio_name, transcript_key
from batchscribe.core.text import transcripts
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.wiring.process import apply_settings
from batchscribe.wiring.seams import rate_of

PRICED_AS = "g4dn.xlarge"
REGION = "us-east-2"
THRESHOLD = 10
COLUMN = 50
"""Maximum width of a column of text, also in a pipe."""
MODEL = "tiny.en"


@click.command()
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where to put all files.")
@click.option("--engine", default=WHISPER, show_default=True, help="The speech engine to use.")
@pass_app
def demo(app: App, *, folder: Path | None, engine: str) -> int:
    """A complete run on this machine: bundled speech, no account, no network."""
    word_error_rate = load_word_error_rate()
    home = (folder or Path(tempfile.mkdtemp(prefix="batchscribe-demo-"))).absolute()
    refuse_used(home)
    corpus = put_speech(home / "bucket")
    say = app.console.print
    count = len(corpus["chunks"]) + len(corpus["session"]["keys"])
    say(f"[bold]1. A bucket on disk[/] with {count} chunks of speech: {escape(str(home / 'bucket'))}")
    app.settings = demo_settings(home, engine)
    # The demo explains itself; `batchscribe -v demo` also shows the events of the log.
    verbose = click.get_current_context().find_root().params.get("verbose")
    apply_settings(app.settings, log_level="info" if verbose else "warning")
    say(f"[bold]2. One tick[/], threshold {THRESHOLD} chunks, on this machine, engine {escape(engine)}")
    with open_app_scheduler(app) as made, made.lock.held():
        ticked = one_tick(made.world, made.config)
        say("\n".join(render_decision(ticked)), markup=False)
    run = find_completed(ticked, f"the demo did not complete (its logs are in {home / 'logs'})")
    say("[bold]3. Transcripts[/], beside what was spoken")
    say(compare_texts(home / "bucket", corpus, word_error_rate))
    say("[bold]4. Money[/]")
    say("\n".join(render_run(run, made.settings, left=None)), markup=False)
    say(describe_price(run), markup=False)
    say("[bold]5. Files[/]")
    for what, path in list_places(home):
        say(f"  {what:<12} {path}", markup=False)
    say("[bold]6. Pages for a browser[/], on these files:")
    say(f"  cd {shlex.quote(str(home))} && {shlex.quote(find_program())} dashboard", markup=False)
    return 0


def refuse_used(home: Path) -> None:
    """Raises MisconfiguredError if the folder has settings or a ledger."""
    for used in (home / configuration.DOTENV, home / ".batchscribe" / FILE_NAME):
        if used.exists():
            raise MisconfiguredError(f"{used} exists: choose a new folder for the demo; nothing was changed")


def put_speech(bucket: Path) -> dict[str, Any]:
    """Copies the bundled speech into a folder, and returns its spoken text."""
    with as_file(files("batchscribe") / "demo") as bundled:
        for folder in ("audio", "cut"):
            shutil.copytree(bundled / folder, bucket, dirs_exist_ok=True)
        corpus: dict[str, Any] = json.loads((bundled / "corpus.json").read_text())
    return corpus


def demo_settings(home: Path, engine: str) -> configuration.Settings:
    """Settings of the demo, also written to its `.env`; ignores the environment."""
    names = {
        "BATCH_SOURCE": (home / "bucket").as_uri(),
        "BATCH_ENGINE": engine,
        "BATCH_THRESHOLD": str(THRESHOLD),
        "BATCH_MIN_AGE_MINUTES": "0",
        "GPU_PROVIDER": "local",
        "WHISPER_MODEL": MODEL,
    }
    with (home / configuration.DOTENV).open("x", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in names.items())
    return configuration.load({}, folder=home, flags=names)


def find_program() -> str:
    """Path of this Python's command."""
    installed = Path(sysconfig.get_path("scripts")) / "batchscribe"
    return str(installed) if installed.exists() else "batchscribe"


def compare_texts(bucket: Path, corpus: dict[str, Any], word_error_rate: WordErrorRate) -> Table:
    """Table of transcripts and spoken text, with the word error rate.

    The recording that was cut at fixed times, within words too, is compared as a session.
    """
    rows = [(each["key"], each["text"], _read_transcript(bucket, each["key"])) for each in corpus["chunks"]]
    cut = corpus["session"]
    name = f"{cut['folder']} ({len(cut['keys'])} chunks)"
    rows.append((name, cut["text"], (bucket / cut["folder"] / "transcript.txt").read_text().strip()))
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("chunk", no_wrap=True)
    table.add_column("spoken", max_width=COLUMN)
    table.add_column("transcribed", max_width=COLUMN)
    for key, spoken, text in rows:
        shown = escape(text) if split_words(text) == spoken.split() else f"[yellow]{escape(text)}[/]"
        table.add_row(escape(key), escape(spoken), shown)
    table.add_section()
    reference = [word for _, spoken, _ in rows for word in spoken.split()]
    rate = word_error_rate(reference, [word for _, _, text in rows for word in split_words(text)])
    table.add_row("[bold]word error rate[/]", f"[bold]{rate:.3f}[/] over {len(reference)} words", "")
    return table


def describe_price(run: Run) -> str:
    """Sentence with the price of the same seconds on PRICED_AS."""
    rate = rate_of(configuration.Settings(region=REGION))(PRICED_AS)
    amount = cost(rate, run.billed_seconds)
    return (
        f"This machine costs nothing. The same {run.billed_seconds:.0f} s of a {PRICED_AS} at "
        f"{describe_rate(rate, run.created)} would have cost {amount}: EC2 bills at least one minute."
    )


def list_places(home: Path) -> Iterator[tuple[str, Path]]:
    yield "audio", home / "bucket"
    yield "sessions", home / "bucket" / "morning-walk" / "transcript.srt"
    yield "reports", home / "batch-reports"
    yield "logs", home / "logs"
    yield "ledger", home / ".batchscribe" / FILE_NAME


def _read_transcript(bucket: Path, key: str) -> str:
    name = audio_name(key)
    assert name is not None
    return transcripts.decode((bucket / transcript_key(name)).read_bytes()).text
