"""A session's text for reading along: paragraphs of timed words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchscribe.core.text.cues import (
    SENTENCE_ENDS,
    SpokenWord,
    begins_paragraph,
    list_timed_words,
    name_speaker,
)
from batchscribe.core.text.spelling import continues_word
from batchscribe.core.text.transcripts import Segment, SessionTranscript

LONG = 400
"""Characters from which on the end of a sentence ends a paragraph."""
LONGEST = 1200
"""Characters after which a paragraph ends in any case."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words of one speaker without a long pause; joined, its text."""

    words: tuple[SpokenWord, ...]
    speaker: str | None
    """See `name_speaker`."""

    @property
    def start(self) -> float:
        """Seconds of the session."""
        return self.words[0].start

    @property
    def end(self) -> float:
        return max(word.end for word in self.words)

    @property
    def text(self) -> str:
        return "".join(word.text for word in self.words)


def list_paragraphs(transcript: SessionTranscript) -> Iterator[Paragraph]:
    """Yields the session's paragraphs in order of their segments' starts."""
    words: list[SpokenWord] = []
    length = 0
    before: Segment | None = None
    for segment in sorted(transcript.segments, key=lambda one: one.start):
        if before is not None and words and begins_paragraph(before, segment):
            yield Paragraph(tuple(words), name_speaker(before))
            words, length = [], 0
        for word in _join_words(words, before, segment):
            sentence = words and words[-1].text.rstrip().endswith(SENTENCE_ENDS)
            if words and length >= (LONG if sentence else LONGEST):
                yield Paragraph(tuple(words), name_speaker(segment))
                words, length = [], 0
            words.append(word)
            length += len(word.text)
        before = segment
    if before is not None and words:
        yield Paragraph(tuple(words), name_speaker(before))


def _join_words(words: list[SpokenWord], before: Segment | None, segment: Segment) -> list[SpokenWord]:
    """The segment's words, separated from those before unless a word continues."""
    own = [word for word in list_timed_words(segment) if word.text.strip()]
    if words and own and before is not None:
        gap = "" if continues_word(before, segment) else " "
        last = words[-1]
        words[-1] = SpokenWord(last.text.rstrip() + gap, last.start, last.end, last.probability)
        first = own[0]
        own[0] = SpokenWord(first.text.lstrip(), first.start, first.end, first.probability)
    return own
