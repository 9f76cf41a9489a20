"""The log: lines on stderr or in the journal, JSON per run.

In the file, the cost block is text, so that `grep -A10 "Cost Tracking"` prints it.

Before any output, known secrets are removed and control characters are escaped. A log that cannot be written
is reported once and never ends a run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import structlog

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.figures import BLOCK_TITLE, render_block
from batchscribe.core.messages import lead_with_note
from batchscribe.core.redaction import Redactor, printable
from batchscribe.private_files import FILE, make_folder
from batchscribe.protocols import Clock

KEPT = timedelta(days=30)
_OURS = re.compile(r"batchscribe-(\d{8}-\d{6})-.+\.log")
_WORKERS = re.compile(r"worker-.+\.log")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
_TRACE = "exception"
_META = frozenset({"event", "level", "run", "timestamp"})

Event = MutableMapping[str, Any]
Sink = Callable[[Mapping[str, Any]], None]
_sinks: list[Sink] = []


def configure(
    *,
    secrets: Sequence[str] = (),
    clock: Clock | None = None,
    stream: TextIO | None = None,
    journal_stream: str = "",
    level: str = "info",
) -> None:
    """Sends all events to stderr (or `stream`), without `secrets`.

    It may be called again. `journal_stream` is systemd's JOURNAL_STREAM: lines that go there have a priority
    and no time. Warnings and errors of libraries that use the standard library's logging are included. Events
    below `level` go only to the files of runs.
    """
    sink = _make_journal_sink(stream) if _is_journal(stream, journal_stream) else _make_terminal_sink(stream)
    _sinks[:] = [_filter_level(level, sink)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_time(clock or SystemClock()),
            structlog.processors.format_exc_info,
            make_cleaner(Redactor(secrets)),
            _fan_out,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_FromLibraries(logging.WARNING)], level=logging.WARNING, force=True)


@contextmanager
def run_log(folder: Path, run: str, created: datetime) -> Iterator[None]:
    """Adds `run` to events, and also writes them to its file.

    The file is `batchscribe-<run>.log`, so a later tick appends to it; the run's creation time is put before
    an id that does not begin with it. Logs of runs and workers older than 30 days are deleted first.
    """
    stamp = f"{created.astimezone(UTC):%Y%m%d-%H%M%S}-"
    name = stamp + re.sub(r"[^A-Za-z0-9_.-]", "_", run.removeprefix(stamp))
    path = folder / f"batchscribe-{name}.log"
    delete_old_logs(folder, created)
    with structlog.contextvars.bound_contextvars(run=run), _open_file(path) as sink:
        _sinks.append(sink)
        try:
            yield
        finally:
            _sinks.remove(sink)


def delete_old_logs(folder: Path, now: datetime) -> None:
    """Deletes logs of runs and workers that are older than KEPT.

    The age of a run's log is in its name; a worker's log counts from its last line.
    """
    delete_old_files(folder, "*.log", lambda path: _is_old(path, now))


def delete_old_files(folder: Path, pattern: str, is_old: Callable[[Path], bool]) -> None:
    """Deletes the folder's old files; errors are logged, and prevent nothing."""
    try:
        for path in [path for path in folder.glob(pattern) if is_old(path)]:
            path.unlink(missing_ok=True)
    except OSError as error:
        structlog.get_logger().warning("files.not_deleted", folder=str(folder), error=error.strerror)


def _is_old(path: Path, now: datetime) -> bool:
    before = now - KEPT
    if match := _OURS.fullmatch(path.name):
        return path.is_file() and _named_time(match[1], now) < before
    worker = _WORKERS.fullmatch(path.name) is not None and path.is_file()
    return worker and path.stat().st_mtime < before.timestamp()


