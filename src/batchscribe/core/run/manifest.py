"""The contract between controller and worker: manifest, progress and exit record.

All of them are in the store, versioned. A worker refuses a manifest of another version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
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
from batchscribe.core.text import vocabulary
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import MisconfiguredError, UnreadableError

VERSION = 1
Term = Annotated[str, Meta(min_length=1, max_length=vocabulary.LONGEST)]
Terms = Annotated[tuple[Term, ...], Meta(max_length=vocabulary.MOST)]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WorkerRef(Protocol):
    """Identifies one worker of one run: a manifest, or a WorkerName."""

    @property
    def run(self) -> str: ...

    @property
    def worker(self) -> int: ...


class WorkerName(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one run; names a folder on its machine."""

    run: Name
    worker: Count

    def checked(self) -> WorkerName:
        """Returns itself; raises MisconfiguredError if it could name another folder."""
        if not NAME.fullmatch(self.run) or self.worker < 0:
            raise MisconfiguredError(f"not the name of a run and a worker: {self.run!r} {self.worker}")
        return self


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Engine and model. The controller has already resolved `auto`."""

    engine: str
    model: str = ""
    """A name, or a folder on the worker's machine."""
    compute_type: str = "auto"
    device: str = "auto"
    language: str | None = None
    task: str = "transcribe"
    """`transcribe`, or `translate` into English."""
    vocabulary: Terms | msgspec.UnsetType = msgspec.UNSET
    """Names and terms that the engine is to expect; only engines with `takes_vocabulary` get any."""
    speakers: bool | msgspec.UnsetType = msgspec.UNSET
    """True if the voices of each chunk are stored beside its transcript."""


class AudioOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Audio options: how chunks become input of the engine."""

    overlap_ms: Count | None = None
    """Overlap of neighbouring chunks of a session, in milliseconds; None: measured."""
    split_channels: bool = False
    """Transcribe channels separately, with labelled words; else mixed down."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    max_audio_seconds: Seconds = 12 * 3600.0
    max_object_bytes: Bytes = 4096 * 1024 * 1024


class ManifestChunk(msgspec.Struct, frozen=True, kw_only=True):
    key: Key
    etag: Key
    size: Bytes
    session: Key
    transcript: Key
    """Key of its transcript, relative to `Manifest.output`."""
    previously_failed: bool = msgspec.field(default=False, name="troubled")
    """It failed before, or was unavailable: transcribed alone, so that a failure is attributed to it only."""


class Manifest(Dated, frozen=True, kw_only=True):
    version: Count = VERSION
    run: Name
    worker: Count
    release: str
    """Version of batchscribe that wrote it; the worker on the GPU host must have the same."""
    source: Key
    output: Key
    deadline: Time
    engine: EngineSpec
    settings_hash: str
    audio_options: AudioOptions = msgspec.field(default=AudioOptions(), name="hearing")
    limits: Limits = Limits()
    region: str = ""
    endpoint: str = ""
    """AWS region and endpoint of the stores, for a worker without them in its environment."""
    chunks: Annotated[tuple[ManifestChunk, ...], Meta(max_length=MAX_CHUNKS)]
    machine: Word | msgspec.UnsetType = msgspec.UNSET
    """Id of the machine that works on it, if its run has several."""
    seal: str = ""
    """See core/run/seals.py; empty if its scheduler has no secret."""


