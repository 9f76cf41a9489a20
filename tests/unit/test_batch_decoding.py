"""A batch is decoded to the tokens, times and probabilities that onnx-asr finds utterance by utterance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batchscribe.adapters.engines.parakeet.batch_decoding import use_batches
from support.transducer import DURATIONS, build_joint, encodings, load_transducer


@pytest.fixture(scope="module", params=[DURATIONS, 0], ids=["tdt", "rnnt"])
def asr(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = build_joint(tmp_path_factory.mktemp("joint") / "joint.onnx", durations=request.param)
    return load_transducer(file, durations=request.param)


def decoded(asr: Any, found: Any, lengths: Any, **options: object) -> list[Any]:
    return list(asr._decoding(found, lengths, **options))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("utterances", [1, 2, 7, 16])
def test_a_batch_gives_the_tokens_and_times_of_each_utterance_alone(
    asr: Any, utterances: int, seed: int
) -> None:
    plain = load_like(asr)
    use_batches(asr)
    found, lengths = encodings(utterances, 40, seed=seed)
    expected = decoded(plain, found, lengths, need_logprobs=True)
    batched = decoded(asr, found, lengths, need_logprobs=True)
    assert [(tokens, times) for tokens, times, _ in batched] == [(t, at) for t, at, _ in expected]
    for (_, _, logprobs), (_, _, known) in zip(batched, expected, strict=True):
        assert logprobs == pytest.approx(known, abs=1e-4)
    assert any(tokens for tokens, _, _ in expected) or not lengths.any()


def load_like(asr: Any) -> Any:
    """The same model with onnx-asr's own decoding."""
    kind: Any = type(asr)
    plain = kind.__new__(kind)
    vars(plain).update({name: value for name, value in vars(asr).items() if name != "_decoding"})
    return plain


def test_an_utterance_of_many_tokens_in_one_frame_moves_on(asr: Any) -> None:
    """The limit of tokens per frame, 10, holds for each utterance by itself."""
    plain = load_like(asr)
    use_batches(asr)
    asr.config["max_tokens_per_step"] = 2
    found, lengths = encodings(5, 30, seed=9)
    assert [one[:2] for one in decoded(asr, found, lengths)] == [
        tuple(one[:2]) for one in decoded(plain, found, lengths)
    ]


def test_probabilities_are_left_out_unless_needed(asr: Any) -> None:
    use_batches(asr)
    found, lengths = encodings(2, 10)
    assert [logprobs for _, _, logprobs in decoded(asr, found, lengths)] == [None, None]


def test_lengths_beyond_the_encoding_are_cut(asr: Any) -> None:
    """Encoders of low precision may report lengths that are too large."""
    use_batches(asr)
    found, _ = encodings(2, 10)
    whole = decoded(asr, found, np.array([10, 10]))
    assert decoded(asr, found, np.array([12, 99])) == whole


def test_a_graph_for_one_utterance_is_decoded_as_before(asr: Any) -> None:
    plain = load_like(asr)
    one = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(shape=[1, 1])] * 5)
    plain._decoder_joint = one
    use_batches(plain)
    assert "_decoding" not in vars(plain)


def test_a_model_without_a_transducer_is_decoded_as_before() -> None:
    ctc = SimpleNamespace(_decoding=list)
    use_batches(ctc)
    assert ctc._decoding is list
