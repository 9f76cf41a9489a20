"""Parakeet with random weights: the operators and shapes of the published encoder (FastConformer) and joint.

Source: D. Rekesh et al., "Fast Conformer with Linearly Scalable Attention for Efficient Speech
Recognition", 2023; relative positions as in Transformer-XL (Z. Dai et al., 2019).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

from support.transducer import build_joint

LONGEST = 500
"""Encoder frames: 40 s."""
SUBSAMPLINGS = 3
"""Each halves the number of frames."""


@dataclass(frozen=True)
class Shape:
    """By default a tiny encoder; `PUBLISHED` has the shape of the 0.6b models."""

    mels: int = 80
    width: int = 32
    heads: int = 2
    layers: int = 2
    channels: int = 8
    kernel: int = 9
    vocabulary: int = 12
    hidden: int = 16
    """Width of the prediction network and the joint."""


TINY = Shape()
PUBLISHED = Shape(mels=128, width=1024, heads=8, layers=24, channels=256, vocabulary=1025, hidden=640)


def build_model(folder: Path, shape: Shape = TINY) -> Path:
    """Writes a model folder of a token-and-duration transducer."""
    folder.mkdir(parents=True, exist_ok=True)
    build_encoder(folder, shape)
    build_joint(
        folder / "decoder_joint-model.onnx",
        vocabulary=shape.vocabulary,
        hidden=shape.hidden,
        encoded=shape.width,
    )
    config = {"model_type": "nemo-conformer-tdt", "features_size": shape.mels, "subsampling_factor": 8}
    (folder / "config.json").write_text(json.dumps(config))
    pieces = [f"▁w{number}" for number in range(shape.vocabulary - 1)]
    lines = [f"{piece} {number}" for number, piece in enumerate((*pieces, "<blk>"))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    return folder


def build_encoder(folder: Path, shape: Shape = TINY) -> Path:
    """Writes `encoder-model.onnx`, with its weights in `encoder-model.onnx.data`."""
    graph = _Graph(shape)
    frames, length = _subsample(graph)
    mask = _mask(graph, frames, length)
    positions = _positions(graph)
    for layer in range(shape.layers):
        frames = _conformer_block(graph, f"l{layer}", frames, mask, positions)
    graph.add("Transpose", [frames], "outputs", perm=[0, 2, 1])
    graph.add("Identity", [length], "encoded_lengths")
    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [
            helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["B", shape.mels, "T"]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["B"]),
        ],
        [
            helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["B", shape.width, "S"]),
            helper.make_tensor_value_info("encoded_lengths", TensorProto.INT64, ["B"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = folder / "encoder-model.onnx"
    save(model, file, save_as_external_data=True, location=f"{file.name}.data")
    return file


@dataclass
class _Graph:
    """Nodes and weights; each node is named after its output."""

    shape: Shape
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def draw(self, name: str, *shape: int, fan: int) -> str:
        """Random weights whose sums over `fan` inputs keep the size of these."""
        drawn = self.random.standard_normal(shape, dtype=np.float32)
        self.constants[name] = drawn * np.float32(fan**-0.5)
        return name

    def keep(self, name: str, value: object, kind: type[np.generic] = np.int64) -> str:
        self.constants[name] = np.array(value, kind)
        return name

    def linear(self, name: str, source: str, size_in: int, size_out: int) -> str:
        weight = self.draw(f"{name}.w", size_in, size_out, fan=size_in)
        bias = self.keep(f"{name}.b", np.zeros(size_out), np.float32)
        return self.add("Add", [self.add("MatMul", [source, weight], f"{name}.m"), bias], name)

    def norm(self, name: str, source: str) -> str:
        width = self.shape.width
        scale = self.keep(f"{name}.s", np.ones(width), np.float32)
        bias = self.keep(f"{name}.b", np.zeros(width), np.float32)
        return self.add("LayerNormalization", [source, scale, bias], name, axis=-1, epsilon=1e-5)

    def swish(self, name: str, source: str) -> str:
        return self.add("Mul", [source, self.add("Sigmoid", [source], f"{name}.g")], name)

    def reshape(self, name: str, source: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", [source, self.keep(f"{name}.shape", shape)], name)


def _subsample(graph: _Graph) -> tuple[str, str]:
    """Frames of shape (B, S, width), and their number in each utterance."""
    graph.add("Transpose", ["audio_signal"], "spectrum", perm=[0, 2, 1])
    found = graph.add("Unsqueeze", ["spectrum", graph.keep("one", [1])], "image")
    shape = graph.shape
    length, wide = "length", shape.channels
    graph.keep("two", [2])
    for stage in range(SUBSAMPLINGS):
        inner, name = (1 if stage == 0 else wide), f"sub{stage}"
        weight = graph.draw(f"{name}.w", wide, 1, 3, 3, fan=4)
        found = graph.add(
            "Conv", [found, weight], name, strides=[2, 2], pads=[1] * 4, group=1 if inner == 1 else wide
        )
        if stage:
            found = graph.add(
                "Conv", [found, graph.draw(f"{name}.p", wide, wide, 1, 1, fan=wide // 2)], f"{name}.c"
            )
        found = graph.add("Relu", [found], f"{name}.r")
        before = graph.add("Sub", [length, "one"], f"{name}.before")
        length = graph.add(
            "Add", [graph.add("Div", [before, "two"], f"{name}.half"), "one"], f"{name}.length"
        )
    graph.add("Transpose", [found], "rows", perm=[0, 2, 1, 3])
    flat = wide * (shape.mels >> SUBSAMPLINGS)
    return graph.linear("embedded", graph.reshape("flat", "rows", [0, 0, flat]), flat, shape.width), length


def _mask(graph: _Graph, frames: str, length: str) -> tuple[str, str]:
    """Frames past the end, for attention (B, 1, S, S) and for convolution (B, 1, S)."""
    size = graph.add("Shape", [frames], "size")
    graph.add("Gather", [size, graph.keep("at1", 1)], "steps", axis=0)
    graph.add("Range", [graph.keep("zero", 0), "steps", graph.keep("unit", 1)], "places")
    graph.add("Unsqueeze", [length, "one"], "ends")
    graph.add("Less", ["places", "ends"], "inside")
    graph.add("Unsqueeze", ["inside", "one"], "across")
    graph.add("Unsqueeze", ["inside", "two"], "down")
    graph.add("Not", [graph.add("And", ["across", "down"], "both")], "masked")
    graph.keep("lowest", -10000.0, np.float32)
    graph.keep("nothing", 0.0, np.float32)
    return graph.add("Unsqueeze", ["masked", "one"], "attention_mask"), graph.add(
        "Not", ["across"], "outside"
    )


def _positions(graph: _Graph) -> str:
    """Encodings of the distances S - 1 to 1 - S, shape (1, 2 S - 1, width)."""
    width = graph.shape.width
    distance = np.arange(LONGEST - 1, -LONGEST, -1)[:, None]
    rates = np.exp(np.arange(0, width, 2) * -(np.log(10000.0) / width))
    table = np.stack([np.sin(distance * rates), np.cos(distance * rates)], axis=2).reshape(1, -1, width)
    graph.keep("table", table, np.float32)
    graph.add("Sub", [graph.keep("longest", LONGEST), "steps"], "begin")
    graph.add("Sub", [graph.add("Add", [graph.keep("middle", LONGEST - 1), "steps"], "after"), "zero"], "end")
    one = ["one"]
    graph.add("Unsqueeze", ["begin", graph.keep("axis0", [0])], "begins")
    graph.add("Unsqueeze", ["end", "axis0"], "stops")
    return graph.add("Slice", ["table", "begins", "stops", *one], "positions")


def _conformer_block(graph: _Graph, name: str, frames: str, mask: tuple[str, str], positions: str) -> str:
    frames = _feed_forward(graph, f"{name}.ff1", frames)
    frames = _attend(graph, f"{name}.att", frames, mask[0], positions)
    frames = _convolve(graph, f"{name}.conv", frames, mask[1])
    frames = _feed_forward(graph, f"{name}.ff2", frames)
    return graph.norm(f"{name}.out", frames)


def _feed_forward(graph: _Graph, name: str, frames: str) -> str:
    width = graph.shape.width
    inner = graph.linear(f"{name}.in", graph.norm(f"{name}.norm", frames), width, 4 * width)
    outer = graph.linear(f"{name}.back", graph.swish(f"{name}.act", inner), 4 * width, width)
    half = graph.add("Mul", [outer, graph.keep(f"{name}.halve", 0.5, np.float32)], f"{name}.half")
    return graph.add("Add", [frames, half], name)


def _attend(graph: _Graph, name: str, frames: str, mask: str, positions: str) -> str:
    """Self-attention with relative positions."""
    width, heads = graph.shape.width, graph.shape.heads
    size = width // heads
    normed = graph.norm(f"{name}.norm", frames)

    def split(part: str, source: str, perm: Sequence[int], bias: bool = False) -> str:
        found = graph.linear(f"{name}.{part}", source, width, width)
        if bias:
            found = graph.add(
                "Add", [found, graph.draw(f"{name}.{part}.u", width, fan=size)], f"{name}.{part}.add"
            )
        parted = graph.reshape(f"{name}.{part}.parts", found, [0, -1, heads, size])
        return graph.add("Transpose", [parted], f"{name}.{part}.heads", perm=perm)

    query, biased = split("q", normed, [0, 2, 1, 3]), split("v2", normed, [0, 2, 1, 3], bias=True)
    key, place = split("k", normed, [0, 2, 3, 1]), split("p", positions, [0, 2, 3, 1])
    content = graph.add("MatMul", [query, key], f"{name}.content")
    shifted = _shift(graph, f"{name}.shift", graph.add("MatMul", [biased, place], f"{name}.place"), heads)
    total = graph.add("Add", [content, shifted], f"{name}.total")
    scores = graph.add("Div", [total, graph.keep(f"{name}.root", size**0.5, np.float32)], f"{name}.scores")
    graph.add("Where", [mask, "lowest", scores], f"{name}.kept")
    graph.add("Softmax", [f"{name}.kept"], f"{name}.soft", axis=-1)
    weights = graph.add("Where", [mask, "nothing", f"{name}.soft"], f"{name}.weights")
    graph.add("MatMul", [weights, split("v", normed, [0, 2, 1, 3])], f"{name}.mixed")
    graph.add("Transpose", [f"{name}.mixed"], f"{name}.back", perm=[0, 2, 1, 3])
    joined = graph.reshape(f"{name}.joined", f"{name}.back", [0, -1, width])
    return graph.add("Add", [frames, graph.linear(f"{name}.o", joined, width, width)], name)


def _shift(graph: _Graph, name: str, scores: str, heads: int) -> str:
    """Moves row i of (B, heads, S, 2 S - 1) left by S - 1 - i, and keeps S columns."""
    pads = graph.keep(f"{name}.pads", [0, 0, 0, 1, 0, 0, 0, 0])
    padded = graph.add("Pad", [scores, pads], f"{name}.padded")
    wide = graph.add(
        "Concat", [graph.keep(f"{name}.lead", [0, heads, -1]), f"{name}.s"], f"{name}.to", axis=0
    )
    graph.nodes.insert(-1, helper.make_node("Unsqueeze", ["steps", "axis0"], [f"{name}.s"], name=f"{name}.s"))
    turned = graph.add("Reshape", [padded, wide], f"{name}.turned")
    ends = graph.keep(f"{name}.ends", [2**31])
    cut = graph.add("Slice", [turned, "one", ends, "two"], f"{name}.cut")
    back = graph.add(
        "Concat", [graph.keep(f"{name}.rest", [0, heads]), f"{name}.s", graph.keep(f"{name}.any", [-1])],
        f"{name}.shape", axis=0,
    )  # fmt: skip
    whole = graph.add("Reshape", [cut, back], f"{name}.whole")
    three = graph.keep(f"{name}.axis", [3])
    return graph.add("Slice", [whole, "axis0", f"{name}.s", three], name)


def _convolve(graph: _Graph, name: str, frames: str, outside: str) -> str:
    width, kernel = graph.shape.width, graph.shape.kernel
    graph.add("Transpose", [graph.norm(f"{name}.norm", frames)], f"{name}.t", perm=[0, 2, 1])
    wide = graph.draw(f"{name}.w1", 2 * width, width, 1, fan=width)
    graph.add("Conv", [f"{name}.t", wide], f"{name}.wide")
    graph.nodes.append(helper.make_node("Split", [f"{name}.wide"], [f"{name}.a", f"{name}.b"], axis=1))
    gate = graph.add("Sigmoid", [f"{name}.b"], f"{name}.gate")
    graph.add("Mul", [f"{name}.a", gate], f"{name}.gated")
    graph.add("Where", [outside, "nothing", f"{name}.gated"], f"{name}.kept")
    deep = graph.draw(f"{name}.w2", width, 1, kernel, fan=kernel)
    half = kernel // 2
    graph.add("Conv", [f"{name}.kept", deep], f"{name}.deep", group=width, pads=[half, half])
    graph.swish(f"{name}.act", f"{name}.deep")
    graph.add("Conv", [f"{name}.act", graph.draw(f"{name}.w3", width, width, 1, fan=width)], f"{name}.last")
    graph.add("Transpose", [f"{name}.last"], f"{name}.back", perm=[0, 2, 1])
    return graph.add("Add", [frames, f"{name}.back"], name)
