"""The contract between the controller and the box beside the GPU: what is asked, what it answers.

A question is one of a few fixed words on the box's command line; all data travels as JSON on its
standard input. The answer is the last line of its standard output. Without that line nothing is
known: an exit code of ssh may be the connection's, the shell's or a signal's.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

import msgspec

from batchscribe.core.bounds import Count, Dated, Key, Name, Seconds, Time
from batchscribe.core.foreign import UNREADABLE
from batchscribe.core.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError, UnreadableError

VERSION = 1
MODULE = "batchscribe.wiring.box"
BOOT_MODULE = "batchscribe.wiring.box_boot"
BOX_UNIT = "batchscribe-box.service"
"""Takes up the claim at boot; the other three power off where it cannot."""
DEADMAN_UNITS = ("batchscribe-deadman.service", "batchscribe-deadman.timer", "batchscribe-deadman.path")
CLAIM_SLACK = timedelta(minutes=5)
"""How far the box's clock may be behind the controller's."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WorkerName(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker of which run; becomes the name of a folder on the box."""

    run: Name
    worker: Count

    def checked(self) -> WorkerName:
        """Itself. Raises MisconfiguredError where it could name a folder that is not its own."""
        if not _NAME.fullmatch(self.run) or self.worker < 0:
            raise MisconfiguredError(f"not the name of a run and a worker: {self.run!r} {self.worker}")
        return self


class EndRequest(WorkerName, frozen=True, kw_only=True):
    """Ask a worker to end; `force` does not ask."""

    force: bool = False


class StartRequest(WorkerName, frozen=True, kw_only=True):
    """Start a worker on the manifest stored at `url`; `release` must be the box's own."""

    url: Key
    release: str
    region: str = ""
    endpoint: str = ""
    """Of AWS, for a worker whose environment file does not name them."""


class CheckRequest(Dated, frozen=True, kw_only=True):
    """What the box should be able to do."""

    now: Time
    """The asker's time, to compare clocks."""
    engine: EngineSpec
    gpu: bool
    source: Key = ""
    output: Key = ""
    """URLs of the stores that it must reach; empty ones are not tried."""
    region: str = ""
    endpoint: str = ""
    busy: bool = False
    """A run is at work there: a second model beside its own could take the GPU's memory from it."""
    boots: bool = False
    """Its record says that it takes up claims at boot: its units must be there."""
    home: Key = ""
    """URL of the store where the asker leaves its claims: at boot the box must look there. Empty: any."""


class EnvironmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The lines of the environment file that every worker on the box gets."""

    text: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One precondition that was looked at, and what mends it where it does not hold."""

    what: str
    ok: bool
    detail: str
    mend: str = ""


class BoxReply(msgspec.Struct, frozen=True, kw_only=True):
    """The last line that the box prints."""

    box: Count = VERSION
    release: str = ""
    done: bool = False
    """It did now what was asked; False where that was done before, or had not to be done."""
    error: str = ""
    permanent: bool = False
    """The error stays until somebody mends it."""
    findings: tuple[Finding, ...] = ()


class ClaimLaunch(StrEnum):
    """Who starts the workers on a box that finds this claim."""

    BOOT = "boot"
    """The box itself, as soon as it is up."""
    SSH = "ssh"
    """Its controller, over ssh: the box only sees to it that it does not run on without work."""
    HELD = "held"
    """Nobody: the box does nothing at all, so that a rehearsal shows what else stops it."""


class BoxClaim(Dated, frozen=True, kw_only=True):
    """What a box that starts is there for; gone again when its run has been released."""

    run: Name
    created: Time
    """Of the run's intent: a boot before it, or after `deadline`, is none of this claim's business."""
    deadline: Time
    output: Key
    """URL of the store that holds the run's manifests."""
    launch: ClaimLaunch
    region: str = ""
    endpoint: str = ""

    def meant_for(self, boot: datetime) -> bool:
        """Whether a box that booted then may have been started for this claim."""
        return self.created <= boot + CLAIM_SLACK and boot < self.deadline


class BoxWaits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a box that works by itself waits for others; seconds."""

    store: Seconds = 600.0
    """For its record, after boot: credentials of a role may take a while."""
    first: Seconds = 600.0
    """For the first manifest, and for whoever is to begin over ssh what a manifest asks for."""
    linger: Seconds = 100.0
    """For another manifest or for the stop, after a worker's last word."""
    silence: Seconds = 840.0
    """Without progress of its worker. The dead-man comes a minute later, the controller's patience too."""
    grace: Seconds = 60.0
    """For a worker that was asked to end at the deadline."""
    overtime: Seconds = 180.0
    """From the deadline to the dead-man's, so that the last windows are not lost to it."""
    told: Seconds = 45.0
    """From its word that a worker died to the end of power: its controller may want to stop it."""


class BoxPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Which instance a box is, and where its record lies; left there by the set-up."""

    instance: Name
    home: Key
    """URL of the store that holds the instance's record."""
    region: str = ""
    endpoint: str = ""
    waits: BoxWaits = BoxWaits()


class BootRecord(Dated, frozen=True, kw_only=True):
    """Which boot took up a run's claim; create-only, so that no later boot does it again."""

    version: Count = VERSION
    run: Name
    boot: Name
    """The kernel's boot id."""
    at: Time
    """When that boot began, by the box's clock."""
    release: str


class BoxEnd(Dated, frozen=True, kw_only=True):
    """The box's last word before it powers itself off."""

    version: Count = VERSION
    run: Name
    worker: Count | None = None
    """The worker that died or hung, where that is the reason."""
    why: str
    at: Time


class InstanceRecord(Dated, frozen=True, kw_only=True):
    """What is known of an instance that was set up; kept in the store."""

    version: Count = VERSION
    instance: Name
    release: str
    """The version of the worker installed there."""
    at: Time
    fingerprint: str = ""
    """Of the host key that is pinned for it."""
    boots: bool = False
    """Its units are installed: it takes up its claim at boot, and powers itself off."""
    claim: BoxClaim | None = None


T = TypeVar("T", bound=msgspec.Struct)


def read(data: bytes, kind: type[T]) -> T:
    """The request or record in `data`. Raises MisconfiguredError where it is none."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise UnreadableError(f"not a readable {kind.__name__}: {error}") from error


def last_word(output: bytes) -> BoxReply | None:
    """The reply in the last line of what a box printed; None where it got no last word out.

    What a login script prints before it is skipped.
    """
    lines = output.strip().splitlines()
    try:
        reply = msgspec.json.decode(lines[-1], type=dict[str, object]) if lines else {}
        return msgspec.convert(reply, BoxReply) if "box" in reply else None
    except UNREADABLE:
        return None
