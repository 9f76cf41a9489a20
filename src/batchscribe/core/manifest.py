"""The contract between controller and worker: what is asked, what is under way, how it ended.

All of it travels through the store, versioned. A worker refuses a manifest of another version.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta

from batchscribe.core.bounds import (
    MAX_CHUNKS,
    Bytes,
    Count,
    Dated,
    Key,
    Micros,
    Name,
    Seconds,
    Time,
    Word,
)
from batchscribe.core.foreign import UNREADABLE
from batchscribe.errors import MisconfiguredError, UnreadableError

VERSION = 1


class WorkerRef(Protocol):
    """Which worker of which run: a manifest says it, and so does its name alone."""

    @property
    def run(self) -> str: ...

    @property
    def worker(self) -> int: ...


class WorkerName(msgspec.Struct, frozen=True, kw_only=True):
    """A worker by its name, where its manifest cannot be read."""

    run: Name
    worker: Count


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
    """Whose fault a failure is. Only `chunk` and `crash` count towards quarantine."""

    CHUNK = "chunk"
    CRASH = "crash"
    """It was in flight when its worker died."""
    ARCHIVED = "archived"
    CHANGED = "changed"
    """The object is no longer the one in the manifest."""
    MACHINE = "machine"
    """The store or the box was in trouble."""

    @property
    def counts(self) -> bool:
        return self in {FailureKind.CHUNK, FailureKind.CRASH}


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


class Intent(Dated, frozen=True, kw_only=True):
    """What a run is going to do, written before it does anything. The deadline counts from here."""

    version: Count = VERSION
    run: Name
    scheduler: str
    """Which scheduler wrote it: this host and state directory."""
    created: Time
    deadline: Time
    provider: str
    region: str = ""
    source: Key = ""
    output: Key = ""
    instances: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1000)]
    borrowed: bool = False
    policy: str
    reason: str
    chunks: Count
    audio_seconds: Seconds
    rate_micros: Micros
    rate_source: str
    rate_as_of: str = ""
    instance_type: Word = ""
    own_type: Word = ""
    """The instance's type before the run, which it gets back after it."""
    launched_before: Time | None = None
    """The instance's launch time before the run."""


class Settlement(Dated, frozen=True, kw_only=True):
    """How a run ended and what it cost at most."""

    version: Count = VERSION
    run: Name
    outcome: str
    detail: str
    settled: Time
    billed_seconds: Seconds
    cost_micros: Micros
    chunks_done: Count
    chunks_failed: Count
    audio_seconds: Seconds
    worked: Worked = Worked()


T = TypeVar("T", bound=msgspec.Struct)


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """The value in `data`. Raises MisconfiguredError where it is not one of this version."""
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
