"""Speakers of a session: labels for voices, names for labels.

A voice keeps its label when later chunks arrive: the labels of the session file are known before the other
voices are grouped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from batchscribe.core.text.transcripts import Segment
from batchscribe.core.text.voice_groups import MOST_SPEAKERS, VoiceGroup, group_voices
from batchscribe.core.text.voices import ChunkVoices
from batchscribe.core.text.word_assignment import split_by_group
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import PermanentError

OFF, AUTO = "off", "auto"
"""Values of BATCH_SPEAKERS besides a number."""
LABELS = tuple(f"Speaker {number}" for number in range(1, MOST_SPEAKERS + 1))
"""Numbered in order of the first appearance."""
LONGEST_NAME = 100
"""Characters."""
Member = tuple[int, int]
"""Number of a chunk, and of a voice in it."""
EXAMPLE = '{"speakers": {"Speaker 1": "Ada"}}'


@dataclass(frozen=True, slots=True)
class Turn:
    """A time in which one speaker speaks, in seconds of the chunk."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True, slots=True)
class HeldVoices:
    """The voices of one chunk of a session."""

    voices: ChunkVoices
    mark: str
    """Hash of their object."""
    labels: tuple[str, ...] = ()
    """Labels that they have from before, in their order; empty if they are new."""


class _NameFile(msgspec.Struct, frozen=True):
    speakers: dict[str, str]


def decode_names(data: bytes) -> dict[str, str]:
    """Decodes a user's file of names by label; raises PermanentError."""
    try:
        found = msgspec.json.decode(data, type=_NameFile).speakers
    except UNREADABLE as error:
        raise PermanentError(f"not names of speakers ({error}): write {EXAMPLE}") from error
    for label in sorted(found.keys() - set(LABELS)):
        raise PermanentError(
            f"not names of speakers ({label[:LONGEST_NAME]!r} is none of {LABELS[0]} to {LABELS[-1]}): "
            f"write {EXAMPLE}"
        )
    if any(len(name) > LONGEST_NAME for name in found.values()):
        raise PermanentError(f"not names of speakers: one is longer than {LONGEST_NAME} characters")
    return {label: plain for label, name in found.items() if (plain := " ".join(name.split()))}


def label_voices(
    chunks: Mapping[int, HeldVoices], count: int | None, keep_alive: Callable[[], object] = lambda: None
) -> dict[int, HeldVoices]:
    """The labelled chunks of a session; `chunks`: by number, in its order.

    `count`: the maximum of speakers; None if it is open. Embeddings of different models cannot be compared:
    only the chunks of the most frequent one are returned. `keep_alive` is called during the work.
    """
    kinds = Counter(chunk.voices.kind for chunk in chunks.values() if chunk.voices.voices)
    if not kinds:
        return {}
    kind, _ = kinds.most_common(1)[0]
    own = {at: chunk for at, chunk in chunks.items() if chunk.voices.kind == kind}
    alike = next(iter(own.values())).voices.alike
    groups = group_voices(list(_list_groups(own)), alike, count, keep_alive)
    labels = _choose_labels(groups, own)
    return {
        at: replace(chunk, labels=tuple(labels[at, number] for number in range(len(chunk.voices.voices))))
        for at, chunk in own.items()
    }


def _list_groups(chunks: Mapping[int, HeldVoices]) -> Iterator[VoiceGroup]:
    for at, chunk in chunks.items():
        for number, group in enumerate(chunk.voices.list_groups()):
            label = chunk.labels[number] if chunk.labels else ""
            yield replace(group, members=((at, number),), label=label)


def _choose_labels(groups: Sequence[VoiceGroup], chunks: Mapping[int, HeldVoices]) -> dict[Member, str]:
    """The label of each group's members, new ones by first appearance."""
    used = {group.label for group in groups}
    fresh = (label for label in LABELS if label not in used)
    labels: dict[Member, str] = {}
    for group in sorted(groups, key=lambda group: min(_locate(chunks, member) for member in group.members)):
        labels.update(dict.fromkeys(group.members, group.label or next(fresh)))
    return labels


def _locate(chunks: Mapping[int, HeldVoices], member: Member) -> tuple[int, float]:
    """The place of a voice: its chunk, and its first begin."""
    at, number = member
    return at, chunks[at].voices.voices[number].spans[0].start


def list_turns(chunk: HeldVoices, names: Mapping[str, str]) -> tuple[Turn, ...]:
    """The turns of a labelled chunk by start, with names if known."""
    spoken = zip(chunk.voices.voices, chunk.labels, strict=True)
    turns = (
        Turn(span.start, span.end, names.get(label, label)) for voice, label in spoken for span in voice.spans
    )
    return tuple(sorted(turns, key=lambda turn: (turn.start, turn.end)))


def assign_speakers(segments: Iterable[Segment], turns: Sequence[Turn]) -> Iterator[Segment]:
    """Yields the segments with speakers, split between words of different ones.

    All times are the chunk's. A word belongs to the turn that contains its midpoint, else to the nearest
    turn. Without turns, the segments are unchanged.
    """
    if not turns:
        yield from segments
        return
    starts = [turn.start for turn in turns]
    for segment in segments:
        words = segment.words or (segment,)
        speakers = [_find_speaker(turns, starts, (word.start + word.end) / 2) for word in words]
        if not segment.words:
            yield msgspec.structs.replace(segment, speaker=speakers[0])
            continue
        for speaker, part in split_by_group(segment, speakers):
            named = tuple(msgspec.structs.replace(word, speaker=speaker) for word in part.words)
            yield msgspec.structs.replace(part, words=named, speaker=speaker)


def _find_speaker(turns: Sequence[Turn], starts: Sequence[float], time: float) -> str:
    at = bisect_right(starts, time)
    near = turns[max(0, at - 1) : at + 1]
    return min(near, key=lambda turn: max(turn.start - time, time - turn.end)).speaker
