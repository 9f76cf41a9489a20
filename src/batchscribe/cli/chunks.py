"""`why`, `redo`, `quarantine` and `export`: single chunks and sessions."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import click

from batchscribe.cli.app import (
    App,
    json_option,
    pass_app,
    print_json,
    print_warning,
    source_option,
    write_result,
)
from batchscribe.cli.tick import open_app_scheduler
from batchscribe.control_place import build_url
from batchscribe.controller.commands import redo as redoing
from batchscribe.controller.commands.why import ChunkHistory, describe_unreadable, list_events
from batchscribe.controller.commands.why import read_history as life_of
from batchscribe.controller.observe import observe
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import AssembledSession, assemble_session
from batchscribe.core import keys
from batchscribe.core.decide.policy import decide
from batchscribe.core.figures import format_count, format_hours, format_size
from batchscribe.core.redaction import printable
from batchscribe.core.scan.backlog import ChunkState
from batchscribe.core.scan.chunks import TOP, session_id, show_session
from batchscribe.core.scan.folders import AudioObject
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.stitching import UNREADABLE
from batchscribe.errors import BatchscribeError, MisconfiguredError, ObjectNotFoundError
from batchscribe.wiring.estimates import estimate_audio
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scanners import open_scanner
from batchscribe.wiring.seams import open_stores

HTML = "html"
NAMED = 10
"""Maximum number of sessions in an error."""
_NEXT = "`batchscribe run` transcribes now, else a later tick"


@click.command()
@click.argument("key")
@source_option
@json_option
@pass_app
def why(app: App, key: str, *, as_json: bool) -> None:
    """The history of one chunk: audio, attempts, transcripts, quarantine, and their runs."""
    life = life_of(open_scanner(app.settings), app.make_relative(key), max_wait=app.settings.max_wait)
    if life.state is ChunkState.PENDING:
        life = replace(life, next_tick=_decide_next_tick(app))
    if as_json:
        print_json(life)
        return
    for line in _describe_life(life):
        app.console.print(printable(line), markup=False)


@click.command()
@click.argument("what", required=False)
@click.option("--stale", is_flag=True, help="Every chunk whose audio is newer than its transcript.")
@click.option("--model-not", metavar="MODEL", help="Every chunk that was not transcribed by this model.")
@click.option("--dry-run", is_flag=True, help="Show what it would transcribe again, and at what cost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@source_option
@json_option
@pass_app
def redo(
    app: App,
    what: str | None,
    *,
    stale: bool,
    model_not: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Transcribe WHAT (a key or a session) again, after showing the cost.

    Old transcripts are moved aside and kept.
    """
    if sum(map(bool, (what, stale, model_not))) != 1:
        raise click.UsageError("give one of: a key or a session, --stale, --model-not MODEL")
    scanner = open_scanner(app.settings)
    found = _choose_audio(app, scanner, what, stale=stale, model_not=model_not)
    chosen = redoing.select_attempted(scanner, found)
    if dry_run or not chosen:
        if as_json:
            print_json({"would_redo": [audio.info.key for audio in chosen]})
        else:
            line = f"Would redo {_describe_redo(app, chosen)}" if chosen else _explain_nothing(len(found))
            app.console.print(f"{line}. Nothing was changed.", markup=False)
        return
    if not yes:
        _confirm("redo", _describe_redo(app, chosen))
    stamp = f"{open_clock().now():%Y%m%d-%H%M%S}"
    redone = list(redoing.redo(scanner, chosen, stamp=stamp))
    if as_json:
        print_json({"redone": redone})
        return
    for each in redone:
        app.console.print(f"pending again: {printable(each.key)}", markup=False)
    kept = any(each.kept for each in redone)
    aside = f"; old transcripts in {build_url(scanner.output, f'{keys.SUPERSEDED}{stamp}/')}" if kept else ""
    count = format_count(len(redone), "chunk")
    app.console.print(f"{count} pending again{aside}. {_NEXT}", markup=False)


@click.group()
def quarantine() -> None:
    """Chunks that failed for good."""


