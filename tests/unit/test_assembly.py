"""Windows that are taken apart lose no chunk and no knowledge of what was said before."""

from __future__ import annotations

from math import inf

import numpy as np

from batchscribe.audio.windows import Cut
from batchscribe.core.text.flags import RERUN
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.core.text.word_assignment import ChunkPlace
from batchscribe.worker.assembly import Assembly
from batchscribe.worker.sounds import Whole
from batchscribe.worker.timeline import Ended, PendingWindow


def cut(*parts: tuple[float, float]) -> Cut:
    spans = tuple((int(begin * SAMPLE_RATE), int(end * SAMPLE_RATE)) for begin, end in parts)
    length = sum(end - begin for begin, end in spans)
    return Cut(spans, np.zeros(length, np.float32), ())


def place(begin: float, end: float) -> ChunkPlace:
    return ChunkPlace(begin=begin, end=end, first=begin, last=end)


def ended(chunk: int) -> Ended:
    return Ended(chunk=chunk, whole=Whole(10.0, partial=False, repaired=False))


def spoken(text: str, start: float, end: float) -> Segment:
    return Segment(text=text, start=start, end=end, words=(Word(word=text, start=start, end=end),))


def test_a_chunk_in_a_silence_that_was_left_out_is_whole_when_its_window_breaks() -> None:
    assembly = Assembly()
    places = (place(0, 10), place(10, 12), place(12, 22))
    number = assembly.register_window(
        PendingWindow(cut((5, 9.5), (12.5, 20)), (0, 1, 2), places, None, alone=False)
    )
    assert [list(assembly.record_end(ended(chunk))) for chunk in range(3)] == [[], [], []]
    parts, whole = assembly.split_window(number)
    assert [heard.chunk for heard in whole] == [1]
    heard = [each.chunk for part in parts for each in assembly.add_result(Recognition(part, (), "en"))[1]]
    assert heard == [0, 2]


def test_what_a_neighbour_said_is_known_of_a_part_too() -> None:
    """Its last word reaches 0.6 s into the chunk."""
    assembly = Assembly()
    said = ChunkPlace(begin=-20, end=5, first=-inf, last=5, published=True, words_from=0.0, words_until=5.6)
    own = ChunkPlace(begin=5, end=30, first=5, last=inf)
    number = assembly.register_window(PendingWindow(cut((0, 10)), (None, 3), (said, own), None, alone=False))
    (part,), _ = assembly.split_window(number)
    assert assembly.get_window(part).cut.start == 5 * SAMPLE_RATE
    list(assembly.record_end(ended(3)))
    result = Recognition(part, (spoken("lo", 0.0, 0.6), spoken("world", 1.0, 1.5)), "en")
    _, (heard,) = assembly.add_result(result)
    assert [segment.text for segment in heard.segments] == ["world"]


def test_the_flags_of_a_window_are_those_of_who_has_its_words() -> None:
    assembly = Assembly()
    places = (place(0, 10), place(10, 20))
    number = assembly.register_window(PendingWindow(cut((0, 20)), (0, 1), places, None, alone=False))
    for chunk in (0, 1):
        list(assembly.record_end(ended(chunk)))
    found = {
        heard.chunk: heard.flags
        for heard in assembly.add_result(Recognition(number, (spoken("one", 1.0, 2.0),), "en", (RERUN,)))[1]
    }
    assert found == {0: {RERUN}, 1: frozenset()}
