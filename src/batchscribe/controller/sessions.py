"""Session files: `transcript.json`, `.srt`, `.vtt` and `.txt`, on the session's clock.

They are written again if their inputs change, the JSON last, so that it proves the others complete. A foreign
file is never overwritten; the session's files then get another name.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec
import structlog

from batchscribe.controller.fetching import fetch_objects
from batchscribe.controller.scan import Scanner
from batchscribe.core.objects import (
    MIB,
    RECORD_BYTES,
    SESSION_BYTES,
    SESSION_FILE_BYTES,
    SESSION_VOICES_BYTES,
    TRANSCRIPT_BYTES,
    VOICES_BYTES,
)
from batchscribe.core.run.manifest import hash_values
from batchscribe.core.scan.backlog import ChunkState, state_of
from batchscribe.core.scan.chunks import TOP, passed_over, session_stems, split_key, voices_key
from batchscribe.core.scan.folders import AudioObject, Side, Tagged
from batchscribe.core.text import transcripts
from batchscribe.core.text.rendering import DEFAULT_RENDERING, Rendering
from batchscribe.core.text.speakers import LABELS, HeldVoices, decode_names, label_voices, list_turns
from batchscribe.core.text.stitching import UNREADABLE as UNREADABLE_PART
from batchscribe.core.text.stitching import PartInput, compute_digest, stitch
from batchscribe.core.text.transcripts import PartSpeakers, SessionPart, SessionTranscript, Transcript
from batchscribe.core.text.voices import decode_voices
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError, PermanentError
from batchscribe.ledger.ledger import Ledger
from batchscribe.protocols import Store

LOG = structlog.get_logger()


def _log_problem(error: PermanentError) -> None:
    LOG.warning("names.skipped", error=str(error))


FORMATS = ("srt", "vtt", "txt", "json")
"""The JSON last: if it exists, so do the others."""
NAMES = ".speakers.json"
"""End of the key of a session's names, after the stem of its files. Only a user writes it."""
Content = transcripts.Transcript | transcripts.ForeignTranscript
UNSUPPORTED = "in an unsupported format"
UNREADABLE_FACTS = "unreadable/"
EMPTY = "not a transcript: it is empty"
TOO_LARGE = f"larger than {TRANSCRIPT_BYTES // MIB} MiB"
TOO_MUCH = f"the transcripts of its session exceed {SESSION_BYTES // MIB} MiB together"


def publish_session(
    scanner: Scanner,
    session: str,
    rendering: Rendering,
    *,
    record: Callable[[Sequence[PartInput]], object] = lambda _parts: None,
    report: Callable[[PermanentError], object] = _log_problem,
) -> str | None:
    """Writes a session's files if they are missing, outdated, or rendered otherwise.

    Returns their stem, or None if nothing was written. `record` is called with the parts as read, `report`
    with the error of unreadable names.
    """
    parts = session_parts(scanner, session)
    record(parts)
    if not any(part.content for part in parts):
        return None
    stem, there = _find_place(scanner.output, session)
    rendering = add_names(scanner.output, session, rendering, report=report)
    if there is not None and there.digest == rendering.sign(compute_digest(parts)):
        return None
    whole = _stitch_parts(scanner, session, parts, there, rendering)
    for kind in FORMATS:
        scanner.output.replace(f"{stem}.{kind}", rendering.render(whole, kind))
    return stem


def record_unreadable(ledger: Ledger, parts: Iterable[PartInput]) -> None:
    """Records unreadable transcripts in the ledger, for `scan`."""
    known = ledger.facts(UNREADABLE_FACTS)
    for part in parts:
        fact = f"{UNREADABLE_FACTS}{part.transcript}"
        etag = part.etag or None if part.unreadable else None
        if known.get(fact) != etag:
            ledger.put(fact, etag)


