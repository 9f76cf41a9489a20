"""Behaviour of a SpeakerModel. Subclass it with two fixtures.

    class TestMine(SpeakerModelSuite):
        @pytest.fixture
        def model(self): ...

        @pytest.fixture
        def voices(self): return (first, first_again), (second, second_again)

`voices` are takes of two speakers, each of at least 3 s of 16 kHz mono audio, shape (samples,), float32.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from batchscribe.core.text.voice_groups import VoiceGroup, make_piece
from batchscribe.core.text.voices import DIMENSIONS
from batchscribe.protocols import SpeakerModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Takes = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def embed_group(model: SpeakerModel, audio: npt.NDArray[np.float32]) -> VoiceGroup:
    """The embedding of audio that is long enough for one."""
    vector = model.embed(audio)
    assert vector is not None
    group = make_piece(vector, 1.0, None)
    assert group is not None
    return group


class SpeakerModelSuite:
    """See the module."""

    def test_one_voice_is_alike_and_another_is_not(
        self, model: SpeakerModel, voices: tuple[Takes, Takes]
    ) -> None:
        (one, again), (two, other) = (tuple(embed_group(model, take) for take in takes) for takes in voices)
        assert one.compare(again) >= model.alike
        assert two.compare(other) >= model.alike
        assert max(one.compare(two), again.compare(other)) < model.alike

    def test_embeddings_are_finite_and_of_one_length(
        self, model: SpeakerModel, voices: tuple[Takes, Takes]
    ) -> None:
        vectors = [model.embed(take) for takes in voices for take in takes]
        (length,) = {len(vector) for vector in vectors if vector is not None}
        assert length <= DIMENSIONS
        assert all(math.isfinite(value) for vector in vectors if vector is not None for value in vector)

    def test_the_same_audio_has_the_same_embedding_in_every_thread(
        self, model: SpeakerModel, voices: tuple[Takes, Takes]
    ) -> None:
        audio = voices[0][0]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: embed_group(model, audio), range(8)))
        assert all(math.isclose(found[0].compare(each), 1.0, abs_tol=1e-4) for each in found)

    def test_a_few_samples_have_none(self, model: SpeakerModel, voices: tuple[Takes, Takes]) -> None:
        assert model.embed(voices[0][0][:16]) is None

    def test_its_name_and_threshold_are_plain(self, model: SpeakerModel) -> None:
        assert model.name
        assert -1 <= model.alike <= 1
