"""The contract between controller and worker: what is asked, what is under way, how it ended.

All of it travels through the store, versioned. A worker refuses a manifest of another version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta

from batchscribe.core.bounds import (
    MAX_CHUNKS,
    Bytes,
    Count,
    Dated,
    Key,
    Name,
    Seconds,
    Time,
    Word,
)
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import MisconfiguredError, UnreadableError

VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WorkerRef(Protocol):
    """Identifies one worker of one run: a manifest, or a WorkerName."""

    @property
    def run(self) -> str: ...

    @property
    def worker(self) -> int: ...


class WorkerName(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one run; also the name of a folder on its machine."""

    run: Name
    worker: Count

    def checked(self) -> WorkerName:
        """Returns itself. Raises MisconfiguredError if it could name a folder that is not its own."""
        if not NAME.fullmatch(self.run) or self.worker < 0:
            raise MisconfiguredError(f"not the name of a run and a worker: {self.run!r} {self.worker}")
        return self


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine, with which model. `auto` was already resolved by the controller."""

    engine: str
    model: str = ""
    """A name, or a folder on the worker's machine."""
    compute_type: str = "auto"
    device: str = "auto"
    language: str | None = None
    task: str = "transcribe"
    """`transcribe`, or `translate` into English."""


class Hearing(msgspec.Struct, frozen=True, kw_only=True):
    """How chunks become what the engine hears."""

    overlap_ms: Count | None = None
    """By how much neighbouring chunks of a session overlap; None is measured."""
    split_channels: bool = False
    """Each channel by itself, its words labelled; else mixed down."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    max_audio_seconds: Seconds = 12 * 3600.0
    max_object_bytes: Bytes = 4096 * 1024 * 1024


class ManifestChunk(msgspec.Struct, frozen=True, kw_only=True):
    key: Key
    etag: Key
    size: Bytes
    session: Key
    transcript: Key
    """Where its transcript goes, relative to `Manifest.output`."""
    troubled: bool = False
    """It failed, or could not be had, before: it is heard alone, so that nobody else is blamed with it."""


class Manifest(Dated, frozen=True, kw_only=True):
    version: Count = VERSION
    run: Name
    worker: Count
    release: str
    """The version of batchscribe that wrote it; the worker beside the GPU must be the same."""
    source: Key
    output: Key
    deadline: Time
    engine: EngineSpec
    settings_hash: str
    hearing: Hearing = Hearing()
    limits: Limits = Limits()
    region: str = ""
    endpoint: str = ""
    """Where the stores are, in AWS's words, for a worker whose own environment does not say it."""
    chunks: Annotated[tuple[ManifestChunk, ...], Meta(max_length=MAX_CHUNKS)]
    seal: str = ""
    """See core/run/seals.py; empty if its scheduler has no secret."""