def _named_time(stamp: str, now: datetime) -> datetime:
    """Start of a log by its name; `now` if it has none.

    A log without a valid time in its name is kept so.
    """
    try:
        return datetime.strptime(stamp, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return now


def _add_time(clock: Clock) -> Callable[[Any, str, Event], Event]:
    def stamp(_logger: Any, _method: str, event: Event) -> Event:
        event["timestamp"] = clock.now().isoformat(timespec="milliseconds")
        return event

    return stamp


def make_cleaner(redact: Redactor) -> Callable[[Any, str, Event], Event]:
    """Processor that removes secrets and control characters from an event."""

    def cleaned(_logger: Any, _method: str, event: Event) -> Event:
        return {
            key: printable(redact(value), keep="\n") if key == _TRACE else _clean_value(value, redact)
            for key, value in event.items()
        }

    return cleaned


def _clean_value(value: Any, redact: Redactor) -> Any:
    """The value as plain data without secrets; other objects become text."""
    match value:
        case bool() | int() | float() | None:
            return value
        case Mapping():
            return {printable(redact(str(key))): _clean_value(item, redact) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean_value(item, redact) for item in value]
        case _:
            return printable(redact(str(value)))


def _fan_out(_logger: Any, _method: str, event: Event) -> Event:
    for sink in tuple(_sinks):
        sink(dict(event))
    raise structlog.DropEvent


def _filter_level(level: str, sink: Sink) -> Sink:
    """Passes on the events of this level and above."""

    def write(event: Mapping[str, Any]) -> None:
        if _PRIORITIES.get(str(event.get("level")), 6) <= _PRIORITIES[level]:
            sink(event)

    return write


def _make_terminal_sink(stream: TextIO | None) -> Sink:
    coloured = (stream or sys.stderr).isatty()
    render = structlog.dev.ConsoleRenderer(
        colors=coloured, pad_event_to=0, pad_level=False, sort_keys=False, timestamp_key="timestamp"
    )

    def write(event: Mapping[str, Any]) -> None:
        shown = lead_with_note(event) | {"timestamp": str(event["timestamp"])[11:19]}
        _write_line(stream, str(render(None, "", shown)))

    return write


def _make_journal_sink(stream: TextIO | None) -> Sink:
    render = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, pad_level=False, sort_keys=False)

    def write(event: Mapping[str, Any]) -> None:
        shown = {key: value for key, value in lead_with_note(event).items() if key != "timestamp"}
        prefix = f"<{_PRIORITIES.get(str(event.get('level')), 6)}>"
        _write_line(stream, prefix + str(render(None, "", shown)).replace("\n", f"\n{prefix}"))

    return write


def _write_line(stream: TextIO | None, text: str) -> None:
    """Writes to the present sys.stderr, which a progress bar may have replaced."""
    with suppress(OSError, ValueError):  # stderr is closed, so the error cannot be reported either
        target = stream or sys.stderr
        target.write(text + "\n")
        target.flush()


def _is_journal(stream: TextIO | None, journal_stream: str) -> bool:
    try:
        info = os.fstat((stream or sys.stderr).fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{info.st_dev}:{info.st_ino}"


@contextmanager
def _open_file(path: Path) -> Iterator[Sink]:
    try:
        make_folder(path.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = open(os.open(path, flags, FILE), "a", encoding="utf-8")  # noqa: PTH123, SIM115
    except OSError as error:
        _warn_of_loss(path, error)
        yield lambda _event: None
        return
    try:
        yield _make_file_sink(path, file)
    finally:
        with suppress(OSError):  # closing retries the failed writes
            file.close()


def _make_file_sink(path: Path, file: TextIO) -> Sink:
    lost = False

    def write(event: Mapping[str, Any]) -> None:
        nonlocal lost
        if lost:
            return
        try:
            file.write(_encode_event(event) + "\n")
            file.flush()
        except OSError as error:
            lost = True
            _warn_of_loss(path, error)

    return write


def _encode_event(event: Mapping[str, Any]) -> str:
    """An event as a JSON line; the cost block as text."""
    if event.get("event") != BLOCK_TITLE:
        return json.dumps(event, ensure_ascii=False, default=str)
    return render_block([(name, str(value)) for name, value in event.items() if name not in _META])


def _warn_of_loss(path: Path, error: OSError) -> None:
    structlog.get_logger().warning(
        "run_log.not_written",
        note="the log of this run cannot be written; the run continues without it",
        path=str(path),
        error=error.strerror,
    )


class _FromLibraries(logging.Handler):
    """Forwards libraries' log records to the same output, with the same redaction."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = "a log record that cannot be read"
        structlog.get_logger().log(record.levelno, text, logger=record.name)
