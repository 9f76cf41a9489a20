"""Redo and quarantine of chunks, by the user or a settlement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from batchscribe.controller.attempts import Attempts, forget_attempts, read_failures
from batchscribe.controller.fetching import fetch_objects
from batchscribe.controller.previous_failures import group_by_chunk, read_quarantine, read_quarantine_of
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.objects import COPIED_BYTES, TRANSCRIPT_BYTES
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, FailureKind, Manifest, ManifestChunk, QuarantineRecord
from batchscribe.core.scan.backlog import Backlog
from batchscribe.core.scan.chunks import Chunk, split_key
from batchscribe.core.scan.folders import AudioObject, Side
from batchscribe.core.text import transcripts
from batchscribe.core.text.transcripts import Transcript
from batchscribe.errors import ObjectNotFoundError, PermanentError, StoreUnavailableError
from batchscribe.protocols import Store


@dataclass(frozen=True, slots=True)
class Redone:
    """A chunk that is pending again, with its old transcripts' new keys."""

    key: str
    session: str
    kept: tuple[str, ...]


def find_by_key(scanner: Scanner, key: str) -> Sequence[AudioObject]:
    """Finds the audio object of a key. Raises ObjectNotFoundError."""
    found = [audio for audio in scanner.audio(split_key(key)[0]) if audio.info.key == key]
    return _require_found(found, f"no audio {key!r} in {scanner.source.url}; see `batchscribe scan`")


def find_by_session(scanner: Scanner, session: str) -> Sequence[AudioObject]:
    """Finds all audio objects of a session. Raises ObjectNotFoundError."""
    found = list(scanner.session_audio(session))
    return _require_found(found, f"no session {session!r} in {scanner.source.url}; see `batchscribe scan`")


def find_stale(scanner: Scanner) -> Sequence[AudioObject]:
    """Audio objects that are newer than their transcripts."""
    return [audio for audio in scanner.audio() if audio.stale]


def find_without_model(scanner: Scanner, model: str) -> Sequence[AudioObject]:
    """Transcribed audio objects without a transcript by that model; reads all transcripts.

    A transcript without a model (the original system's, or an unreadable one) does not count as by it.
    """
    done = [audio for audio in scanner.audio() if audio.transcripts]
    by_model: set[tuple[Side, str]] = set()
    for side in Side:
        lying = [info.key for audio in done for place, info in audio.transcripts if place is side]
        read = fetch_objects(scanner.store_of(side), lying, limit=TRANSCRIPT_BYTES)
        by_model |= {(side, key) for key, data in read if _read_model(data) == model}
    return [
        audio for audio in done if not any((side, info.key) in by_model for side, info in audio.transcripts)
    ]


def select_attempted(scanner: Scanner, chosen: Sequence[AudioObject]) -> Sequence[AudioObject]:
    """Returns those with a transcript or a failed attempt.

    There is nothing to redo for the others.
    """
    if all(audio.transcripts or audio.blank for audio in chosen):
        return chosen
    failed = scanner.rules().trouble
    return [
        audio for audio in chosen if audio.transcripts or audio.blank or keys.digest(audio.info.key) in failed
    ]


def redo(scanner: Scanner, chosen: Iterable[AudioObject], *, stamp: str) -> Iterator[Redone]:
    """Moves each object's transcripts aside and revokes its failures.

    It is pending again. All failures are revoked first, in few requests. A transcript is copied before it is
    deleted, so a crash in between loses none. `stamp` names the folder of the old ones, below
    `_batchscribe/superseded/`.
    """
    chosen = tuple(chosen)
    _forget_failures(scanner.output, [keys.digest(audio.info.key) for audio in chosen])
    for audio in chosen:
        old = (*audio.transcripts, *audio.blank)
        kept = [_copy_aside(scanner, side, transcript.key, stamp) for side, transcript in old]
        for side, transcript in old:
            scanner.store_of(side).delete(transcript.key)
        yield Redone(audio.info.key, audio.name.session, tuple(kept))


def list_quarantined(output: Store) -> Sequence[QuarantineRecord]:
    """All quarantined chunks, by key."""
    return sorted(read_quarantine(output).values(), key=lambda record: record.key)


def release_quarantined(output: Store, chosen: Iterable[str] | None = None) -> Sequence[str]:
    """Revokes the failures of these keys, or of all that are quarantined.

    Returns the released keys. Raises ObjectNotFoundError, and releases nothing, if a key is not quarantined.
    """
    held = {record.key: digest for digest, record in read_quarantine(output).items()}
    wanted = sorted(held) if chosen is None else list(chosen)
    digests = [held.get(key, keys.digest(key)) for key in wanted]
    for key, digest in zip(wanted, digests, strict=True):
        if digest not in held.values():
            raise ObjectNotFoundError(
                f"{key!r} is not quarantined; `batchscribe quarantine list` shows what is"
            )
    _forget_failures(output, digests)
    return wanted


def _forget_failures(output: Store, digests: Sequence[str]) -> None:
    """Revokes the chunks' failed attempts, then the quarantine that holds them."""
    if not digests:
        return
    forget_attempts(output, frozenset(digests))
    for digest in digests:
        output.delete(f"{keys.QUARANTINE}{digest}.json")


