"""This machine as an instance, which runs while a claim file exists."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.run.instances import RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.detached import write_atomically
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError
from batchscribe.protocols import Clock


class _Started(msgspec.Struct, frozen=True):
    """The claim file: start time and tags of the claim."""

    at: datetime
    tags: dict[str, str]


class LocalCompute:
    """A protocols.Compute for a GPU in this machine. `instance_type` only prices it."""

    def __init__(self, state_dir: Path, clock: Clock, *, instance_type: str = "") -> None:
        self._path = state_dir / "local-instance.json"
        self._clock = clock
        self._type = instance_type

    def describe(self, instance: str) -> Instance:
        if instance != LOCAL:
            return Instance(id=instance, state=InstanceState.MISSING)
        started = self._read_claim()
        if started is None:
            return Instance(id=instance, state=InstanceState.STOPPED, type=self._type)
        return Instance(
            id=instance,
            state=InstanceState.RUNNING,
            type=self._type,
            public_address="127.0.0.1",
            private_address="127.0.0.1",
            launched_at=started.at,
            tags=dict(started.tags),
        )

    def claim(self, claim: Claim) -> None:
        """Starts it: this machine runs already."""
        self.start(claim)

    def start(self, claim: Claim) -> None:
        if claim.instance != LOCAL:
            raise MisconfiguredError(
                f"this machine is {LOCAL!r}, not {claim.instance!r}: fix GPU_INSTANCE_ID"
            )
        before = self._read_claim()
        self._write_claim(_Started(before.at if before else self._clock.now(), claim.tags))

    def announce(self, instance: str, manifest: str) -> None:
        """Does nothing: the worker gets the hash with its command."""

    def start_unclaimed(self, instance: str) -> None:  # noqa: ARG002  the protocol's signature
        """Raises MisconfiguredError: this machine runs."""
        raise MisconfiguredError("the GPU is in this machine: nothing to start")

    def stop(self, instance: str, *, force: bool = False) -> None:  # noqa: ARG002  nothing to force
        if instance == LOCAL:
            self._path.unlink(missing_ok=True)

    def release(self, instance: str) -> None:
        """Empties the claim of a borrowed instance; a stopped one has none."""
        started = self._read_claim()
        if instance == LOCAL and started is not None:
            self._write_claim(_Started(started.at, RELEASED_TAGS))

    def change_type(self, instance: str, instance_type: str) -> None:  # noqa: ARG002  the protocol's signature
        """Raises MisconfiguredError: this machine has one type."""
        raise MisconfiguredError("GPU_INSTANCE_TYPES is for a cloud's instance: this machine has one type")

    def _read_claim(self) -> _Started | None:
        """The claim file; None without one, or without tags (version 0.1)."""
        try:
            started = msgspec.json.decode(self._path.read_bytes(), type=_Started)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise ComputeUnavailableError(f"{self._path} cannot be read: {error}") from error
        return started if started.tags else None

    def _write_claim(self, started: _Started) -> None:
        try:
            write_atomically(self._path, msgspec.json.encode(started))
        except OSError as error:
            raise ComputeUnavailableError(f"{self._path} cannot be written: {error}") from error
