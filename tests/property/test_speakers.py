"""Labels of speakers, whatever the voices are like and however chunks arrive."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.text.speakers import HeldVoices, label_voices
from batchscribe.core.text.transcripts import AudioRef
from batchscribe.core.text.voice_groups import make_piece
from batchscribe.core.text.voices import decode_voices, encode_voices, make_voices

AUDIO = AudioRef(name="a", key="a", etag="e")
VECTORS = st.tuples(*[st.floats(-1, 1, width=16)] * 3).filter(lambda vector: max(map(abs, vector)) > 0.01)
VOICES = st.lists(st.tuples(VECTORS, st.floats(0.1, 60)), max_size=6)


def make_chunk(voices: list[tuple[tuple[float, ...], float]]) -> HeldVoices:
    pieces = [make_piece(vector, seconds, (0.0, seconds)) for vector, seconds in voices]
    found = make_voices(AUDIO, "m", 0.5, [piece for piece in pieces if piece])
    assert decode_voices(encode_voices(found)) == found
    return HeldVoices(found, "mark")


@given(
    st.lists(VOICES, min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from([None, 2, 3, 5]),
)
def test_labels_never_change_when_chunks_arrive(
    voices: list[list[tuple[tuple[float, ...], float]]], runs: list[int], count: int | None
) -> None:
    chunks = [make_chunk(each) for each in voices]
    known: list[HeldVoices] = []
    for end in (*sorted(runs), len(chunks)):
        fresh = [replace(chunk, labels=()) for chunk in chunks[len(known) : end]]
        held = [*known, *fresh]
        found = label_voices(dict(enumerate(held)), count)
        labelled = [found.get(at, each) for at, each in enumerate(held)]
        assert [each.labels for each in labelled[: len(known)]] == [each.labels for each in known]
        known = labelled
    labels = {label for chunk in known for label in chunk.labels}
    assert labels == {f"Speaker {number}" for number in range(1, len(labels) + 1)}
    assert all(len(chunk.labels) == len(chunk.voices.voices) for chunk in known)
    assert count is None or len(labels) <= count
