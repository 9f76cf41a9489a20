"""Protocols of all external dependencies of batchscribe but speech engines (engine.py).

All are synchronous and small. Each has a double, and a test suite that the double and the real implementation
pass (docs/seams.md). The ledger has no protocol: it is SQLite, and tests use SQLite in a temporary folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.prices import PriceSheet
from batchscribe.core.messages import Message
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.instances import Claim, Instance
from batchscribe.core.run.manifest import Manifest, WorkerRef

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
    """Objects under one URL.

    Keys are relative to it; they are data, never paths or shell words.
    """

    url: str

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Objects with the key prefix `prefix`, in order of their UTF-8 bytes.

        `after` skips keys up to and including it. An incomplete listing raises, so that it is never taken for
        a complete one.
        """

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        """Reads the whole object. Raises ObjectTooLargeError, without reading, above `limit` bytes."""

    def get_range(self, key: str, start: int, length: int) -> Blob:
        """Reads up to `length` bytes from `start` on.

        Fewer at the end of the object, whose length is `size`; from its end on, `data` is empty. `start` is 0
        or more, `length` 1 or more.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Writes atomically unless the object exists.

        True if the object now holds our `data`. After a conflict, the object is read: True if it equals
        `data` (a lost reply), else False.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Writes or overwrites the object: readers see old or new bytes."""

    def delete(self, key: str) -> None:
        """Removes the object; does nothing if there is none."""


class Capacity(Protocol):
    """Machines for runs: offers, and the machines under a run's claim.

    Raises ComputeUnavailableError (the effect is unknown: poll again), NoCapacityError, QuotaError,
    MisconfiguredError.
    """

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        """Ways to get a machine, in order of preference.

        The first is the polled machine as it is. Sends no request. Raises MisconfiguredError if the price of
        the first is unknown; leaves out others without a price.
        """

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:
        """Makes the next request for a machine of `offer`. Repeatable.

        Its tags are those of `claim`. `seen` is the last poll of the claim's machine. True if the start was
        accepted; False if another request came first (a change of type): poll, and call again. Only `poll`
        proves success.
        """

    def announce(self, instance: str, manifest: str) -> None:
        """Writes another manifest's SHA-256 into the tag of a running machine."""

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        """Polls each machine once, in this order.

        An unknown id has the state `missing`. Leaves out machines whose state cannot be observed now, and
        raises if that are all.
        """

    def list_created(self) -> Iterable[Instance]:
        """Existing machines that runs of any scheduler created.

        An error may follow the last machine: then others may exist.
        """

    def teardown(self, instance: str, *, force: bool = False) -> None:
        """Requests the stop of a machine. Repeatable; only `poll` proves success."""

    def restore(self, instance: str, instance_type: str) -> None:
        """Gives a stopped machine back its own type, which `acquire` changed. Repeatable."""

    def release(self, instance: str) -> None:
        """Removes what a settled run left at its machine. Repeatable.

        Empties the claim's tags at an existing instance, which can keep running. Terminates a machine that
        the run created: one that is only stopped costs its disk.
        """


class Compute(Protocol):
    """Polls, starts and stops existing instances by id.

    For manual control and for one kind of Capacity. Raises ComputeUnavailableError (the effect is unknown:
    poll again), NoCapacityError, MisconfiguredError. Never creates or terminates an instance.
    """

    def describe(self, instance: str) -> Instance:
        """Polls once; an unknown id has the state `missing`."""

    def claim(self, claim: Claim) -> None:
        """Tags the instance with the claim. Repeatable."""

    def start(self, claim: Claim) -> None:
        """Tags the instance with the claim, then requests its start. Repeatable."""

    def announce(self, instance: str, manifest: str) -> None:
        """Writes another manifest's SHA-256 into the tag of a running instance."""

    def stop(self, instance: str, *, force: bool = False) -> None:
        """Requests the stop. Repeatable; only `describe` proves success."""

    def release(self, instance: str) -> None:
        """Empties the claim's tags, after the stop was observed."""

    def change_type(self, instance: str, instance_type: str) -> None:
        """Changes the type of a stopped instance. Repeatable.

        Raises ComputeUnavailableError if it is not stopped (poll again), and MisconfiguredError if it cannot
        have that type.
        """


class Launcher(Protocol):
    """Starts workers on the GPU host; their progress is in the store."""

    def probe(self, instance: Instance) -> str:
        """Version of the installed worker.

        Raises LaunchError with the cause while the GPU host is unreachable, PortClosedError if it is up, and
        MisconfiguredError if waiting cannot help: a changed host key, a missing right, no worker.
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
        """Arms the order for the claim, or raises. Repeatable."""

    def disarm(self, instance: str, run: str) -> None:
        """Removes the order of a run; does nothing if there is none."""

    def armed(self, instance: str) -> frozenset[str]:
        """Runs with an armed order for this instance."""


class SpeakerModel(Protocol):
    """Embeddings of voices: near each other for one, apart for two.

    Raises EngineError. Called by several threads at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def alike(self) -> float:
        """Cosine similarity (-1 to 1) from which on two embeddings match."""

    def embed(self, audio: npt.NDArray[np.float32]) -> Sequence[float] | None:
        """Embedding of 16 kHz mono audio, shape (samples,); None if too short."""


class Notifier(Protocol):
    """Sends messages to the user; never raises, nor blocks for long."""

    def send(self, message: Message) -> None: ...

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        """Sends an event (`run.settled`, `session.completed`) with plain data to programs."""


class PriceSource(Protocol):
    """Present prices of a cloud.

    Raises ComputeUnavailableError, CredentialsError, MissingRightError, and ObjectNotFoundError if it has no
    GPU in that region.
    """

    def read(self, region: str) -> tuple[PriceSheet, ...]:
        """Prices of a region's GPU instances and others, dated today."""

    def read_spot(self, region: str, types: tuple[str, ...]) -> tuple[PriceSheet, ...]:
        """Spot prices of these types, a sheet for each zone."""


class Lock(Protocol):
    """At most one tick on this machine."""

    def held(self, *, patience: float = ...) -> AbstractContextManager[None]:
        """Holds the lock; raises LockHeldError, with its holder, after `patience` seconds."""

    def holder(self) -> str | None:
        """The "PID timestamp" of the holder. None if the lock is free."""
