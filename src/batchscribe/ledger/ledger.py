"""Runs, events, samples and priors in one SQLite file on this machine.

The store is the source of truth: transcripts, open runs and costs can be recovered from it alone. No
network call happens inside a transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Self

import msgspec

from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.records import decode_run, encode_run
from batchscribe.core.run.report import QueueSample, RunEvent
from batchscribe.core.run.runs import Run
from batchscribe.core.run.session_costs import SessionShare
from batchscribe.errors import (
    BatchscribeError,
    DamagedLedgerError,
    MisconfiguredError,
    RefusedError,
    TransientError,
)
from batchscribe.ledger.rows import SettledSum, Speed
from batchscribe.ledger.schema import migrate, queries, refuse_damage
from batchscribe.private_files import make_folder, restrict_to_owner

FILE_NAME = "ledger.sqlite"
"""File name in the state directory."""
PRAGMAS = {"busy_timeout": "10000", "journal_mode": "WAL", "synchronous": "FULL", "foreign_keys": "ON"}
READING = {"busy_timeout": "2000"}
"""Pragmas of a ledger that is only read: the file keeps its mode."""
CHECKED_BYTES = 256 * 1024 * 1024
"""Maximum size of a ledger that is checked at each start: a larger one would take seconds."""
LESSONS = 10
"""Number of the latest lessons per median, so that old hardware and models drop out."""
PRUNED = ("prune_samples", "prune_events", "prune_alerts", "prune_facts")
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_NO_ROOM = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_FULL})
"""Extended codes: the file may be intact, but the disk has no room for SQLite's files beside it."""
_PRIMARY = 0xFF
"""SQLite's extended codes keep the primary one in the low byte."""


