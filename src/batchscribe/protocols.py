"""Every seam of batchscribe on one page.

All are synchronous and small. Each has a double in `batchscribe.testing` and one conformance suite
in tests/contract that the double and the real thing pass. What is not here has no seam: the ledger
is SQLite, and SQLite in a temporary folder is its own double.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol, runtime_checkable

from batchscribe.core.messages import Message
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.instances import Claim, Instance
from batchscribe.core.run.manifest import EngineSpec, Manifest, WorkerRef
from batchscribe.core.text.speech import Recognition, Window


class Clock(Protocol):
    """The only source of time. `sleep` returns early, by raising, when the process is asked to end."""

    def now(self) -> datetime:
        """Wall time, aware, UTC."""

    def monotonic(self) -> float:
        """Seconds since boot, suspend included; only differences mean anything."""

    def boot(self) -> str:
        """Id of this boot: monotonic times of two boots cannot be compared."""

    def sleep(self, seconds: float) -> None:
        """Waits. Raises InterruptedRunError when a signal arrives meanwhile."""


class Store(Protocol):
    """Objects under one URL; keys are relative to it and are data, never paths or shell words.

    Raises StoreUnavailableError (retry later), ObjectNotFoundError, ObjectArchivedError,
    MisconfiguredError (no such bucket, no right). Keys may hold any character S3 allows.
    """

    url: str

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in ascending order of the key's UTF-8 bytes.

        `after` skips keys up to and including it. A listing that cannot be finished raises: a
        partial listing is never mistaken for a whole one.
        """

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """The whole object. Raises ObjectTooLargeError, without reading it, above `limit` bytes."""

    def create(self, key: str, data: bytes) -> bool:
        """Writes if nothing is there, atomically. True if the object now holds `data` through us.

        A conflict is read back: True where what is there is what we wrote (a lost reply), else False.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Writes whatever is there; a reader sees the old or the new bytes, never a mixture."""

    def delete(self, key: str) -> None:
        """Removes the object; nothing happens where there is none."""


class Compute(Protocol):
    """Instances that exist already: looked at, started and stopped by id.

    Raises ComputeUnavailableError (what was done is unknown: look again), NoCapacityError,
    MisconfiguredError. Creating and terminating would be a second protocol.
    """

    def describe(self, instance: str) -> Instance:
        """One look. An id that does not exist is an instance in state `missing`, not an error."""

    def start(self, claim: Claim) -> None:
        """Tags the instance with the claim, then asks for its start. Repeating it is harmless."""

    def announce(self, instance: str, manifest: str) -> None:
        """Writes the SHA-256 of another manifest into the tag of a running instance."""

    def stop(self, instance: str, *, force: bool = False) -> None:
        """Asks for the stop. Repeating it is harmless; success is only what `describe` shows."""

    def release(self, instance: str) -> None:
        """Empties the claim's tags, after the stop was observed."""

    def change_type(self, instance: str, instance_type: str) -> None:
        """Gives a stopped instance another type, from its next start on. Repeating it is harmless.

        Raises ComputeUnavailableError where it is not stopped (look again), MisconfiguredError where it
        cannot have that type.
        """


class Launcher(Protocol):
    """Brings a worker to life beside the GPU. It follows nothing: progress comes through the store."""

    def probe(self, instance: Instance) -> str | None:
        """The version of the worker installed there; None while the box cannot be reached yet.

        Raises MisconfiguredError where waiting cannot help: a changed host key, no right, no worker.
        """

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        """Makes sure that a worker is, or was, at work on the manifest stored at `url`. Idempotent: a worker
        is never started twice, an agent that died is started again. Raises LaunchError, MisconfiguredError.
        """

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """Whether the worker runs; None where that cannot be told right now."""

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        """Asks the worker to finish its window, publish and end; `force` kills it.

        Harmless where none runs.
        """


class Guard(Protocol):
    """A stop order outside this machine, for the case that this machine is gone.

    An order belongs to one instance and one run (or one session by hand); it stops the instance every
    GUARD_EVERY from GUARD_FIRST to GUARD_LAST after the deadline, and is gone after that by itself.
    Raises ComputeUnavailableError (what was done is unknown: look again), MisconfiguredError.
    """

    description: str
    """In a few words for `status`: which guard this is, or why there is none."""

    def arm(self, claim: Claim) -> None:
        """Gives the order for the claim. Repeating it is harmless. Raises where it is not armed."""

    def disarm(self, instance: str, run: str) -> None:
        """Takes the order of a run back. Harmless where there is none."""

    def armed(self, instance: str) -> frozenset[str]:
        """The runs whose orders stand for this instance."""


class Engine(Protocol):
    """A loaded speech model.

    An engine may have any of these:

    - `model: str` and `device: str`: what it is and where it runs, for transcripts and reports;
    - `batch: int`: how many windows it hears at once; it is given so many that are alike in length;
    - `reads_ahead: bool`: it hears no window before it has asked for what comes behind that window's batch.
      What must be in the store before a batch is heard is then written while the one before is being heard.
    - `hurry() -> None`: the worker is to end: what it holds is all it gets, and need not be heard twice.
    """

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """One result for each window, in any order, as soon as it is known. Raises EngineError.

        None comes where no window is ready yet: an engine that gathers windows works on what it holds.
        It never comes to an engine that holds none.
        """


@runtime_checkable
class EngineFactory(Protocol):
    """What an entry point of the group `batchscribe.engines` names.

    A factory may also have any of these (`wiring/engines.py` asks for them):

    - `model_name(wanted: str) -> str`: the model that is loaded for this WHISPER_MODEL, which names one of
      Whisper's unless somebody chose;
    - `unable(spec) -> tuple[str, ...]`: why no machine at all could run `spec`, each with the mend. It is
      asked on the scheduler's machine before anything is started, so it needs none of the engine's packages;
    - `models() -> Mapping[str, bool]`: the names it knows, and whether each is on this machine. No network;
    - `fetch(spec) -> Path`: brings the model onto this machine. Raises MisconfiguredError, EngineError;
    - `gpu_missing(spec) -> bool`: whether `spec` wants a GPU, and this machine has none that is usable.
    """

    name: str

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """Why this engine cannot run `spec` here, each with the mend; empty where it can. Costs
        no model load and no network.
        """

    def load(self, spec: EngineSpec) -> Engine:
        """Loads the model, from this machine only. Raises EngineError, MisconfiguredError."""


class Notifier(Protocol):
    """Tells people. It never raises and never takes long: a dead receiver is a line in the log."""

    def send(self, message: Message) -> None: ...


class Lock(Protocol):
    """At most one tick on this machine."""

    def held(self, *, patience: float = ...) -> AbstractContextManager[None]:
        """Holds the lock for the block. Raises LockHeldError, with its holder, after `patience` seconds."""

    def holder(self) -> str | None:
        """The "PID timestamp" of whoever holds it now; None where nobody does."""