def known_unreadable(ledger: Ledger) -> dict[str, str]:
    """ETags of the transcripts that could not be read, by their keys."""
    facts = ledger.facts(UNREADABLE_FACTS)
    return {fact.removeprefix(UNREADABLE_FACTS): etag for fact, etag in facts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledSession:
    """A session's transcript so far, and the keys that it lacks."""

    transcript: SessionTranscript
    chunks: int
    """All of the session, with those of unsupported formats."""
    missing: Mapping[str, Sequence[str]]


def assemble_session(
    scanner: Scanner, session: str, rendering: Rendering = DEFAULT_RENDERING
) -> AssembledSession:
    """Assembles the session from its transcripts, finished as its files are.

    Raises ObjectNotFoundError without any transcript.
    """
    folder, others = "" if session == TOP else split_key(session)[0], list[str]()
    own = sort_chunks(scanner.session_audio(session, leave_out=others.append))
    parts = _read_parts(scanner, own)
    if not any(part.content for part in parts):
        raise ObjectNotFoundError(_no_transcript(session, parts))
    left = [audio for audio, part in zip(own, parts, strict=True) if not part.content]
    missing = _list_missing(scanner, left) if left else {}
    if session == TOP or session.endswith("/"):
        missing[UNSUPPORTED] = [key for key in others if split_key(key)[0] == folder and passed_over(key)]
    heads = (_read_head(scanner.output, f"{stem}.json", session) for stem in session_stems(session))
    there = next(filter(None, heads), None) if rendering.labels_speakers else None
    rendering = add_names(scanner.output, session, rendering)
    return AssembledSession(
        transcript=_stitch_parts(scanner, session, parts, there, rendering),
        chunks=len(parts) + len(missing.get(UNSUPPORTED, ())),
        missing={reason: keys for reason, keys in missing.items() if keys},
    )


def _stitch_parts(
    scanner: Scanner, session: str, parts: Sequence[PartInput], there: _Head | None, rendering: Rendering
) -> SessionTranscript:
    """The session's finished transcript, with the labels of the file `there`."""
    known = there.list_known(rendering) if there else {}
    return rendering.finish(stitch(session, _label_parts(scanner, parts, known, rendering)))


def read_session(output: Store, session: str, digest: str) -> SessionTranscript | None:
    """The published session file of this digest, if it is readable."""
    for stem in session_stems(session):
        try:
            found = transcripts.decode_session(output.get(f"{stem}.json", limit=SESSION_BYTES).data)
        except PermanentError:
            continue
        if (found.session, found.digest) == (session, digest):
            return found
    return None


class SessionEnd(msgspec.Struct, frozen=True):
    """The last fields of a session file: all but its text."""

    duration: float
    parts: tuple[SessionPart, ...]
    digest: str


def read_session_end(output: Store, session: str, digest: str, length: int) -> SessionEnd | None:
    """The end of this digest's session file, from `length` bytes of it."""
    for stem in session_stems(session):
        with suppress(PermanentError, *UNREADABLE):
            key = f"{stem}.json"
            part = output.get_range(key, 0, length)
            if part.size is not None and part.size > length:
                part = output.get_range(key, part.size - length, length)
            # Two blanks at the begin of a line: a field of the document itself, never one of a segment.
            field = part.data.rindex(b'\n  "duration":')
            end = msgspec.json.decode(b"{" + part.data[field:], type=SessionEnd)
            if end.digest == digest:
                return end
    return None


def digest_listed(own: Iterable[AudioObject]) -> str:
    """Digest of a session's files if all listed transcripts are readable."""
    readable = transcripts.ForeignTranscript()
    parts: list[PartInput] = []
    for audio in sort_chunks(own):
        key = audio.newest[1].key if audio.newest else ""
        parts.append(_build_part(audio, {key}, {key: readable}))
    return compute_digest(parts)


def _list_missing(scanner: Scanner, left: Iterable[AudioObject]) -> dict[str, list[str]]:
    """Keys of chunks without a readable transcript, except empty ones."""
    rules, missing = scanner.rules(), dict[str, list[str]]()
    for audio in left:
        state = state_of(audio, rules)
        reason = UNREADABLE_PART if state is ChunkState.DONE else state.value
        if state is not ChunkState.EMPTY:
            missing.setdefault(reason, []).append(audio.info.key)
    return missing


def _no_transcript(session: str, parts: Sequence[PartInput]) -> str:
    for part in parts:
        if part.unreadable:
            fix = f"`batchscribe redo {shlex.quote(part.key)}`"
            return f"{part.transcript!r} cannot be read ({part.unreadable}): {fix}"
    return f"no transcript of session {session!r} is there yet: see `batchscribe scan`"


def session_parts(scanner: Scanner, session: str) -> list[PartInput]:
    """Chunks of a session in order, each with its newest transcript."""
    return _read_parts(scanner, sort_chunks(scanner.session_audio(session)))


def sort_chunks(own: Iterable[AudioObject]) -> list[AudioObject]:
    """Audio objects of one session in its order."""
    return sorted(
        own, key=lambda audio: (-1 if audio.name.number is None else audio.name.number, audio.info.key)
    )


def _read_parts(scanner: Scanner, own: Sequence[AudioObject]) -> list[PartInput]:
    within = list(_limit_size(own))
    asked = {info.key for _side, info in within}
    contents = dict(_read_contents(scanner, within))
    return [_build_part(audio, asked, contents) for audio in own]


def _limit_size(own: Iterable[AudioObject]) -> Iterator[Tagged]:
    """Transcripts to read, within the size limits of transcript and session."""
    left = SESSION_BYTES
    for audio in own:
        if audio.newest is not None and audio.newest[1].size <= min(TRANSCRIPT_BYTES, left):
            left -= audio.newest[1].size
            yield audio.newest


def _read_contents(
    scanner: Scanner, wanted: Sequence[Tagged]
) -> Iterator[tuple[str, Content | PermanentError]]:
    for store, sides in ((scanner.source, {Side.SOURCE}), (scanner.output, {Side.OUTPUT, Side.BOTH})):
        keys = [info.key for side, info in wanted if side in sides]
        for key, data in fetch_objects(store, keys, limit=TRANSCRIPT_BYTES):
            try:
                yield key, transcripts.decode(data)
            except PermanentError as error:
                yield key, error


def _build_part(
    audio: AudioObject, asked: Collection[str], contents: Mapping[str, Content | PermanentError]
) -> PartInput:
    """Builds a chunk's part; an unreadable transcript leaves a gap."""
    if audio.newest is None:
        place = audio.blank[0][1].key if audio.blank else audio.planned
        return PartInput(key=audio.info.key, transcript=place, unreadable=EMPTY if audio.blank else "")
    info = audio.newest[1]
    part = PartInput(key=audio.info.key, transcript=info.key, etag=info.etag)
    if audio.oversized:
        return replace(part, unreadable=TOO_LARGE)
    if info.key not in asked:
        return replace(part, unreadable=TOO_MUCH)
    found = contents.get(info.key)
    if isinstance(found, PermanentError):
        return replace(part, unreadable=str(found))
    return replace(part, content=found)


def add_names(
    output: Store,
    session: str,
    rendering: Rendering,
    *,
    report: Callable[[PermanentError], object] = _log_problem,
) -> Rendering:
    """The rendering with the speakers' names; without them if they are unreadable."""
    for stem in session_stems(session) if rendering.labels_speakers else ():
        key = f"{stem}{NAMES}"
        try:
            return replace(rendering, names=decode_names(output.get(key, limit=RECORD_BYTES).data))
        except ObjectNotFoundError:
            continue
        except PermanentError as error:
            report(PermanentError(f"{key!r}: {error}; the session has labels without names: correct it"))
            break
    return rendering


def _label_parts(
    scanner: Scanner, parts: Sequence[PartInput], known: Mapping[str, PartSpeakers], rendering: Rendering
) -> Sequence[PartInput]:
    """The parts with speakers; `known`: present labels by audio key."""
    if not rendering.labels_speakers:
        return parts
    held = dict(_read_voices(scanner.output, parts, known))
    labelled = label_voices(held, rendering.speaker_count, scanner.keep_alive)
    if other := sum(bool(held[at].voices.voices) for at in held.keys() - labelled.keys()):
        LOG.warning("voices.skipped", chunks=other, reason="of another model than most of the session")
    # One speaker without a name is no news in each paragraph; the label is kept for later chunks.
    named = rendering.names or len({label for each in labelled.values() for label in each.labels}) > 1
    return [
        replace(
            part,
            speakers=PartSpeakers(mark=labelled[at].mark, labels=labelled[at].labels),
            turns=list_turns(labelled[at], rendering.names) if named else (),
        )
        if at in labelled
        else part
        for at, part in enumerate(parts)
    ]


def _read_voices(
    output: Store, parts: Sequence[PartInput], known: Mapping[str, PartSpeakers]
) -> Iterator[tuple[int, HeldVoices]]:
    """Yields the voices of each part that has its own."""
    places = {
        voices_key(part.transcript): at
        for at, part in enumerate(parts)
        if isinstance(part.content, Transcript)
    }
    left = SESSION_VOICES_BYTES
    for key, data in fetch_objects(output, places, limit=VOICES_BYTES):
        left -= len(data)
        if left < 0:
            LOG.warning("voices.skipped", key=key, reason="those of the session are too large together")
            return
        part = parts[places[key]]
        try:
            voices = decode_voices(data)
        except PermanentError as error:
            LOG.warning("voices.skipped", key=key, reason=str(error))
            continue
        if isinstance(part.content, Transcript) and voices.audio.etag == part.content.audio.etag:
            mark, before = hash_values(data), known.get(part.key)
            same = before and (before.mark, len(before.labels)) == (mark, len(voices.voices))
            yield places[key], HeldVoices(voices, mark, before.labels if before and same else ())


class _Head(msgspec.Struct, frozen=True):
    """The fields of a session file without its text."""

    format: str
    session: str
    digest: str
    speakers: str = ""
    parts: tuple[SessionPart, ...] = ()

    def list_known(self, rendering: Rendering) -> dict[str, PartSpeakers]:
        """The labels of each part's voices, for the same number of speakers.

        The file may be crafted: only labels that the setting can make are kept.
        """
        if self.speakers != rendering.speakers:
            return {}
        possible = set(LABELS[: rendering.speaker_count])
        return {
            part.key: part.speakers
            for part in self.parts
            if part.speakers and possible.issuperset(part.speakers.labels)
        }


def _find_place(output: Store, session: str) -> tuple[str, _Head | None]:
    """First stem without foreign files, and the session's JSON there."""
    stems = session_stems(session)
    for stem in stems:
        taken = {info.key for info in output.list(f"{stem}.")} & {f"{stem}.{kind}" for kind in FORMATS}
        ours = _read_head(output, f"{stem}.json", session) if taken else None
        if ours is not None or not taken:
            return stem, ours
    raise PermanentError(
        f"the files of session {session!r} cannot be written: {stems[0]}.json and others are foreign files"
    )


def _read_head(output: Store, key: str, session: str) -> _Head | None:
    try:
        there = msgspec.json.decode(output.get(key, limit=SESSION_FILE_BYTES).data, type=_Head)
    except (ObjectNotFoundError, ObjectTooLargeError, *UNREADABLE):
        return None
    return there if there.session == session and there.format == "batchscribe.session" else None
