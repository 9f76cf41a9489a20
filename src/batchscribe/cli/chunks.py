"""`why`, `redo`, `quarantine` and `export`: single chunks and sessions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import structlog

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.cli.scan import shown
from batchscribe.control_place import url_of
from batchscribe.controller.commands import redo as redoing
from batchscribe.controller.commands.why import Life
from batchscribe.controller.commands.why import why as life_of
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import assemble
from batchscribe.core import keys
from batchscribe.core.redaction import printable
from batchscribe.core.scan.chunks import TOP, audio_name
from batchscribe.core.scan.folders import AudioObject
from batchscribe.core.text.stitching import UNREADABLE
from batchscribe.core.text.subtitles import render
from batchscribe.errors import ObjectNotFoundError
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scheduler import open_scanner
from batchscribe.wiring.seams import open_stores


@click.command()
@click.argument("key")
@json_option
@pass_app
def why(app: App, key: str, *, as_json: bool) -> None:
    """The history of one chunk: audio, attempts, transcripts, quarantine, and their runs."""
    life = life_of(open_scanner(app.settings), _relative(app, key))
    if as_json:
        print_json(life)
        return
    for line in _describe_life(life):
        app.console.print(printable(line), markup=False)


@click.command()
@click.argument("what", required=False)
@click.option("--stale", is_flag=True, help="Every chunk whose audio is newer than its transcript.")
@click.option("--model-not", metavar="MODEL", help="Every chunk that was not transcribed by this model.")
@json_option
@pass_app
def redo(app: App, what: str | None, *, stale: bool, model_not: str | None, as_json: bool) -> None:
    """Transcribe WHAT (a key or a session) again.

    Old transcripts are moved aside and kept.
    """
    if sum(map(bool, (what, stale, model_not))) != 1:
        raise click.UsageError("give one of: a key or a session, --stale, --model-not MODEL")
    scanner = open_scanner(app.settings)
    chosen = _chosen(app, scanner, what, stale=stale, model_not=model_not)
    stamp = f"{open_clock().now():%Y%m%d-%H%M%S}"
    redone = list(redoing.redo(scanner, chosen, stamp=stamp))
    if as_json:
        print_json({"redone": redone})
        return
    for each in redone:
        app.console.print(f"pending again: {printable(each.key)}", markup=False)
    aside = url_of(scanner.output, f"{keys.SUPERSEDED}{stamp}/")
    app.console.print(f"{len(redone)} chunks are pending again; old transcripts in {aside}", markup=False)


@click.group()
def quarantine() -> None:
    """Chunks that failed for good."""


@quarantine.command("list")
@json_option
@pass_app
def quarantine_list(app: App, *, as_json: bool) -> None:
    """Every quarantined chunk, with its last error."""
    records = redoing.quarantined(open_stores(app.settings)[1])
    if as_json:
        print_json({"quarantined": records})
        return
    for record in records:
        line = f"{record.key}: {record.message} ({record.attempts} attempts, {record.at:%Y-%m-%d %H:%M} UTC)"
        app.console.print(printable(line), markup=False)
    app.console.print(f"{len(records)} quarantined" if records else "nothing is quarantined")


@quarantine.command("release")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Release every chunk.")
@json_option
@pass_app
def quarantine_release(app: App, keys: Sequence[str], *, everything: bool, as_json: bool) -> None:
    """Forget the failures of KEYS, so that the next runs retry them."""
    if bool(keys) == everything:
        raise click.UsageError("give the keys, or --all")
    wanted = None if everything else [_relative(app, key) for key in keys]
    released = redoing.release(open_stores(app.settings)[1], wanted)
    if as_json:
        print_json({"released": released})
        return
    for key in released:
        app.console.print(f"released: {printable(key)}", markup=False)
    app.console.print(f"{len(released)} released; they start no run of their own before the next listing")


@click.command()
@click.argument("session")
@click.option(
    "--format", "kind", type=click.Choice(["srt", "vtt", "txt", "json"]), default="txt", show_default=True
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file; default stdout."
)
@pass_app
def export(app: App, session: str, *, kind: str, output: Path | None) -> None:
    """A session's transcript, assembled from its current transcripts."""
    whole = assemble(open_scanner(app.settings), session_id(_relative(app, session)))
    for part in whole.parts:
        if UNREADABLE in part.flags:
            click.echo(f"warning: {_unreadable(part.transcript, part.key)}", err=True)
    data = render(whole, kind)
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(data)
        structlog.get_logger("batchscribe").info("exported", file=str(output), bytes=len(data))


def session_id(name: str) -> str:
    """Session id: a folder with its slash, a file's key unchanged."""
    audio = audio_name(name)
    if audio is not None and audio.number is None:
        return name
    return TOP if name in {".", "./", ""} else name.rstrip("/") + "/"


def _chosen(
    app: App, scanner: Scanner, what: str | None, *, stale: bool, model_not: str | None
) -> Sequence[AudioObject]:
    if stale:
        return redoing.stale(scanner)
    if model_not:
        return redoing.model_not(scanner, model_not)
    name = _relative(app, what or "")
    try:
        return redoing.by_key(scanner, name)
    except ObjectNotFoundError:
        return redoing.by_session(scanner, session_id(name))


def _relative(app: App, key: str) -> str:
    """Returns the key below the source; `key` may be a whole URL."""
    return key.removeprefix(app.settings.required("BATCH_SOURCE").rstrip("/") + "/")


def _unreadable(transcript: str, key: str) -> str:
    return printable(f"{transcript} is not read; `batchscribe redo {key}` transcribes it again")


def _describe_life(life: Life) -> Iterator[str]:
    yield f"{life.key}  (session {shown(life.session)})"
    if life.audio is None:
        yield "  the audio was deleted"
    else:
        yield f"  audio       {life.audio.size} bytes, {life.audio.modified:%Y-%m-%d %H:%M:%S} UTC"
        yield f"  state       {life.state}" + (" (stale: the audio is newer)" if life.stale else "")
        yield f"  transcript  goes to {life.planned}"
    for transcript in life.transcripts:
        if transcript.unreadable:
            yield f"  unreadable  {_unreadable(transcript.key, life.key)} ({transcript.unreadable})"
            continue
        by = f" by {transcript.engine} {transcript.model or ''}".rstrip() if transcript.engine else ""
        flags = f" [{', '.join(transcript.flags)}]" if transcript.flags else ""
        yield f"  transcribed {transcript.written:%Y-%m-%d %H:%M:%S} UTC{by}{flags}: {transcript.key}"
    for mention in life.runs:
        yield f"  run         {mention.run}, worker {mention.worker}: {mention.outcome or 'open'}"
    for failure in life.failures:
        yield f"  failed      {failure.at:%Y-%m-%d %H:%M:%S} UTC ({failure.kind}): {failure.message}"
    if life.quarantine:
        yield f"  quarantine  {life.quarantine.message}; `batchscribe quarantine release` retries it"
