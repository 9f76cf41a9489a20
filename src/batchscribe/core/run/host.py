"""The contract between the controller and the GPU host: requests and replies.

A request is one of a few fixed words on the host's command line, with its data as JSON on standard input. The
reply is the last line of standard output. Without that line the result is unknown: an exit code of ssh may
come from the connection, the shell or a signal.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from batchscribe.core.bounds import Count, Dated, Key, Name, Seconds, Time, Word
from batchscribe.core.decide.fixed import ParkedParts
from batchscribe.core.run.manifest import VERSION as WIRE_VERSION
from batchscribe.core.run.manifest import EngineSpec, WorkerName
from batchscribe.core.unreadable import UNREADABLE

VERSION = WIRE_VERSION
MODULE = "batchscribe.wiring.host"
BOOT_MODULE = "batchscribe.wiring.host_boot"
LIVE = "live"
"""First argument of an agent that is started over ssh; its run is the second."""
AGENT_UNIT = "batchscribe-box.service"
"""Accepts the claim at boot; the other three power off if it cannot."""
DEADMAN_UNITS = ("batchscribe-deadman.service", "batchscribe-deadman.timer", "batchscribe-deadman.path")
CREDENTIALS = "credentials"
"""The finding that a host has no credentials for the stores."""
CREDENTIALS_FIX = "attach an instance profile, or use `batchscribe gpu setup --env-file FILE`"
CLAIM_SLACK = timedelta(minutes=5)
"""Largest lag of the host's clock behind the controller's."""


class EndRequest(WorkerName, frozen=True, kw_only=True):
    """Request by the controller to end a worker; `force` kills it."""

    force: bool = False


class StartRequest(Dated, frozen=True, kw_only=True):
    """Request to start a run's agent, which permits it to start workers."""

    run: Name
    release: str
    """The version of the controller; the host must have the same."""
    output: Key
    """URL of the store that holds the run's manifests."""
    deadline: Time
    region: str = ""
    endpoint: str = ""
    """Of AWS, for a host without them in its environment file."""
    borrowed: bool = False
    """The instance's record has no claim of this run: the host must never be powered off for it."""
    sha256: Key = ""
    """Of the run's last manifest; empty if its controller does not send it."""


