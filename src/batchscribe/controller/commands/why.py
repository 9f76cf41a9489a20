"""History of one chunk, as far as the store records it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from unicodedata import normalize

from batchscribe.controller.attempts import read_failures
from batchscribe.controller.fetching import fetch_objects
from batchscribe.controller.previous_failures import read_quarantine_of
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import EMPTY
from batchscribe.core import keys
from batchscribe.core.objects import CHUNK_LIST_BYTES, RECORD_BYTES, ObjectInfo
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, Manifest, QuarantineRecord
from batchscribe.core.run.records import decode_outcome
from batchscribe.core.scan.backlog import ChunkState, find_trouble, state_of
from batchscribe.core.scan.chunks import AudioName, audio_name, passed_over, split_key
from batchscribe.core.scan.explanation import explain
from batchscribe.core.scan.folders import AudioObject, Side
from batchscribe.core.text.transcripts import Transcript
from batchscribe.errors import (
    MisconfiguredError,
    ObjectNotFoundError,
    PermanentError,
    UnsupportedAudioError,
)
from batchscribe.protocols import Store
from batchscribe.reading import read_bytes, read_transcript

NAMED = 5
"""Maximum number of similar keys in an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptInfo:
    """Metadata of one transcript; None if unknown for a foreign one."""

    key: str
    side: Side
    written: datetime
    size: int
    engine: str | None = None
    model: str | None = None
    run: str | None = None
    duration: float | None = None
    flags: tuple[str, ...] = ()
    unreadable: str | None = None
    """Why it cannot be read; None if it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMention:
    """A run that was given the chunk; `outcome` once it ended."""

    run: str
    worker: int
    etag: str
    dispatched: datetime
    outcome: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHistory:
    """All records of one chunk in the store, each list oldest first."""

    key: str
    session: str
    state: ChunkState | None
    """None if there is no such audio (any more)."""
    explanation: str = ""
    """Why it is in its state, and when that changes; empty without audio."""
    next_tick: str = ""
    """What the next tick would do, and why; empty if the chunk is not held back by that."""
    audio: ObjectInfo | None
    stale: bool = False
    planned: str | None = None
    """Key of its transcript; None if there is no such audio."""
    transcripts: tuple[TranscriptInfo, ...] = ()
    failures: tuple[Failure, ...] = ()
    quarantine: QuarantineRecord | None = None
    """Also an outdated one, for an older ETag or another decoder."""
    runs: tuple[RunMention, ...] = ()

    @property
    def known(self) -> bool:
        return bool(self.audio or self.failures or self.quarantine or self.runs)


def read_history(scanner: Scanner, key: str, *, max_wait: timedelta = timedelta(hours=24)) -> ChunkHistory:
    """History of a chunk by its key, or by a unique part.

    A key's only Unicode variant counts, too. Raises UnsupportedAudioError if the format is not decoded, and
    ObjectNotFoundError if there is no record of it, or if several keys have this part.
    """
    if (kind := passed_over(key)) is not None:
        raise UnsupportedAudioError(
            f"{key!r} is skipped: .{kind} is not decoded; convert it, for example to .wav or .flac"
        )
    if name := audio_name(key):
        history = _read_chunk(scanner, key, name, max_wait)
        if history.known:
            return history
    similar = find_similar(scanner, key)
    if len(similar) == 1:
        return _read_chunk(scanner, similar[0].info.key, similar[0].name, max_wait)
    if name is None and not similar:
        raise ObjectNotFoundError(f"{key!r} is not the key of an audio file; `batchscribe scan` shows those")
    if similar:
        listed = ", ".join(audio.info.key for audio in similar[:NAMED])
        more = f" and {len(similar) - NAMED} more" if len(similar) > NAMED else ""
        raise ObjectNotFoundError(f"{len(similar)} chunks match {key!r}: {listed}{more}; give one of them")
    where = f"{scanner.source.url}; `batchscribe scan` shows the sessions"
    raise ObjectNotFoundError(f"no record of {key!r} in {where}")


def find_similar(scanner: Scanner, part: str) -> Sequence[AudioObject]:
    """Audio objects whose key contains `part`, in any case and form.

    Also one whose key is the end of `part`: keys of the bucket begin with the source's prefix. A Unicode
    variant of the whole key takes precedence.
    """
    wanted = normalize("NFC", part)
    folded = wanted.casefold()
    same, found = [], []
    for audio in scanner.audio():
        key = normalize("NFC", audio.info.key)
        if key == wanted:
            same.append(audio)
        elif folded in key.casefold() or folded.endswith(f"/{key.casefold()}"):
            found.append(audio)
    return same or found


def list_events(history: ChunkHistory) -> Iterator[tuple[datetime, str, str]]:
    """Yields (time, event, its run) of transcripts, runs and failed attempts."""
    for transcript in history.transcripts:
        by = f" by {transcript.engine} {transcript.model or ''}".rstrip() if transcript.engine else ""
        flags = f" [{', '.join(transcript.flags)}]" if transcript.flags else ""
        line = f"transcribed{by}{flags}: {transcript.key}"
        if transcript.unreadable:
            line = f"unreadable: {describe_unreadable(transcript.key, history.key)} ({transcript.unreadable})"
        yield transcript.written, line, transcript.run or ""
    for mention in history.runs:
        yield mention.dispatched, f"worker {mention.worker}: {mention.outcome or 'open'}", mention.run
    for number, failure in enumerate(history.failures, 1):
        yield failure.at, f"attempt {number} failed ({failure.kind}): {failure.message}", failure.run


def describe_unreadable(transcript: str, key: str) -> str:
    return f"{transcript} is not read; `batchscribe redo {shlex.quote(key)}` transcribes it again"


def list_errors(scanner: Scanner, session: str) -> Sequence[tuple[str, str]]:
    """(key, last error) of a session's failed chunks, at most NAMED."""
    rules = scanner.rules()
    own = scanner.session_audio(session)
    failed = (audio for audio in own if not audio.transcripts and find_trouble(audio, rules))
    return [
        (key, error)
        for key in (audio.info.key for audio in islice(failed, NAMED))
        if (error := _read_error(scanner.output, key))
    ]