def quarantine(output: Store, record: QuarantineRecord) -> None:
    """Quarantines a chunk; replaces an outdated record for another ETag or decoder."""
    place, data = keys.quarantine(record.key), wire.encode(record)
    if output.create(place, data):
        return
    there = read_quarantine_of(output, record.key)
    if there is None or (there.etag, there.decoder) != (record.etag, record.decoder):
        output.replace(place, data)


def quarantine_failed(
    output: Store,
    chunks: Iterable[ManifestChunk | Chunk],
    *,
    max_attempts: int,
    now: datetime,
    reported: Iterable[Failure] = (),
) -> Sequence[QuarantineRecord]:
    """Quarantines each of these chunks with `max_attempts` own failures.

    One failure is enough if its worker `reported` it as final.
    """
    asked = {(keys.digest(chunk.key), chunk.etag): chunk for chunk in chunks}
    failures = read_failures(output, lambda listed: _list_retried(listed, asked, max_attempts))
    records = [
        _build_record(asked[place], own, now)
        for place, some in group_by_chunk(failures).items()
        if len(own := _list_own(some)) >= max_attempts
    ]
    places = {(keys.digest(failure.key), failure.etag): failure for failure in reported if failure.kind.final}
    held = {record.key for record in records}
    records += [
        _build_record(asked[place], [failure], now)
        for place, failure in places.items()
        if place in asked and failure.key not in held
    ]
    for record in records:
        quarantine(output, record)
    return sorted(records, key=lambda record: record.key)


def quarantine_exhausted(output: Store, backlog: Backlog, max_attempts: int, now: datetime) -> int:
    """Quarantines and counts chunks that reached the limit outside a run.

    They would wait for ever: the limit was lowered, a quarantine record was deleted, or another scheduler
    recorded the failures.
    """
    chunks = [chunk for chunk in backlog.candidates if chunk.failures >= max_attempts]
    return len(quarantine_failed(output, chunks, max_attempts=max_attempts, now=now)) if chunks else 0


def record_crash(
    output: Store, manifest: Manifest, in_flight: Iterable[str], *, now: datetime
) -> Sequence[str]:
    """Records an attempt at a dead worker's in-flight chunks, once per run."""
    asked = {chunk.key: chunk for chunk in manifest.chunks}
    crashed = [asked[key] for key in in_flight if key in asked]
    message, alone = f"it was in flight when worker {manifest.worker} died", len(crashed) == 1
    for chunk in crashed:
        record_attempt(output, chunk, manifest.run, FailureKind.CRASH, message, now=now, alone=alone)
    return [chunk.key for chunk in crashed]


def record_attempt(
    output: Store,
    chunk: ManifestChunk,
    run: str,
    kind: FailureKind,
    message: str,
    *,
    now: datetime,
    alone: bool = False,
) -> None:
    """Records a failed attempt at a chunk, once per run."""
    failure = Failure(
        key=chunk.key, etag=chunk.etag, run=run, kind=kind, message=message, at=now, alone=alone
    )
    output.create(keys.attempt(chunk.key, chunk.etag, run), wire.encode(failure))


def _require_found(found: Sequence[AudioObject], message: str) -> Sequence[AudioObject]:
    if not found:
        raise ObjectNotFoundError(message)
    return found


def _read_model(data: bytes) -> str | None:
    try:
        transcript = transcripts.decode(data)
    except PermanentError:
        return None
    return transcript.model if isinstance(transcript, Transcript) else None


def _copy_aside(scanner: Scanner, side: Side, transcript: str, stamp: str) -> str:
    # Source and output may both hold a transcript of one name.
    aside = keys.superseded(transcript, f"{stamp}-source" if side is Side.SOURCE else stamp)
    if not scanner.output.create(aside, scanner.store_of(side).get(transcript, limit=COPIED_BYTES).data):
        raise StoreUnavailableError(
            f"{aside} was written by another redo at the same time; nothing was moved, try again"
        )
    return aside


def _list_retried(listed: Attempts, asked: Collection[tuple[str, str]], times: int) -> Sequence[str]:
    """Attempts at the chunks that were tried at least `times` times."""
    names = [name for name in listed.stored if keys.chunk_of(name) in asked]
    count = Counter(keys.chunk_of(name) for name in names)
    return [name for name in names if count[keys.chunk_of(name)] >= times]


def _list_own(failures: Iterable[Failure]) -> Sequence[Failure]:
    """The chunk's own failures with the decoder used last, oldest first."""
    own = sorted(wire.select_counted(failures), key=lambda failure: failure.at)
    last = next((failure.decoder for failure in reversed(own) if failure.decoder), "")
    return [failure for failure in own if failure.decoder in {"", last}]


def _build_record(
    chunk: ManifestChunk | Chunk, failures: Sequence[Failure], now: datetime
) -> QuarantineRecord:
    return QuarantineRecord(
        key=chunk.key,
        etag=chunk.etag,
        decoder=next((failure.decoder for failure in reversed(failures) if failure.decoder), ""),
        attempts=len(failures),
        message=failures[-1].message,
        at=now,
    )