@quarantine.command("list")
@source_option
@json_option
@pass_app
def quarantine_list(app: App, *, as_json: bool) -> None:
    """Every quarantined chunk, with its last error."""
    records = redoing.list_quarantined(open_stores(app.settings)[1])
    if as_json:
        print_json({"quarantined": records})
        return
    for record in records:
        attempts = format_count(record.attempts, "attempt")
        line = f"{record.key}: {record.message} ({attempts}, {record.at:%Y-%m-%d %H:%M} UTC)"
        app.console.print(printable(line), markup=False)
    app.console.print(f"{len(records)} quarantined" if records else "nothing is quarantined")


@quarantine.command("release")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Release every chunk.")
@source_option
@json_option
@pass_app
def quarantine_release(app: App, keys: Sequence[str], *, everything: bool, as_json: bool) -> None:
    """Forget the failures of KEYS, so that the next runs retry them."""
    if bool(keys) == everything:
        raise click.UsageError("give the keys, or --all")
    wanted = None if everything else [app.make_relative(key) for key in keys]
    released = redoing.release_quarantined(open_stores(app.settings)[1], wanted)
    if as_json:
        print_json({"released": released})
        return
    for key in released:
        app.console.print(f"released: {printable(key)}", markup=False)
    app.console.print(
        f"{format_count(len(released), 'chunk')} released for the next run; `batchscribe run` starts one"
        if released
        else "nothing is quarantined: nothing was released"
    )


@click.command()
@click.argument("session")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["srt", "vtt", "txt", "tsv", "json", HTML]),
    default="txt",
    show_default=True,
    help="Format of the transcript.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file; default stdout."
)
@click.option(
    "--audio-mb",
    type=click.IntRange(0, 1000),
    default=20,
    show_default=True,
    help="Of html: most audio inside the file, in MB at 32 kbit/s; longer sessions open it from disk.",
)
@source_option
@json_option
@pass_app
def export(app: App, session: str, *, kind: str, output: Path | None, audio_mb: int, as_json: bool) -> None:
    """A session's transcript, assembled from its current transcripts.

    The format html is a reader in one file, with the audio: it needs neither server nor network.
    """
    kind = "json" if as_json else kind
    scanner, wanted = open_scanner(app.settings), session_id(app.make_relative(session))
    rendering = app.settings.open_rendering()
    try:
        found = assemble_session(scanner, wanted, rendering)
    except ObjectNotFoundError:
        if (other := _find_session(scanner, wanted)) == wanted:
            raise
        wanted = other
        found = assemble_session(scanner, wanted, rendering)
    for part in found.transcript.parts:
        if UNREADABLE in part.flags:
            print_warning(describe_unreadable(part.transcript, part.key))
    if found.missing:
        print_warning(_describe_missing(show_session(wanted), found))
    if kind == HTML:
        data = _render_reader(app, scanner, found, audio_mb, rendering)
    else:
        data = rendering.render(found.transcript, kind)
    write_result(app, output, data)


def _render_reader(
    app: App, scanner: Scanner, found: AssembledSession, audio_mb: int, rendering: Rendering
) -> bytes:
    """Renders the reader, with the audio that can be decoded here."""
    from batchscribe.dashboard import pages  # noqa: F401 - first, since it reports a missing extra
    from batchscribe.dashboard.audio import embed_audio
    from batchscribe.dashboard.reader import render_file

    audio = embed_audio(app.settings, scanner.source, found.transcript, audio_mb * 1_000_000)
    for note in audio.notes:
        print_warning(note)
    return render_file(found, audio, rendering).encode()


def _describe_missing(session: str, found: AssembledSession) -> str:
    """Reports how much of the session is missing, and why."""
    reasons = ", ".join(f"{len(some)} {reason}" for reason, some in found.missing.items())
    left = [key for some in found.missing.values() for key in some]
    return (
        f"session {session!r} is incomplete: {len(left)} of {format_count(found.chunks, 'chunk')} missing "
        f"({reasons}), the rest is in its transcript; see `batchscribe why {shlex.quote(left[0])}`"
    )