def _read_error(output: Store, key: str) -> str:
    if quarantine := read_quarantine_of(output, key):
        return quarantine.message
    failures = _list_failures(output, key)
    return failures[-1].message if failures else ""


def _read_chunk(scanner: Scanner, key: str, name: AudioName, max_wait: timedelta) -> ChunkHistory:
    audio = next((each for each in scanner.audio(split_key(key)[0]) if each.info.key == key), None)
    output, rules, failures = scanner.output, scanner.rules(), _list_failures(scanner.output, key)
    return ChunkHistory(
        key=key,
        session=name.session,
        state=state_of(audio, rules) if audio else None,
        explanation=explain(audio, rules, failures, max_wait=max_wait) if audio else "",
        audio=audio.info if audio else None,
        stale=audio.stale if audio else False,
        planned=audio.planned if audio else None,
        transcripts=tuple(_list_transcripts(scanner, audio)) if audio else (),
        failures=failures,
        quarantine=read_quarantine_of(output, key),
        runs=tuple(sorted(_list_mentions(output, key), key=lambda mention: mention.dispatched)),
    )


def _list_transcripts(scanner: Scanner, audio: AudioObject) -> Iterator[TranscriptInfo]:
    everything = (*audio.transcripts, *audio.blank)
    for side, info in sorted(everything, key=lambda tagged: tagged[1].modified):
        transcript = TranscriptInfo(key=info.key, side=side, written=info.modified, size=info.size)
        yield _add_content(scanner.store_of(side), transcript)


def _add_content(store: Store, transcript: TranscriptInfo) -> TranscriptInfo:
    if not transcript.size:
        return replace(transcript, unreadable=EMPTY)
    try:
        found = read_transcript(store, transcript.key)
    except PermanentError as error:
        return replace(transcript, unreadable=str(error))
    if not isinstance(found, Transcript):
        return transcript
    return replace(
        transcript,
        engine=found.engine,
        model=found.model,
        run=found.run,
        duration=found.duration,
        flags=found.flags,
    )


def _list_failures(output: Store, key: str) -> tuple[Failure, ...]:
    digest = keys.digest(key)
    read = read_failures(
        output, lambda listed: [name for name in listed.stored if keys.chunk_of(name)[0] == digest], digest
    )
    return tuple(sorted(read.values(), key=lambda failure: failure.at))


def _list_mentions(output: Store, key: str) -> Iterator[RunMention]:
    """Yields the runs of all readable manifests that are kept."""
    listed = {info.key: info for info in output.list(keys.RUNS)}
    manifests = [place for place in listed if place.endswith("/manifest.json")]
    for place, data in fetch_objects(output, manifests, limit=CHUNK_LIST_BYTES):
        try:
            manifest = wire.decode(data, Manifest)
        except MisconfiguredError:
            continue
        for chunk in manifest.chunks:
            if chunk.key == key:
                yield RunMention(
                    run=manifest.run,
                    worker=manifest.worker,
                    etag=chunk.etag,
                    dispatched=listed[place].modified,
                    outcome=_read_outcome(output, manifest.run, listed),
                )


def _read_outcome(output: Store, run: str, listed: Mapping[str, ObjectInfo]) -> str | None:
    place = keys.settlement(run)
    if place not in listed:
        return None
    try:
        return decode_outcome(read_bytes(output, place, RECORD_BYTES))
    except MisconfiguredError:
        return "unknown"  # written by another version