class Ledger:
    """The open ledger; a context manager.

    Every write is one transaction, on disk when it returns. Raises TransientError if another process
    holds it for too long, MisconfiguredError if its file cannot be used. `pragmas` are for tests that
    need no disk. With `read_only`, only missing tables are written, as while another process creates it.
    """

    def __init__(self, path: Path, *, pragmas: Mapping[str, str] = PRAGMAS, read_only: bool = False) -> None:
        self.path = path
        self.unreadable: tuple[str, ...] = ()
        """Errors of the open runs that the last `open_runs` left out."""
        with self._translate_errors():
            make_folder(path.parent)
            try:
                self._db = _open_database(path, pragmas)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) not in _NO_ROOM:
                    raise
                # Exclusive mode needs no shared-memory file: open runs can still be read on a full disk.
                self._db = _open_database(path, {"locking_mode": "EXCLUSIVE", **pragmas})
            if read_only:
                self._db.execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def save_run(self, run: Run, *, at: datetime, note: str = "") -> None:
        """Saves the run and a row of its history in one transaction.

        Raises RefusedError if another process settled the run meanwhile.
        """
        detail, reason = _escape_bytes(run.detail), _escape_bytes(run.reason)
        if (detail, reason) != (run.detail, run.reason):
            run = replace(run, detail=detail, reason=reason)
        row = {
            "id": run.id,
            "state": run.state.value,
            "outcome": run.outcome.value if run.outcome else None,
            "created": _format_time(run.created),
            "settled": _format_time(run.settled) if run.settled else None,
            "cost_micros": run.cost.micros,
            "document": encode_run(run).decode(),
        }
        event = {
            "run": run.id,
            "at": _format_time(at),
            "state": run.state.value,
            "note": _escape_bytes(note),
        }
        with self._open_transaction():
            before = self.run(run.id)
            if before is not None and run.open and not before.open:
                raise RefusedError(f"run {run.id} was settled by another process: it is not opened again")
            self._execute_query("save_run", row)
            self._execute_query("save_event", event)

    def run(self, run_id: str) -> Run | None:
        return next(self._read_runs("run", {"id": run_id}), None)

    def open_runs(self) -> tuple[Run, ...]:
        """Runs that are not settled, oldest first.

        Unreadable ones are left out and listed in `unreadable`: the others still have to be stopped.
        """
        runs, unreadable = [], []
        for (document,) in self._fetch_rows("open_runs", {}):
            try:
                runs.append(decode_run(document))
            except MisconfiguredError as error:
                unreadable.append(str(error))
        self.unreadable = tuple(unreadable)
        return tuple(runs)

    def runs(self, since: datetime) -> tuple[Run, ...]:
        """Runs open or settled at `since` or later, newest last."""
        return tuple(self._read_runs("runs", {"since": _format_time(since)}))

    def run_page(self, outcome: str, *, skip: int, count: int) -> tuple[Run, ...]:
        """`count` runs from `skip` on, newest first; `open`: without an outcome."""
        page = {"outcome": outcome, "skip": skip, "count": count}
        return tuple(self._read_runs("run_page", page))

    def outcomes(self) -> dict[str, int]:
        """Number of runs by outcome, or `open`, the most frequent first."""
        return dict(self._fetch_rows("outcomes", {}))

    def spent(self, since: datetime) -> Usd:
        """Upper bound of the cost of runs settled at `since` or later."""
        return Usd(int(self._fetch_rows("spent", {"since": _format_time(since)})[0][0]))

    def spent_today(self, now: datetime) -> Usd:
        """Upper bound of the cost of runs settled today, in UTC."""
        return self.spent(now.replace(hour=0, minute=0, second=0, microsecond=0))

    def sum_settled(self) -> tuple[SettledSum, ...]:
        """Sums over all settled runs, by outcome."""
        return tuple(
            SettledSum(outcome, runs, Usd(int(micros)), *sums)
            for outcome, runs, micros, *sums in self._fetch_rows("sum_settled", {})
        )

    def events(self, run_id: str) -> tuple[RunEvent, ...]:
        """The history of a run, oldest first."""
        rows = self._fetch_rows("events", {"run": run_id})
        return tuple(
            RunEvent(at=datetime.fromisoformat(at), state=state, note=note) for at, state, note in rows
        )

    def save_sample(self, sample: QueueSample) -> None:
        """Saves the backlog that a holding tick observed."""
        row = msgspec.structs.asdict(sample) | {
            "at": _format_time(sample.at),
            "oldest": _format_time(sample.oldest) if sample.oldest else None,
            "sentence": _escape_bytes(sample.sentence),
            "numbers": msgspec.json.encode(sample.numbers).decode(),
        }
        with self._open_transaction():
            self._execute_query("save_sample", row)

    def samples(self, since: datetime) -> tuple[QueueSample, ...]:
        """Samples of holding ticks at `since` or later, oldest first."""
        return tuple(
            _decode_sample(row) for row in self._fetch_rows("samples", {"since": _format_time(since)})
        )

    def last_tick(self) -> datetime | None:
        """Time of the last tick that recorded something."""
        latest = self._fetch_rows("last_tick", {})[0][0]
        return datetime.fromisoformat(latest) if latest else None

    def learn(
        self, *, run: str, engine: str, model: str, instance_type: str, at: datetime, measured: Priors
    ) -> None:
        """Saves a run's measurements, replacing earlier ones of the run.

        Values that are not positive are unknown.
        """
        lesson: dict[str, object] = {"run": run, "engine": engine, "model": model}
        lesson |= {"instance_type": instance_type, "at": _format_time(at)}
        for name in ("speed", "setup_seconds", "release_seconds"):
            value = getattr(measured, name)
            lesson[name] = value if value > 0 else None
        with self._open_transaction():
            self._execute_query("learn", lesson)
            self._execute_query("forget_bytes", {"run": run})
            for kind, rate in measured.bytes_per_second.items():
                if rate > 0:
                    self._execute_query("learn_bytes", {"run": run, "type": kind, "bytes_per_second": rate})

    def save_sessions(self, run: str, shares: Iterable[SessionShare]) -> None:
        """Saves the sessions' parts of a run, replacing earlier ones."""
        with self._open_transaction():
            self._execute_query("forget_sessions", {"run": run})
            for share in shares:
                row = msgspec.structs.asdict(share) | {"session": _escape_bytes(share.session)}
                self._execute_query("save_session", row)

    def sessions(self, since: datetime) -> tuple[SessionShare, ...]:
        """Sessions' parts of the runs that were settled at `since` or later."""
        names = SessionShare.__struct_fields__
        found = self._fetch_rows("sessions", {"since": _format_time(since)})
        return tuple(msgspec.convert(dict(zip(names, row, strict=True)), SessionShare) for row in found)

    def priors(self, *, engine: str, model: str, instance_type: str, default: Priors) -> Priors:
        """Returns medians of the latest lessons, `default` if there are none.

        Speed and overheads depend on engine, model and instance type; bitrates on the recordings alone. The
        slow set-up is the slowest of the latest, and not below `default` until there are LESSONS of them.
        """
        of = {"engine": engine, "model": model, "instance_type": instance_type, "last": LESSONS}
        rows = self._fetch_rows("lessons", of)
        speeds, setups, releases = ([row[at] for row in rows if row[at] is not None] for at in range(3))
        sizes: dict[str, list[float]] = {}
        for kind, value in self._fetch_rows("lesson_bytes", {"last": LESSONS}):
            sizes.setdefault(kind, []).append(value)
        learned = {kind: median(values) for kind, values in sizes.items()}
        return Priors(
            speed=median(speeds) if speeds else default.speed,
            setup_seconds=median(setups) if setups else default.setup_seconds,
            # Ten values have no 95th percentile: the slowest stands for it.
            setup_p95_seconds=max([*setups, default.setup_p95_seconds][:LESSONS]),
            release_seconds=median(releases) if releases else default.release_seconds,
            bytes_per_second={**default.bytes_per_second, **learned},
            learned=default.learned or bool(speeds),
        )

    def speeds(self) -> tuple[Speed, ...]:
        """Median speed by engine, model and type, from the latest lessons."""
        rows = self._fetch_rows("speeds", {"last": LESSONS})
        return tuple(
            Speed(engine, model, kind, median(speeds), len(speeds))
            for (engine, model, kind), group in groupby(rows, key=itemgetter(0, 1, 2))
            if (speeds := [row[3] for row in group])
        )

    def last_engine(self) -> str:
        """Engine and model of the latest lesson; empty without one."""
        return next(
            (f"{engine} {model}".strip() for engine, model in self._fetch_rows("last_engine", {})), ""
        )

    def get(self, key: str) -> str | None:
        rows = self._fetch_rows("get", {"key": key})
        return rows[0][0] if rows else None

    def facts(self, prefix: str) -> dict[str, str]:
        """Facts whose keys start with `prefix`, in key order."""
        return dict(self._fetch_rows("facts", {"prefix": prefix}))

    def put(self, key: str, value: str | None) -> None:
        """Stores a fact under a key; None deletes it."""
        with self._open_transaction():
            if value is None:
                self._execute_query("drop", {"key": key})
            else:
                self._execute_query("put", {"key": key, "value": value})

    def is_alert_due(self, key: str, at: datetime, every: timedelta) -> bool:
        rows = self._fetch_rows("last_alert", {"key": key})
        return not rows or at - datetime.fromisoformat(rows[0][0]) >= every

    def record_alert(self, key: str, at: datetime) -> None:
        """Records an alert as sent."""
        with self._open_transaction():
            self._execute_query("save_alert", {"key": key, "at": _format_time(at)})

    def prune(self, before: datetime) -> None:
        """Deletes old samples, alerts, events and facts.

        Samples and alerts are older than `before`, events and facts belong to runs settled before it.
        Runs, lessons, and everything about an open run stay.
        """
        with self._open_transaction():
            for name in PRUNED:
                self._execute_query(name, {"before": _format_time(before)})

    def _execute_query(self, name: str, values: Mapping[str, object]) -> sqlite3.Cursor:
        return self._db.execute(queries()[name], values)

    def _fetch_rows(self, name: str, values: Mapping[str, object]) -> list[Any]:
        with self._translate_errors():
            return self._execute_query(name, values).fetchall()

    def _read_runs(self, name: str, values: Mapping[str, object]) -> Iterator[Run]:
        for (document,) in self._fetch_rows(name, values):
            try:
                yield decode_run(document)
            except MisconfiguredError as error:
                raise MisconfiguredError(
                    f"the ledger {self.path} holds a run that this batchscribe cannot read ({error}): "
                    "install the version that wrote it; nothing was changed"
                ) from error

    @contextmanager
    def _open_transaction(self) -> Iterator[None]:
        """Commits the whole block, or rolls it back on any exception."""
        with self._translate_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _translate_error(self.path, error) from error


