"""Other seams of the controller: stores, ledger, lock, notifier and view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from batchscribe.core.messages import Message
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.instances import Claim
from batchscribe.core.run.manifest import Progress
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run
from batchscribe.core.run.waiting import Wait
from batchscribe.errors import LockHeldError
from batchscribe.ledger import Ledger
from batchscribe.protocols import Clock, Guard
from batchscribe.testing.store import MemoryStore
from simulation.gate import Gate

UNREADABLE = "of-a-newer-version"
PRAGMAS = {"journal_mode": "MEMORY", "synchronous": "OFF", "foreign_keys": "ON"}


class Bucket(MemoryStore):
    """The objects of all writers, with the number of writes of each."""

    threads = 1

    def __init__(self, clock: Clock, *, url: str) -> None:
        super().__init__(clock, url=url)
        self.written: Counter[str] = Counter()
        self.changes = 0
        self.on_write: Callable[[str], None] = lambda _key: None
        self.forged: dict[str, bytes] = {}
        """Objects written by the forger."""
        self.spoilt: dict[str, bytes] = {}
        """Objects that the forger overwrote or deleted."""

    def forge(self, key: str, data: bytes) -> None:
        self._spoil(key)
        self.forged[key] = data
        self.place(key, data)

    def forge_deletion(self, key: str) -> None:
        self._spoil(key)
        self.delete(key)

    def is_forged(self, key: str) -> bool:
        return key in self.forged and self.has(key) and self.get(key).data == self.forged[key]

    def original(self, key: str) -> bytes | None:
        """Last version written by batchscribe; None if there is none."""
        if self.is_forged(key) or not self.has(key):
            return self.spoilt.get(key)
        return self.get(key).data

    def _spoil(self, key: str) -> None:
        if (data := self.original(key)) is not None:
            self.spoilt[key] = data

    def place(
        self, key: str, data: bytes = b"", *, modified: datetime | None = None, size: int | None = None
    ) -> ObjectInfo:
        info = super().place(key, data, modified=modified, size=size)
        self.written[key] += 1
        self.changes += 1
        self.on_write(key)
        return info

    def delete(self, key: str) -> None:
        super().delete(key)
        self.changes += 1

    def has(self, key: str) -> bool:
        return key in self._objects

    def modified(self, key: str) -> datetime | None:
        """Time of its last write; None if it does not exist."""
        stored = self._objects.get(key)
        return stored.info.modified if stored else None


class StoreSeam:
    """A protocols.Store: the bucket as the controller reaches it."""

    threads = 1
    """One reader: the order of the calls is part of an episode."""

    def __init__(self, bucket: Bucket, gate: Gate) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._gate = gate

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        act = lambda: list(self._bucket.list(prefix, after=after))  # noqa: E731  one line, used once
        yield from self._gate.call("store.list", prefix, act)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        return self._gate.call("store.get", key, lambda: self._bucket.get(key, limit=limit))

    def get_range(self, key: str, start: int, length: int) -> Blob:
        return self._gate.call("store.get", key, lambda: self._bucket.get_range(key, start, length))

    def create(self, key: str, data: bytes) -> bool:
        return self._gate.call("store.create", key, lambda: self._bucket.create(key, data))

    def replace(self, key: str, data: bytes) -> None:
        self._gate.call("store.replace", key, lambda: self._bucket.replace(key, data))

    def delete(self, key: str) -> None:
        self._gate.call("store.delete", key, lambda: self._bucket.delete(key))


@dataclass(frozen=True, slots=True)
class LedgerCopy:
    file: bytes
    known: Mapping[str, Run]


class LedgerSeam(Ledger):
    """In-memory ledger that outlives its process and keeps committed data only."""

    def __init__(self, gate: Gate, *, saved: Callable[[Run, datetime], None]) -> None:
        super().__init__(Path(":memory:"), pragmas=PRAGMAS)
        self.known: dict[str, Run] = {}
        """All its runs, as last saved."""
        self.gate = gate
        """Gate of the process that uses it now."""
        self._saved = saved
        self._rows: dict[tuple[object, ...], list[Any]] = {}
        """Results of queries since the last change: every pass repeats the same ones."""
        self._rows_at = -1

    def _fetch_rows(self, name: str, values: Mapping[str, object]) -> list[Any]:
        if self._rows_at != self._db.total_changes:
            self._rows_at = self._db.total_changes
            self._rows.clear()
        query = (name, *values.values())
        if query not in self._rows:
            self._rows[query] = super()._fetch_rows(name, values)
        return self._rows[query]

    def copy(self) -> LedgerCopy:
        """Returns a copy of its file."""
        return LedgerCopy(self._db.serialize(), dict(self.known))

    def restore(self, older: LedgerCopy) -> None:
        """Restores a copy."""
        self._db.deserialize(older.file)
        self._rows.clear()
        self.known = dict(older.known)

    def hold_unreadable(self) -> None:
        """Adds an open run of a newer version before all others."""
        row = {"id": UNREADABLE, "state": "planned", "outcome": None, "created": "", "settled": None}
        self._execute_query("save_run", {**row, "cost_micros": 0, "document": '{"version":99}'})

    def drop_unreadable(self) -> None:
        self._db.execute("DELETE FROM runs WHERE id = ?", (UNREADABLE,))

    def save_run(self, run: Run, *, at: datetime, note: str = "") -> None:
        def save() -> None:
            super(LedgerSeam, self).save_run(run, at=at, note=note)
            self.known[run.id] = run
            self._saved(run, at)

        self.gate.call("ledger.save_run", f"{run.id} {run.state.value}", save)

    def put(self, key: str, value: str | None) -> None:
        act = super().put
        self.gate.call("ledger.put", key, lambda: act(key, value))

    def save_sample(self, sample: QueueSample) -> None:
        act = super().save_sample
        self.gate.call("ledger.save_sample", sample.decision, lambda: act(sample))

    def learn(self, *, run: str, **lesson: Any) -> None:
        act = super().learn
        self.gate.call("ledger.learn", run, lambda: act(run=run, **lesson))

    def record_alert(self, key: str, at: datetime) -> None:
        act = super().record_alert
        self.gate.call("ledger.record_alert", key, lambda: act(key, at))


class GuardSeam:
    """A protocols.Guard as the controller reaches it."""

    def __init__(self, guard: Guard, gate: Gate) -> None:
        self.description = guard.description
        self._guard = guard
        self._gate = gate

    def arm(self, claim: Claim) -> None:
        self._gate.call("guard.arm", claim.run, lambda: self._guard.arm(claim))

    def disarm(self, instance: str, run: str) -> None:
        self._gate.call("guard.disarm", run, lambda: self._guard.disarm(instance, run))

    def armed(self, instance: str) -> frozenset[str]:
        return self._gate.call("guard.armed", instance, lambda: self._guard.armed(instance))


SENDING = "message that is about to be sent"
"""Kind that `TextCollector` reports before a message is sent, without its text."""


class TextCollector:
    """Notifier, view and reader of reports, which collects all texts."""

    def __init__(self, gate: Gate, collect: Callable[[str, str], None]) -> None:
        self._gate = gate
        self._collect = collect

    def send(self, message: Message) -> None:
        self._collect(SENDING, "")
        self._gate.call("notify", message.level.value, lambda: self._deliver(message))

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        self._gate.call("notify", kind, lambda: self._collect("event", str(data)))

    def show(self, run: Run, progress: Progress) -> None:
        self._gate.point("show", f"{run.id} {progress.sequence}")

    def wait(self, wait: Wait, run: str = "") -> None:
        self._gate.point("wait", f"{run} {wait.text}")

    def clear(self) -> None:
        """Shows nothing that has to be removed."""

    def _deliver(self, message: Message) -> None:
        self._collect("message", f"{message.title}\n{message.body}")


class KernelLock:
    """A protocols.Lock on a file, with the kernel's lock table.

    A file is a number, and `at` is the path's current file. `doubled` is called if a second process gets the
    lock while the first one still runs.
    """

    def __init__(self, doubled: Callable[[str], object]) -> None:
        self.at = 1
        self.process: Callable[[], int] = lambda: 0
        """The process that requests the lock now."""
        self._files = 1
        self._holders: dict[int, int] = {}
        self._doubled = doubled

    @contextmanager
    def held(self, *, patience: float = 0.0) -> Iterator[None]:  # noqa: ARG002  its holder does not move meanwhile
        process = self.process()
        self.take(process)
        try:
            yield
        finally:
            self.bury(process)

    def holder(self) -> str | None:
        pid = self._holders.get(self.at)
        return f"{pid} simulated" if pid else None

    def take(self, process: int) -> None:
        """Locks the file at the path for the process. Raises LockHeldError."""
        file = self.open()
        if file in self._holders:
            raise LockHeldError(f"another tick is running ({self.holder()}); nothing was done")
        others = [str(pid) for pid in self._holders.values()]
        self._holders[file] = process
        if others:
            self._doubled(f"processes {process} and {', '.join(others)} hold the lock at once")

    def open(self) -> int:
        """Returns the file at the path; creates it if missing."""
        if not self.at:
            self._files += 1
            self.at = self._files
        return self.at

    def unlink(self) -> None:
        """Removes the file's name, which batchscribe must never do."""
        self.at = 0

    def bury(self, pid: int) -> None:
        """Frees the lock of a process that released it or died."""
        self._holders = {file: holder for file, holder in self._holders.items() if holder != pid}