def _find_session(scanner: Scanner, wanted: str) -> str:
    """Returns the session, or the only one whose name contains `wanted`.

    Case is ignored. Raises ObjectNotFoundError, with similar sessions, or with those of the folder.
    """
    sessions = sorted({audio.name.session for audio in scanner.audio()})
    if wanted in sessions:
        return wanted
    folder, name = "" if wanted == TOP else wanted, show_session(wanted)
    inside = [show_session(each) for each in sessions if wanted.endswith("/") and each.startswith(folder)]
    if inside:
        raise ObjectNotFoundError(f"{name!r} is a folder of several sessions: {_list_names(inside)}")
    similar = [each for each in sessions if name.casefold() in show_session(each).casefold()]
    if len(similar) == 1:
        return similar[0]
    similar = similar or [each for each in sessions if _is_near(name, show_session(each))]
    names = _list_names([show_session(each) for each in similar])
    hint = f"; similar: {names}" if similar else "; see `batchscribe scan --all`"
    raise ObjectNotFoundError(f"no session {name!r} in {scanner.source.url}{hint}")


def _is_near(name: str, session: str) -> bool:
    """True if a session's path, file name or stem is similar."""
    path = PurePosixPath(session)
    return bool(difflib.get_close_matches(name, [session, path.name, path.stem]))


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def _choose_audio(
    app: App, scanner: Scanner, what: str | None, *, stale: bool, model_not: str | None
) -> Sequence[AudioObject]:
    if stale:
        return redoing.find_stale(scanner)
    if model_not:
        return redoing.find_without_model(scanner, model_not)
    name = app.make_relative(what or "")
    try:
        return redoing.find_by_key(scanner, name)
    except ObjectNotFoundError:
        return redoing.find_by_session(scanner, session_id(name))


def _describe_redo(app: App, chosen: Sequence[AudioObject]) -> str:
    """Number of chunks, with audio and cost if the price is known."""
    try:
        estimated = estimate_audio(app.settings, chosen)
    except MisconfiguredError as error:
        return f"{format_count(len(chosen), 'chunk')} (cost unknown: {error})"
    audio = format_hours(estimated.audio_seconds)
    return f"{format_count(len(chosen), 'chunk')}, about {audio} of audio, about {estimated.cost}"


def _explain_nothing(found: int) -> str:
    fresh = f": {format_count(found, 'chunk')} not transcribed yet, which the next run takes" if found else ""
    return f"There is nothing to redo{fresh}"


def _confirm(act: str, planned: str) -> None:
    """Asks the user. Raises MisconfiguredError without a terminal, Abort after a no."""
    if not sys.stdin.isatty():
        raise MisconfiguredError(f"{act} of {planned} was not confirmed: add --yes (nothing was changed)")
    click.confirm(f"{act.capitalize()} {planned}?", abort=True)


def _decide_next_tick(app: App) -> str:
    """Decision of a tick now, or the reason why there is none."""
    try:
        with open_app_scheduler(app, remember=False) as made:
            decision = decide(observe(made.world, made.config), made.config.policy)
    except BatchscribeError as error:
        return f"unknown: {error}"
    return f"would {type(decision).__name__.lower()}: {decision.reason.sentence}"


def _describe_life(life: ChunkHistory) -> Iterator[str]:
    yield f"{life.key}  (session {show_session(life.session)})"
    if life.audio is None:
        yield "  the audio was deleted"
    else:
        yield f"  audio       {format_size(life.audio.size)}, {life.audio.modified:%Y-%m-%d %H:%M:%S} UTC"
        yield f"  state       {life.explanation}"
        if life.next_tick:
            yield f"  next tick   {life.next_tick}"
        yield f"  transcript  goes to {life.planned}"
    for at, event, run in sorted(list_events(life)):
        of_run = f"run {run}, " if run else ""
        yield f"  {at:%Y-%m-%d %H:%M:%S} UTC  {of_run}{event}"
    if life.quarantine:
        yield f"  quarantine  {life.quarantine.message}; `batchscribe quarantine release` retries it"