class StartPermit(StartRequest, frozen=True, kw_only=True):
    """A start request, stored on the host for agents of one boot."""

    boot: Name
    """The kernel's boot id."""
    at: Time

    def claim(self) -> HostClaim:
        return HostClaim(
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
    """Request to check the host's preconditions."""

    now: Time
    """The controller's time, to compare clocks."""
    engine: EngineSpec
    gpu: bool
    source: Key = ""
    output: Key = ""
    """URLs of the stores that it must reach; empty ones are not checked."""
    region: str = ""
    endpoint: str = ""
    busy: bool = False
    """A run is active there: a second model could exhaust the GPU's memory."""
    boots: bool = False
    """According to its record, it accepts claims at boot: its units must be installed."""
    home: Key = ""
    """URL of the store with the controller's claims, which the host must read at boot. Empty: any."""
    control: Key = ""
    """URL of the control objects, if they are not below `output`."""


class EnvironmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of the environment file for all workers on the host."""

    text: str


class Grade(StrEnum):
    """Result of a check."""

    PASS = "pass"  # noqa: S105  a level, no password
    WARN = "warn"
    """It refuses no start, but limits what works, or could not be checked."""
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One checked precondition, and the fix if it is not met."""

    what: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False

    @property
    def level(self) -> Grade:
        if not self.ok:
            return Grade.FAIL
        return Grade.WARN if self.warning else Grade.PASS


def passed(what: str, detail: str) -> Finding:
    return Finding(what=what, ok=True, detail=detail)


def warned(what: str, detail: str, fix: str = "") -> Finding:
    return Finding(what=what, ok=True, detail=detail, fix=fix, warning=True)


def failed(what: str, detail: str, fix: str = "") -> Finding:
    return Finding(what=what, ok=False, detail=detail, fix=fix)


class HostReply(msgspec.Struct, frozen=True, kw_only=True):
    """The host's reply: the last line of its output."""

    box: Count = VERSION
    release: str = ""
    done: bool = False
    """True if the request was executed now; False if that was done before, or was not needed."""
    error: str = ""
    permanent: bool = False
    """The error stays until a user fixes it."""
    findings: tuple[Finding, ...] = ()


class ClaimLaunch(StrEnum):
    """Trigger on which the agent starts the workers of a claim's run."""

    BOOT = "boot"
    """As soon as the host is up."""
    SSH = "ssh"
    """After the controller's start request over ssh."""
    HELD = "held"
    """Never: the agent does nothing, so that a rehearsal shows what else stops the instance."""


class HostClaim(Dated, frozen=True, kw_only=True):
    """The run that an instance is started for, until its teardown."""

    run: Name
    created: Time
    """Of the run's intent: the claim does not apply to a boot before it, or after `deadline`."""
    deadline: Time
    output: Key
    """URL of the store that holds the run's manifests."""
    launch: ClaimLaunch
    region: str = ""
    endpoint: str = ""
    borrowed: bool = False
    """The instance keeps running after the run: it is never powered off for it."""
    machine: Word = ""
    """The run's name of a machine that was created for it (RUN-n); empty for an existing instance."""

    def meant_for(self, boot: datetime) -> bool:
        """True if a boot at this time may be for this claim."""
        return self.created <= boot + CLAIM_SLACK and boot < self.deadline


class HostWaits(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts of the agent, in seconds."""

    store: Seconds = 600.0
    """For its record, after boot: a role's credentials may arrive late."""
    first: Seconds = 600.0
    """For the first manifest, and then for the start request over ssh."""
    linger: Seconds = 100.0
    """For another manifest or for the stop, after a worker's exit record."""
    silence: Seconds = 840.0
    """Without progress of its worker. The dead-man timer and the controller react a minute later."""
    grace: Seconds = 60.0
    """For a worker to end, after the controller's request or the deadline; then it is killed."""
    overtime: Seconds = 180.0
    """From the deadline to that of the dead-man timer, so that the last windows are not lost."""
    after_report: Seconds = msgspec.field(default=45.0, name="told")
    """From its report of a dead worker to the power-off: the controller may stop the host before."""


class HostPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The host's instance id and its record's location, written by the setup."""

    instance: Name
    home: Key
    """URL of the store that holds the instance's record."""
    source: Key = ""
    """URL of the audio; a manifest may name only this and the two other stores."""
    control: Key = ""
    """URL of the control objects, the record among them; empty if they are below `home`."""
    region: str = ""
    endpoint: str = ""
    created: bool = False
    """The disk is an image for machines that runs create; `instance` is the one that it was made on."""
    waits: HostWaits = HostWaits()

    def control_of(self, output: str) -> str:
        """URL of the control objects of `output`; empty if below it."""
        return self.control if output.rstrip("/") == self.home.rstrip("/") else ""


class BootRecord(Dated, frozen=True, kw_only=True):
    """The boot that accepted a run's claim; create-only: no later one does."""

    version: Count = VERSION
    run: Name
    boot: Name
    """The kernel's boot id."""
    at: Time
    """Begin of that boot, by the host's clock."""
    agent: Seconds | None = None
    """From the boot to the agent's start; None in records of 0.1."""
    release: str


class HostEnd(Dated, frozen=True, kw_only=True):
    """The agent's reason for ending its run, written before a power-off."""

    version: Count = VERSION
    run: Name
    worker: Count | None = None
    """The worker that died or hung, if that is the reason."""
    why: str
    at: Time


class PreparedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """Engine and model on a host."""

    engine: Name
    model: Name


class InstanceRecord(Dated, frozen=True, kw_only=True):
    """Stored state of an instance that was set up, or an image."""

    version: Count = VERSION
    instance: Name
    release: str
    """The version of the worker installed there."""
    at: Time
    fingerprint: str = ""
    """Of its pinned host key."""
    boots: bool = False
    """Its units are installed: it accepts its claim at boot, and powers itself off."""
    shows_tags: bool = False
    """Its metadata service shows its tags, including the hash of its manifest."""
    credentials: bool = True
    """False if its last set-up found no credentials for the stores there."""
    engine: str = ""
    model: str = ""
    """Prepared by its last set-up; empty in records without them."""
    engines: tuple[PreparedEngine, ...] = ()
    """Prepared besides, for sessions of an identified language."""
    speakers: bool = False
    """The model of voices was prepared, too."""
    claim: HostClaim | None = None
    parked: ParkedParts | None = None
    """None if they could not be read."""

    def launch(self, wanted: ClaimLaunch) -> ClaimLaunch:
        """Start of its workers: over ssh if it cannot accept claims."""
        able = self.boots and (self.shows_tags or wanted is not ClaimLaunch.BOOT)
        return wanted if able else ClaimLaunch.SSH


def decode_reply(output: bytes) -> HostReply | None:
    """Decodes the reply in the last line of a host's output.

    None if there is none. Output of login scripts before it is skipped.
    """
    lines = output.strip().splitlines()
    try:
        reply = msgspec.json.decode(lines[-1], type=dict[str, object]) if lines else {}
        return msgspec.convert(reply, HostReply) if "box" in reply else None
    except UNREADABLE:
        return None
