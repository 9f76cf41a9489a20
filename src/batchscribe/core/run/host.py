"""The contract between the controller and the box beside the GPU: what is asked, what it answers.

A question is one of a few fixed words on the box's command line; all data travels as JSON on its
standard input. The answer is the last line of its standard output. Without that line nothing is
known: an exit code of ssh may be the connection's, the shell's or a signal's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from batchscribe.core.bounds import Count, Dated, Key, Name, Seconds, Time
from batchscribe.core.run.manifest import VERSION as WIRE_VERSION
from batchscribe.core.run.manifest import EngineSpec, WorkerName
from batchscribe.core.unreadable import UNREADABLE

VERSION = WIRE_VERSION
MODULE = "batchscribe.wiring.host"
BOOT_MODULE = "batchscribe.wiring.host_boot"
LIVE = "live"
"""First argument of an agent that has the workers' environment already; an agent started over ssh gets its
run as the second."""
BOX_UNIT = "batchscribe-box.service"
"""Takes up the claim at boot; the other three power off where it cannot."""
DEADMAN_UNITS = ("batchscribe-deadman.service", "batchscribe-deadman.timer", "batchscribe-deadman.path")
CLAIM_SLACK = timedelta(minutes=5)
"""How far the box's clock may be behind the controller's."""


class EndRequest(WorkerName, frozen=True, kw_only=True):
    """Ask a worker to end; `force` kills it. Stored by the controller, obeyed by the agent."""

    force: bool = False


class StartRequest(Dated, frozen=True, kw_only=True):
    """Start the agent for a run, and permit it to begin the run's workers."""

    run: Name
    release: str
    """The version of the controller; the host must have the same."""
    output: Key
    """URL of the store that holds the run's manifests."""
    deadline: Time
    region: str = ""
    endpoint: str = ""
    """AWS's, for a host whose environment file does not name them."""
    borrowed: bool = False
    """The instance's record holds no claim of this run: the host must never be powered off for it."""
    sha256: Key = ""
    """Of the run's last manifest; empty if its controller does not send it."""


class StartPermit(StartRequest, frozen=True, kw_only=True):
    """A start request as the host keeps it, for the agents of one boot."""

    boot: Name
    """The kernel's boot id."""
    at: Time

    def claim(self) -> BoxClaim:
        return BoxClaim(
            run=self.run,
            created=self.at,
            deadline=self.deadline,
            output=self.output,
            launch=ClaimLaunch.SSH,
            region=self.region,
            endpoint=self.endpoint,
            borrowed=self.borrowed,
        )


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
    control: Key = ""
    """URL of the control objects, if they are not below `output`."""


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
    """When the agent of a host that finds this claim begins the run's workers."""

    BOOT = "boot"
    """As soon as the host is up."""
    SSH = "ssh"
    """After the controller's start request over ssh."""
    HELD = "held"
    """Never: the agent does nothing at all, so that a rehearsal shows what else stops the instance."""


class BoxClaim(Dated, frozen=True, kw_only=True):
    """The run that an instance is started for; removed when the run has been released."""

    run: Name
    created: Time
    """Of the run's intent: a boot before it, or after `deadline`, is none of this claim's business."""
    deadline: Time
    output: Key
    """URL of the store that holds the run's manifests."""
    launch: ClaimLaunch
    region: str = ""
    endpoint: str = ""
    borrowed: bool = False
    """The instance runs on after the run: it is never powered off for it."""

    def meant_for(self, boot: datetime) -> bool:
        """True if a host that booted then may have been started for this claim."""
        return self.created <= boot + CLAIM_SLACK and boot < self.deadline


class BoxWaits(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts of the agent, in seconds."""

    store: Seconds = 600.0
    """For its record, after boot: credentials of a role may take a while."""
    first: Seconds = 600.0
    """For the first manifest, and for the start request over ssh once a manifest is there."""
    linger: Seconds = 100.0
    """For another manifest or for the stop, after a worker's last word."""
    silence: Seconds = 840.0
    """Without progress of its worker. The dead-man comes a minute later, the controller's patience too."""
    grace: Seconds = 60.0
    """For a worker that was asked to end, by its controller or at the deadline; then it is killed."""
    overtime: Seconds = 180.0
    """From the deadline to the dead-man's, so that the last windows are not lost to it."""
    told: Seconds = 45.0
    """From its word that a worker died to the end of power: its controller may want to stop it."""


class BoxPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Which instance a box is, and where its record lies; left there by the set-up."""

    instance: Name
    home: Key
    """URL of the store that holds the instance's record."""
    source: Key = ""
    """URL of the audio; with the two others the only places that a manifest may name."""
    control: Key = ""
    """URL of the control objects, the record among them; empty if they are below `home`."""
    region: str = ""
    endpoint: str = ""
    waits: BoxWaits = BoxWaits()

    def control_of(self, output: str) -> str:
        """URL of the control objects of `output`; empty if they are below it, as those of a rehearsal."""
        return self.control if output.rstrip("/") == self.home.rstrip("/") else ""


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
    """Why the agent ended its run; written before the power-off, if there is one."""

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
    shows_tags: bool = False
    """Its metadata service shows its tags, and among them the hash of its manifest."""
    claim: BoxClaim | None = None

    def launch(self, wanted: ClaimLaunch) -> ClaimLaunch:
        """How its workers begin if that is wanted: a manifest without a known hash comes over ssh."""
        able = self.boots and (self.shows_tags or wanted is not ClaimLaunch.BOOT)
        return wanted if able else ClaimLaunch.SSH


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
