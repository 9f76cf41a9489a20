"""Protocols of all external dependencies of batchscribe.

All are synchronous and small. Each has a double in `batchscribe.testing` and a conformance suite in
tests/contract that the double and the real implementation pass. The ledger has no protocol: it is SQLite, and
tests use SQLite in a temporary folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol, runtime_checkable

from batchscribe.core.messages import Message
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.instances import Claim, Instance
from batchscribe.core.run.manifest import EngineSpec, Manifest, WorkerRef
from batchscribe.core.text.speech import Recognition, Window


class Clock(Protocol):
    """The only source of time."""

    def now(self) -> datetime:
        """Wall time, aware, UTC."""

    def monotonic(self) -> float:
        """Seconds since boot, including suspend; only differences are meaningful."""

    def boot(self) -> str:
        """Id of this boot; monotonic times of different boots cannot be compared."""

    def sleep(self, seconds: float) -> None:
        """Waits. Raises InterruptedRunError if a signal arrives meanwhile."""


class Store(Protocol):
    """Objects under one URL. Keys are relative to it; they are data, never paths or shell words.

    Raises StoreUnavailableError (retry later), ObjectNotFoundError, ObjectArchivedError,
    MisconfiguredError (no such bucket, no right). Keys may hold any character S3 allows.
    """

    url: str

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects with the key prefix `prefix`, in order of their UTF-8 bytes.

        `after` skips keys up to and including it. An incomplete listing raises, so that it is never taken for
        a complete one.
        """

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Reads the whole object. Raises ObjectTooLargeError, without reading, above `limit` bytes."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes atomically if there is no such object. True if the object now holds our `data`.

        After a conflict, the object is read: True if it equals `data` (a lost reply), else False.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Writes or overwrites the object. A reader sees the old or the new bytes, never a mixture."""

    def delete(self, key: str) -> None:
        """Removes the object; does nothing if there is none."""


class Compute(Protocol):
    """Polls, starts and stops existing instances by id.

    Raises ComputeUnavailableError (the effect is unknown: poll again), NoCapacityError, MisconfiguredError.
    Never creates or terminates an instance.
    """

    def describe(self, instance: str) -> Instance:
        """Polls once. An unknown id returns an instance in state `missing`, not an error."""

    def start(self, claim: Claim) -> None:
        """Tags the instance with the claim, then requests its start. Repeatable."""

    def announce(self, instance: str, manifest: str) -> None:
        """Writes another manifest's SHA-256 into the tag of a running instance."""

    def stop(self, instance: str, *, force: bool = False) -> None:
        """Requests the stop. Repeatable; only `describe` proves success."""

    def release(self, instance: str) -> None:
        """Empties the claim's tags, after the stop was observed."""

    def change_type(self, instance: str, instance_type: str) -> None:
        """Changes the type of a stopped instance, from its next start on. Repeatable.

        Raises ComputeUnavailableError if it is not stopped (poll again), and MisconfiguredError if it cannot
        have that type.
        """


class Launcher(Protocol):
    """Starts workers on the GPU host. Progress is read from the store, not from here."""

    def probe(self, instance: Instance) -> str | None:
        """Version of the installed worker. None while the GPU host is unreachable.

        Raises MisconfiguredError if waiting cannot help: a changed host key, a missing right, no worker.
        """

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        """Ensures that a worker was started on the manifest stored at `url`.

        Idempotent: never starts a worker twice, but restarts an agent that died. Raises LaunchError,
        MisconfiguredError.
        """

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """True if the worker runs; None if that is unknown now."""

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        """Asks the worker to finish its window and end. `force` kills it.

        Does nothing if none runs.
        """


class Guard(Protocol):
    """Stop orders outside this machine, in case this machine fails.

    An order belongs to one instance and one run (or one manual session). It stops the instance every
    GUARD_EVERY from GUARD_FIRST to GUARD_LAST after the deadline, then expires. Raises
    ComputeUnavailableError (the effect is unknown: poll again), MisconfiguredError.
    """

    description: str
    """Short text for `status`: the kind of guard, or why there is none."""

    def arm(self, claim: Claim) -> None:
        """Arms the order for the claim. Repeatable. Raises if it is not armed."""

    def disarm(self, instance: str, run: str) -> None:
        """Removes the order of a run; does nothing if there is none."""

    def armed(self, instance: str) -> frozenset[str]:
        """Runs with an armed order for this instance."""


class Engine(Protocol):
    """A loaded speech model.

    An engine may have any of these optional attributes:

    - `model: str` and `device: str`: its model and device, for transcripts and reports;
    - `batch: int`: number of windows that it transcribes at once; it gets that many of similar length;
    - `reads_ahead: bool`: True if it transcribes a window only after it has requested the window after that
      window's batch. Objects required before a batch are then written during the transcription of the last;
    - `hurry() -> None`: the worker is ending: no more windows follow, and none needs to be decoded again.
    """

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """Yields one result per window, in any order, when ready. Raises EngineError.

        A None in `windows` means that no window is ready yet: an engine that collects a batch then
        transcribes what it has. An engine without collected windows never gets one.
        """


@runtime_checkable
class EngineFactory(Protocol):
    """Object named by an entry point of the group `batchscribe.engines`.

    A factory may also have any of these (`wiring/engines.py` checks for them):

    - `model_name(wanted: str) -> str`: the model to load for this WHISPER_MODEL, which by default is the name
      of a Whisper model;
    - `unable(spec) -> tuple[str, ...]`: reasons why no machine can run `spec`, each with the fix. It runs on
      the scheduler's machine before anything is started, so it must not need the engine's packages;
    - `models() -> Mapping[str, bool]`: known model names; True if the model is on this machine. No network;
    - `fetch(spec) -> Path`: downloads the model to this machine. Raises MisconfiguredError, EngineError;
    - `gpu_missing(spec) -> bool`: True if `spec` requires a GPU and this machine has no usable one.
    """

    name: str

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """Reasons why this engine cannot run `spec` here, each with the fix. Empty if it can.

        Loads no model and uses no network.
        """

    def load(self, spec: EngineSpec) -> Engine:
        """Loads the model from local files only. Raises EngineError, MisconfiguredError."""


class Notifier(Protocol):
    """Sends messages to the user. Never raises or blocks for long: a failure is only logged."""

    def send(self, message: Message) -> None: ...

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        """Sends an event (`run.settled`, `session.completed`) with plain data to programs."""


class Lock(Protocol):
    """At most one tick on this machine."""

    def held(self, *, patience: float = ...) -> AbstractContextManager[None]:
        """Holds the lock for the block. Raises LockHeldError, with its holder, after `patience` seconds."""

    def holder(self) -> str | None:
        """The "PID timestamp" of the holder. None if the lock is free."""
