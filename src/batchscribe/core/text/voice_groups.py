"""Groups embeddings of voices, so that each group is one speaker.

A worker groups the pieces of a chunk as they come (`add_piece`). The scheduler groups the voices of all
chunks of a session (`group_voices`) in two stages: time grows with its length, not with the square. All of it
is pure Python, since the scheduler has no numpy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import add, mul
from typing import Any

Vector = Sequence[float]

BLOCK = 64
"""Groups that are compared with each other at once."""
MOST_SPEAKERS = 20
"""Speakers of a session."""
BRIEF = 3.0
"""Seconds of speech below which a group is no speaker of its own if the number of speakers is open."""


@dataclass(frozen=True, slots=True, eq=False)
class VoiceGroup:
    """Embeddings that count as one voice."""

    total: Vector
    """Their sum, each with the length of its seconds: all of them have the same dimensions."""
    seconds: float
    members: tuple[Any, ...] = ()
    """What the embeddings belong to: spans of a chunk, or numbers of voices."""
    label: str = ""
    """The speaker's, if it is known."""
    norm: float = field(init=False)
    """Length of `total`; 0 if it has no direction."""

    def __post_init__(self) -> None:
        norm = math.hypot(*self.total)
        object.__setattr__(self, "norm", norm if math.isfinite(norm) else 0.0)

    def compare(self, other: VoiceGroup) -> float:
        """Cosine similarity, -1 to 1; -inf if both are known speakers."""
        if self.label and other.label:
            return -math.inf
        product: float = sum(map(mul, self.total, other.total))
        return product / (self.norm * other.norm or 1.0)

    def join(self, other: VoiceGroup) -> VoiceGroup:
        return VoiceGroup(
            array("f", map(add, self.total, other.total)),
            self.seconds + other.seconds,
            (*self.members, *other.members),
            self.label or other.label,
        )


def make_piece(vector: Vector, seconds: float, member: object) -> VoiceGroup | None:
    """A group of one embedding; None if that has no direction."""
    norm = math.hypot(*vector)
    if not norm or not math.isfinite(norm):
        return None
    # As an array: a session of ten hours has tens of thousands, and a list takes eight times as much memory.
    return VoiceGroup(array("f", (value * seconds / norm for value in vector)), seconds, (member,))


def be_strict(alike: float) -> float:
    """Similarity from which on two groups are of one voice.

    Means are more similar than their pieces. For 0.5 it is 0.75. pyannote's speaker-diarization-3.1 joins
    means of WeSpeaker's embeddings up to a distance of 0.7046 between unit vectors: a similarity of 1 -
    0.7046² / 2 = 0.752.
    """
    return (1 + alike) / 2


def add_piece(groups: list[VoiceGroup], piece: VoiceGroup, strict: float, most: int) -> None:
    """Adds a piece to the most similar group, or a new one."""
    similarities = [piece.compare(group) for group in groups]
    best = max(similarities, default=-math.inf)
    if best >= strict:
        at = similarities.index(best)
        groups[at] = groups[at].join(piece)
        return
    groups.append(piece)
    if len(groups) > 2 * most:
        groups[:] = limit_groups(groups, most)


def limit_groups(groups: Sequence[VoiceGroup], most: int) -> list[VoiceGroup]:
    """At most so many groups: the most similar ones are merged."""
    return _merge_groups(groups, VoiceGroup.compare, count=most)


def group_voices(
    voices: Sequence[VoiceGroup],
    alike: float,
    count: int | None,
    keep_alive: Callable[[], object] = lambda: None,
) -> list[VoiceGroup]:
    """Groups the voices of a session by speaker: into at most `count`.

    If it is None, similarity decides, with at most MOST_SPEAKERS. Voices of one label are one speaker, and
    labelled speakers stay apart: they are known from before. `keep_alive` is called before each block.
    """
    known: dict[str, VoiceGroup] = {}
    for voice in voices:
        if voice.label:
            known[voice.label] = known[voice.label].join(voice) if voice.label in known else voice
    fresh = _halve_blocks([voice for voice in voices if not voice.label], keep_alive)
    groups = _merge_groups([*known.values(), *fresh], VoiceGroup.compare, least=be_strict(alike))
    if count is None:
        groups = _dissolve_brief(groups)
    return _merge_groups(groups, _score_merge, count=count or MOST_SPEAKERS)


def _halve_blocks(groups: Sequence[VoiceGroup], keep_alive: Callable[[], object]) -> Sequence[VoiceGroup]:
    """First stage: halves each block of neighbours until one block is left.

    The most similar half of a block is of one voice each, as long as far fewer speakers than that take turns.
    """
    while len(groups) > BLOCK:
        halves: list[VoiceGroup] = []
        for at in range(0, len(groups), BLOCK):
            keep_alive()
            halves += limit_groups(groups[at : at + BLOCK], BLOCK // 2)
        groups = halves
    return groups


def _score_merge(one: VoiceGroup, two: VoiceGroup) -> float:
    """Ward's criterion: a brief outlier never makes two speakers one."""
    weight = one.seconds * two.seconds / (one.seconds + two.seconds or 1.0)
    return weight * (one.compare(two) - 1)


def _dissolve_brief(groups: Sequence[VoiceGroup]) -> list[VoiceGroup]:
    """Merges each brief group without label into the most similar other."""
    kept = [group for group in groups if group.label or group.seconds >= BRIEF]
    if not kept:
        return list(groups)
    for group in groups:
        if not group.label and group.seconds < BRIEF:
            similarities = [group.compare(other) for other in kept]
            at = similarities.index(max(similarities))
            kept[at] = kept[at].join(group)
    return kept


def _merge_groups(
    groups: Iterable[VoiceGroup],
    score: Callable[[VoiceGroup, VoiceGroup], float],
    *,
    least: float = -math.inf,
    count: int = 1,
) -> list[VoiceGroup]:
    """Merges the pair with the highest score, repeatedly.

    It ends when that is below `least`, or `count` are left. Groups keep the order of their first members.
    """
    left = list(groups)
    scores = [[score(one, two) for two in left[:at]] for at, one in enumerate(left)]
    while len(left) > count and len(left) > 1:
        best, at = max((max(row), at) for at, row in enumerate(scores) if row)
        if best < least or best == -math.inf:
            break
        into = scores[at].index(best)
        left[into] = left[into].join(left[at])
        del left[at], scores[at]
        for row in scores[at:]:
            del row[at]
        scores[into] = [score(left[into], two) for two in left[:into]]
        for behind in range(into + 1, len(left)):
            scores[behind][into] = score(left[behind], left[into])
    return left
