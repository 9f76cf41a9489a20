"""Models of Parakeet's format that hear tones: what they say, and when, follows from the audio.

A model has a vocabulary of nine pieces, and each has a frequency of its own. The encoder averages eight
frames of the mel features; the joint, or the CTC layer, says the piece whose mel band stands out most,
if it does. onnx-asr and ONNX Runtime are the real ones, and so are the files: what is tested is all
that lies around the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper, save

RATE = 16_000
MELS = 80
POOL = 8
FRAME = 0.08
"""Seconds of one encoder step."""
PIECES = ("▁one", "▁two", "▁th", "ree", ",", ".", "▁", "-", "▁four")
BLANK = "<blk>"
VOCABULARY = (*PIECES, BLANK)
DURATIONS = 5
THRESHOLD = 1.5
"""By how many standard deviations a band must stand out, over one step, to be said."""
TONE = 0.16
"""Seconds of a tone."""
WIDTH = 4

Samples = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]


def bands() -> list[int]:
    """Which mel band each piece listens to, far enough apart that no tone is heard in two."""
    return [8 + 8 * place for place in range(len(PIECES))]


def hertz(piece: str) -> float:
    """The middle of the piece's band: Slaney's mel scale, 80 bands up to 8 kHz, as NeMo has it."""
    top = 15.0 + np.log(8.0) / (np.log(6.4) / 27.0)
    mel = top * (bands()[PIECES.index(piece)] + 1) / (MELS + 1)
    return float(mel * 200 / 3 if mel < 15 else 1000 * np.exp((np.log(6.4) / 27.0) * (mel - 15)))


def speak(said: Sequence[tuple[str, float]], seconds: float) -> Samples:
    """Audio in which each piece's tone begins at its time, in seconds."""
    audio: Samples = np.random.default_rng(2).normal(0, 1e-4, int(seconds * RATE)).astype(np.float32)
    at = np.arange(int(TONE * RATE)) / RATE
    for piece, start in said:
        first = int(start * RATE)
        tone = 0.5 * np.sin(2 * np.pi * hertz(piece) * at)
        audio[first : first + len(tone)] += tone[: len(audio) - first].astype(np.float32)
    return audio


def build_tdt(folder: Path, *, quantization: str = "", batch: int | str = "B") -> Path:
    """A token-and-duration transducer: a token is four steps long, a blank one."""
    mark = f".{quantization}" if quantization else ""
    _describe(folder, "nemo-conformer-tdt")
    save(_encoder(), folder / f"encoder-model{mark}.onnx")
    save(_joint(batch), folder / f"decoder_joint-model{mark}.onnx")
    return folder


def build_ctc(folder: Path) -> Path:
    """A CTC model, which says a token for as long as its tone lasts."""
    _describe(folder, "nemo-conformer-ctc")
    nodes = [
        *_pooling(),
        helper.make_node("Transpose", ["pooled"], ["steps"], perm=[0, 2, 1]),
        *_scores("steps"),
        helper.make_node("LogSoftmax", ["scores"], ["logprobs"], axis=-1),
    ]
    inputs = [_value("audio_signal", ["B", MELS, "T"]), _value("length", ["B"], TensorProto.INT64)]
    outputs = [_value("logprobs", ["B", "S", len(VOCABULARY)])]
    save(_model(nodes, inputs, outputs, _weights()), folder / "model.onnx")
    return folder


def _describe(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": kind, "features_size": MELS, "subsampling_factor": POOL}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [f"{piece} {number}" for number, piece in enumerate(VOCABULARY)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")


def _encoder() -> ModelProto:
    nodes = [
        *_pooling(),
        helper.make_node("Identity", ["pooled"], ["outputs"]),
        helper.make_node("Sub", ["length", "one"], ["before"]),
        helper.make_node("Div", ["before", "pool"], ["whole"]),
        helper.make_node("Add", ["whole", "one"], ["encoded_lengths"]),
    ]
    inputs = [_value("audio_signal", ["B", MELS, "T"]), _value("length", ["B"], TensorProto.INT64)]
    outputs = [_value("outputs", ["B", MELS, "S"]), _value("encoded_lengths", ["B"], TensorProto.INT64)]
    return _model(nodes, inputs, outputs, {"one": np.array(1, np.int64), "pool": np.array(POOL, np.int64)})


def _joint(batch: int | str) -> ModelProto:
    """Scores, then the durations: four steps where a piece won, one where the blank did."""
    nodes = [
        helper.make_node("Transpose", ["encoder_outputs"], ["steps"], perm=[0, 2, 1]),
        *_scores("steps"),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=-1, keepdims=1),
        helper.make_node("Equal", ["best", "blank"], ["silent"]),
        helper.make_node("Where", ["silent", "short", "long"], ["durations"]),
        helper.make_node("Concat", ["scores", "durations"], ["joined"], axis=-1),
        helper.make_node("Unsqueeze", ["joined", "axis"], ["outputs"]),
        helper.make_node("Add", ["input_states_1", "step"], ["output_states_1"]),
        helper.make_node("Identity", ["input_states_2"], ["output_states_2"]),
    ]
    inputs = [
        _value("encoder_outputs", [batch, MELS, 1]),
        _value("targets", [batch, 1], TensorProto.INT32),
        _value("target_length", [batch], TensorProto.INT32),
        _value("input_states_1", [2, batch, WIDTH]),
        _value("input_states_2", [2, batch, WIDTH]),
    ]
    outputs = [
        _value("outputs", [batch, 1, 1, len(VOCABULARY) + DURATIONS]),
        _value("output_states_1", [2, batch, WIDTH]),
        _value("output_states_2", [2, batch, WIDTH]),
    ]
    constants: dict[str, npt.NDArray[np.generic]] = {
        "blank": np.array(len(PIECES), np.int64),
        "short": np.eye(DURATIONS, dtype=np.float32)[1].reshape(1, 1, -1),
        "long": np.eye(DURATIONS, dtype=np.float32)[4].reshape(1, 1, -1),
        "axis": np.array([1], np.int64),
        "step": np.array(1, np.float32),
    }
    return _model(nodes, inputs, outputs, {**_weights(), **constants})


def _pooling() -> list[NodeProto]:
    return [
        helper.make_node(
            "AveragePool", ["audio_signal"], ["pooled"], kernel_shape=[POOL], strides=[POOL], ceil_mode=1
        )
    ]


def _scores(steps: str) -> list[NodeProto]:
    return [
        helper.make_node("MatMul", [steps, "listen"], ["heard"]),
        helper.make_node("Add", ["heard", "bias"], ["scores"]),
    ]


def _weights() -> dict[str, npt.NDArray[np.generic]]:
    """Four times how far each band stands out; the blank has four times the threshold."""
    listen = np.zeros((MELS, len(VOCABULARY)), np.float32)
    for place, band in enumerate(bands()):
        listen[band, place] = 4.0
    bias = np.zeros(len(VOCABULARY), np.float32)
    bias[-1] = 4.0 * THRESHOLD
    return {"listen": listen, "bias": bias}


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: dict[str, npt.NDArray[np.generic]],
) -> ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "tones", list(inputs), list(outputs), tensors)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    checker.check_model(model)
    return model