class Phase(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    WORKING = "working"
    ENDED = "ended"


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has got through; chunks that were done by somebody else are `skipped`."""

    done: Count = 0
    failed: Count = 0
    skipped: Count = 0
    audio_seconds: Seconds = 0.0
    audio_bytes: Bytes = 0

    @property
    def seen(self) -> int:
        return self.done + self.failed + self.skipped


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, each measured by the worker's monotonic clock from its own start."""

    loaded: Seconds | None = None
    first_window: Seconds | None = None
    elapsed: Seconds = 0.0
    busy: Seconds = 0.0
    """Time inside the engine."""
    starved: Seconds = 0.0
    """Time in which a loaded engine had nothing to do."""
    blocked: Seconds = 0.0
    """Time in which a loaded engine waited for what comes after it."""
    starved_by: dict[Word, Seconds] = {}
    """The starved seconds by the stage that they waited for: `fetch`, `decode`, `cut` (looking for speech),
    or `progress` (telling the store what is in flight)."""


class Worked(msgspec.Struct, frozen=True, kw_only=True):
    """What workers say of their time and of their transcripts, summed over all of a run; seconds."""

    workers: Count = 0
    load: Seconds = 0.0
    """Until the engine was loaded."""
    after_load: Seconds = 0.0
    busy: Seconds = 0.0
    starved: Seconds = 0.0
    blocked: Seconds = 0.0
    starved_by: dict[Word, Seconds] = {}
    flags: dict[str, Count] = {}


class Progress(Dated, frozen=True, kw_only=True):
    """Replaced every few seconds; unchanged by the watcher's own clock means silent."""

    run: Name
    worker: Count
    sequence: Count
    phase: Phase
    at: Time
    total: Count
    tally: Tally
    timings: Timings
    results: Count = 0
    """Windows that came back from the engine so far; it grows only while the engine works."""
    in_engine: Count = 0
    """Windows in the engine now."""
    in_flight: Annotated[tuple[Key, ...], Meta(max_length=MAX_CHUNKS)] = ()
    """Keys being decoded, or begun by the engine and not whole yet: blamed, once, if the worker dies now."""


class FailureKind(StrEnum):
    """Whose fault a failure is. Only `chunk`, `refused` and `crash` count towards quarantine."""

    CHUNK = "chunk"
    REFUSED = "refused"
    """It is of a kind that this decoder never decodes."""
    CRASH = "crash"
    """It was in flight when its worker died."""
    ARCHIVED = "archived"
    CHANGED = "changed"
    """The object is no longer the one in the manifest."""
    MACHINE = "machine"
    """The store or the box was in trouble."""

    @property
    def final(self) -> bool:
        """True if one failure is enough: a second attempt changes nothing."""
        return self is FailureKind.REFUSED


class Failure(Dated, frozen=True, kw_only=True):
    """One failed attempt at one chunk; stored under `_batchscribe/attempts/`."""

    key: Key
    etag: Key
    run: Name
    kind: FailureKind
    message: str
    at: Time
    decoder: str = ""
    """Version of the decoder: a better one is tried again."""
    alone: bool = False
    """Of a crash: no other chunk was in flight, so that it is the chunk's own."""


def counted(failures: Iterable[Failure]) -> list[Failure]:
    """The failures that are the chunk's own, which count towards quarantine.

    One death of a worker is not: that takes a second one, or a chunk that was alone in flight.
    """
    known = list(failures)
    crashes = [failure for failure in known if failure.kind is FailureKind.CRASH]
    proved = len(crashes) > 1 or any(crash.alone for crash in crashes)
    return [
        failure
        for failure in known
        if failure.kind in {FailureKind.CHUNK, FailureKind.REFUSED}
        or (failure.kind is FailureKind.CRASH and proved)
    ]


class WorkerEnd(StrEnum):
    FINISHED = "finished"
    """Every chunk of the manifest was looked at."""
    STOPPED = "stopped"
    """Asked to end, or out of time; the rest is still pending."""
    FAILED = "failed"
    """The machine or the engine cannot do it."""


class ExitRecord(Dated, frozen=True, kw_only=True):
    """The worker's last word; the store, not this, says what is done."""

    run: Name
    worker: Count
    end: WorkerEnd
    message: str = ""
    at: Time
    tally: Tally
    timings: Timings
    failures: Annotated[tuple[Failure, ...], Meta(max_length=MAX_CHUNKS)] = ()
    device: str = ""
    gpu_broken: bool = False
    """It could not work because the box has no usable GPU."""
    seconds_by_type: dict[Word, Seconds] = msgspec.field(default_factory=dict)
    """Audio seconds for each file extension, to learn how long a byte lasts."""
    bytes_by_type: dict[Word, Bytes] = msgspec.field(default_factory=dict)
    flags: dict[str, Count] = msgspec.field(default_factory=dict)
    """How many of the published transcripts carry each flag."""


class QuarantineRecord(Dated, frozen=True, kw_only=True):
    """A chunk that failed for good, as long as ETag and decoder stay the same."""

    key: Key
    etag: Key
    decoder: str
    attempts: Count
    message: str
    at: Time


T = TypeVar("T", bound=msgspec.Struct)


def digest(manifest: Manifest) -> str:
    """SHA-256 of the manifest as it is stored."""
    return sha256(encode(manifest)).hexdigest()


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Returns the value in `data`. Raises MisconfiguredError if it is not one of this version."""
    try:
        value = msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise UnreadableError(f"not a readable {kind.__name__}: {error}") from error
    if getattr(value, "version", VERSION) != VERSION:
        raise MisconfiguredError(
            f"this {kind.__name__} has version {getattr(value, 'version', '?')}, this batchscribe "
            f"reads version {VERSION}: install the same batchscribe on both sides"
        )
    return value
