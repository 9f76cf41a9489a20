"""A transducer of Parakeet's format with random weights: two LSTM layers predict, and a joint scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save
from onnx_asr.models.nemo import NemoConformerRnnt, NemoConformerTdt

DURATIONS = 5


def build_joint(
    file: Path, *, vocabulary: int = 12, hidden: int = 16, encoded: int = 24, durations: int = DURATIONS
) -> Path:
    """Writes `decoder_joint-model.onnx`. Shapes of the published 0.6b model: 1025, 640, 1024, 5."""
    random = np.random.default_rng(7)

    def draw(*shape: int, spread: float = 1.0) -> npt.NDArray[np.float32]:
        drawn: npt.NDArray[np.float32] = random.standard_normal(shape).astype(np.float32)
        return drawn * np.float32(spread / shape[-1] ** 0.5)

    weights: dict[str, npt.NDArray[Any]] = {
        "embedding": draw(vocabulary, hidden, spread=4.0),
        "from_encoder": draw(encoded, hidden, spread=4.0),
        "from_prediction": draw(hidden, hidden, spread=4.0),
        "to_logits": draw(hidden, vocabulary + durations, spread=4.0),
        "third": np.array([2], np.int64),
        "second": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "targets"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["layer0"], perm=[1, 0, 2]),
    ]
    for layer in range(2):
        weights |= {
            f"w{layer}": draw(1, 4 * hidden, hidden, spread=3.0),
            f"r{layer}": draw(1, 4 * hidden, hidden, spread=3.0),
            f"at{layer}": np.array([layer], np.int64),
        }
        nodes += [
            helper.make_node("Gather", ["input_states_1", f"at{layer}"], [f"in1_{layer}"]),
            helper.make_node("Gather", ["input_states_2", f"at{layer}"], [f"in2_{layer}"]),
            helper.make_node(
                "LSTM",
                [f"layer{layer}", f"w{layer}", f"r{layer}", "", "", f"in1_{layer}", f"in2_{layer}"],
                [f"y{layer}", f"out1_{layer}", f"out2_{layer}"],
                hidden_size=hidden,
            ),
            helper.make_node("Squeeze", [f"y{layer}", "second"], [f"layer{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["out1_0", "out1_1"], ["output_states_1"], axis=0),
        helper.make_node("Concat", ["out2_0", "out2_1"], ["output_states_2"], axis=0),
        helper.make_node("Transpose", ["layer2"], ["predicted"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["predicted", "from_prediction"], ["p"]),
        helper.make_node("Transpose", ["encoder_outputs"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["frames", "from_encoder"], ["e"]),
        helper.make_node("Unsqueeze", ["p", "second"], ["pu"]),
        helper.make_node("Unsqueeze", ["e", "third"], ["eu"]),
        helper.make_node("Add", ["pu", "eu"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["joined"]),
        helper.make_node("MatMul", ["joined", "to_logits"], ["outputs"]),
    ]
    states: list[int | str] = [2, "B", hidden]
    graph = helper.make_graph(
        nodes,
        "transducer",
        [
            helper.make_tensor_value_info("encoder_outputs", TensorProto.FLOAT, ["B", encoded, 1]),
            helper.make_tensor_value_info("targets", TensorProto.INT32, ["B", 1]),
            helper.make_tensor_value_info("target_length", TensorProto.INT32, ["B"]),
            helper.make_tensor_value_info("input_states_1", TensorProto.FLOAT, states),
            helper.make_tensor_value_info("input_states_2", TensorProto.FLOAT, states),
        ],
        [
            helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["B", 1, 1, vocabulary + durations]),
            helper.make_tensor_value_info("output_states_1", TensorProto.FLOAT, states),
            helper.make_tensor_value_info("output_states_2", TensorProto.FLOAT, states),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def load_transducer(file: Path, *, vocabulary: int = 12, durations: int = DURATIONS) -> Any:
    """What onnx-asr makes of the graph, without its encoder: only its decoding works."""
    kind: Any = NemoConformerTdt if durations else NemoConformerRnnt
    asr = kind.__new__(kind)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    vars(asr).update(
        _decoder_joint=onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]),
        _vocab_size=vocabulary,
        _blank_idx=vocabulary - 1,
        config={},
        use_low_precision=False,
    )
    return asr


def encodings(
    utterances: int, frames: int, encoded: int = 24, seed: int = 3
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Random encoder output of shape (utterances, frames, encoded), and the length of each in frames."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((utterances, frames, encoded)).astype(np.float32)
    return found, random.integers(0, frames + 1, utterances).astype(np.int64)