class Phase(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    WORKING = "working"
    ENDED = "ended"


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Processed chunks of a worker; chunks that another worker transcribed are `skipped`."""

    done: Count = 0
    failed: Count = 0
    skipped: Count = 0
    audio_seconds: Seconds = 0.0
    audio_bytes: Bytes = 0

    @property
    def seen(self) -> int:
        return self.done + self.failed + self.skipped

    def describe(self) -> str:
        return f"{self.done} transcribed, {self.skipped} were done already, {self.failed} failed"


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the worker's start, by its monotonic clock."""

    since_boot: Seconds | None = None
    """From the host's boot to the worker's start; None in records of 0.1, as the other times without text."""
    manifest: Seconds | None = None
    """Until the manifest was read: the interpreter, imports, the store's answer."""
    loaded: Seconds | None = None
    """Until the engine was loaded."""
    first_audio: Seconds | None = None
    """Until the first window was ready for the engine: fetched, decoded and cut."""
    first_window: Seconds | None = None
    """Until the engine got the first window."""
    last_result: Seconds | None = None
    """Until the engine's last result."""
    published: Seconds | None = None
    """Until the last transcript was in the store."""
    elapsed: Seconds = 0.0
    busy: Seconds = 0.0
    """Time inside the engine."""
    starved: Seconds = 0.0
    """Time in which a loaded engine had nothing to do."""
    blocked: Seconds = 0.0
    """Time in which a loaded engine waited for the stage after it."""
    starved_by: dict[Word, Seconds] = {}
    """The starved seconds by the stage that caused them: `fetch`, `decode`, `cut` (speech detection), or
    `progress` (writing the chunks in flight to the store)."""


class EngineTimeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Engine time and flags, summed over the workers of a run; seconds."""

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
    """A worker's progress, replaced every few seconds unless it is stalled."""

    run: Name
    worker: Count
    sequence: Count
    phase: Phase
    at: Time
    total: Count
    tally: Tally
    timings: Timings
    results: Count = 0
    """Results of the engine so far; grows only while the engine works."""
    in_engine: Count = 0
    """Windows in the engine now."""
    in_flight: Annotated[tuple[Key, ...], Meta(max_length=MAX_CHUNKS)] = ()
    """Keys in decoders, or in the engine and not complete yet: each gets one failure if the worker dies."""

    @property
    def time_left(self) -> timedelta | None:
        """Estimated from the pace since the first window; None before it."""
        first, seen = self.timings.first_window, self.tally.seen
        if not seen or first is None or self.total < seen:
            return None
        return timedelta(seconds=max(0.0, self.timings.elapsed - first) / seen * (self.total - seen))


class FailureKind(StrEnum):
    """Cause of a failure. Only `chunk`, `refused` and `crash` count towards quarantine."""

    CHUNK = "chunk"
    REFUSED = "refused"
    """This decoder does not support its format."""
    CRASH = "crash"
    """It was in flight when its worker died."""
    ARCHIVED = "archived"
    CHANGED = "changed"
    """The object differs from the one in the manifest."""
    MACHINE = "machine"
    """A failure of the store or the GPU host."""

    @property
    def final(self) -> bool:
        """True if one failure is enough: a second attempt would fail, too."""
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
    """Version of the decoder: a newer one tries again."""
    alone: bool = False
    """Of a crash: no other chunk was in flight, so this one caused it."""


def select_counted(failures: Iterable[Failure]) -> list[Failure]:
    """Failures that count towards quarantine.

    A single crash of a worker does not count, unless the chunk was alone in flight; two do.
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
    """Every chunk of the manifest was processed."""
    STOPPED = "stopped"
    """Stop request or deadline; the rest is still pending."""
    FAILED = "failed"
    """Error of the machine or the engine."""


class ExitRecord(Dated, frozen=True, kw_only=True):
    """The worker's exit record; only the store determines which chunks are done."""

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
    """The worker failed because the host has no usable GPU."""
    seconds_by_type: dict[Word, Seconds] = msgspec.field(default_factory=dict)
    """Audio seconds for each file extension, to learn bitrates."""
    bytes_by_type: dict[Word, Bytes] = msgspec.field(default_factory=dict)
    flags: dict[str, Count] = msgspec.field(default_factory=dict)
    """Number of published transcripts with each flag."""

    def as_progress(self) -> Progress:
        """The worker's last progress: reports may end before its last chunks."""
        return Progress(
            run=self.run,
            worker=self.worker,
            sequence=0,
            phase=Phase.ENDED,
            at=self.at,
            total=self.tally.seen,
            tally=self.tally,
            timings=self.timings,
        )


class QuarantineRecord(Dated, frozen=True, kw_only=True):
    """A chunk that failed permanently, until its ETag or the decoder changes."""

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


def hash_values(*values: object) -> str:
    """Short hash that differs if any of the values does."""
    return sha256(msgspec.json.encode(values)).hexdigest()[:16]


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """Returns the value in `data`; raises MisconfiguredError for another version."""
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