def _open_database(path: Path, pragmas: Mapping[str, str]) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        # Before the first write: SQLite gives new files beside it the database's mode.
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):  # a ledger on a read-only file system can still be read
                restrict_to_owner(path.with_name(path.name + suffix))
        for name, value in pragmas.items():
            db.execute(f"PRAGMA {name} = {value}")
        if path.exists() and path.stat().st_size <= CHECKED_BYTES:
            refuse_damage(db)
        migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def _translate_error(path: Path, error: sqlite3.Error | OSError) -> BatchscribeError:
    """Returns the error for the user."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code in _BUSY:
        return TransientError(f"the ledger {path} is held by another process: nothing was changed, try again")
    if code in _DAMAGED:
        return DamagedLedgerError(
            f"the ledger {path} is damaged ({error}); the store still has every transcript and open run"
        )
    if code == sqlite3.SQLITE_FULL:
        return MisconfiguredError(f"the disk of the ledger {path} is full: nothing was changed, make room")
    return MisconfiguredError(
        f"the ledger {path} cannot be used ({error}): nothing was changed; correct the folder, or its owner "
        "and rights (the schedule and your shell must be the same user)"
    )


def _format_time(at: datetime) -> str:
    """Formats a time in UTC with microseconds; sorts as text."""
    if at.tzinfo is None:
        raise ValueError(f"time without a time zone: {at}")
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _escape_bytes(text: str) -> str:
    """Escapes bytes of file names that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _decode_sample(row: tuple[Any, ...]) -> QueueSample:
    fields = dict(zip(QueueSample.__struct_fields__, row, strict=True))
    return msgspec.convert(fields | {"numbers": msgspec.json.decode(fields["numbers"])}, QueueSample)
