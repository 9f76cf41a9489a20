"""Encoder graphs in float16, made when a model is fetched.

Half of the bytes to read, and matrix products on a GPU's tensor cores. ONNX Runtime's own converter makes
them; inputs and outputs stay float32, and so does the prediction and joint network. CUDA's kernels sum layer
norms and softmax in float32.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from batchscribe.adapters.engines.hub_models import FileRecord, beside, describe_file

HALF = "float16"
"""Value of WHISPER_COMPUTE_TYPE, and suffix of the folder beside the model's."""
ENCODERS = ("encoder-model.onnx", "model.onnx")
"""Graphs that are converted: of transducers, and of CTC models."""
SOURCE = "batchscribe-source.json"
"""Records of the files that a folder was made from: another revision needs another graph."""


def find_half(folder: Path) -> Path | None:
    """Folder of the current float16 graph; None if missing or outdated."""
    made = beside(folder, HALF)
    recorded = _read_source(made)
    present = {path.name: path.stat().st_size for path in _list_source(folder)}
    return made if recorded and present == {name: file.size for name, file in recorded.items()} else None


def make_half(folder: Path) -> Path:
    """Makes the float16 graph of a model; returns its folder.

    A graph that was made from the same files is kept. Takes 4 GB of memory for the models of 0.6b. onnx, ONNX
    Runtime and the disk raise many types of errors.
    """
    made = beside(folder, HALF)
    source = {path.name: describe_file(path) for path in _list_source(folder)}
    if source != _read_source(made):
        part = made.with_name(f"{made.name}.part")
        for old in (part, made):
            shutil.rmtree(old, ignore_errors=True)
        _fill_folder(part, folder, source)
        part.rename(made)
    return made


def _fill_folder(part: Path, folder: Path, source: dict[str, FileRecord]) -> None:
    """Writes the converted graph, its record, and links to the other files."""
    part.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in source:
            (part / path.name).symlink_to(path.resolve())
    for name in ENCODERS:
        if name in source:
            _convert_graph(folder / name, part / name)
    (part / SOURCE).write_bytes(msgspec.json.encode(source))


def _list_source(folder: Path) -> Iterator[Path]:
    """Yields the files of the encoder: its graph, and separate weights."""
    for name in ENCODERS:
        yield from (path for path in (folder / name, folder / f"{name}.data") if path.is_file())


def _read_source(made: Path) -> dict[str, FileRecord]:
    try:
        return msgspec.json.decode((made / SOURCE).read_bytes(), type=dict[str, FileRecord])
    except (OSError, msgspec.MsgspecError):
        return {}


def _convert_graph(source: Path, target: Path) -> None:
    onnx: Any = importlib.import_module("onnx")
    float16: Any = importlib.import_module("onnxruntime.transformers.float16")
    model = float16.convert_float_to_float16(
        _read_graph(onnx, source), keep_io_types=True, disable_shape_infer=True
    )
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")


def _read_graph(onnx: Any, file: Path) -> Any:
    """The graph with the type of each value, and its weights.

    Types are inferred without the weights, which make a graph too large for that. The weights are read here,
    since onnx refuses to read links, which the hub's cache consists of.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(file, load_external_data=False))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            tensor.raw_data = _read_weights(file.parent / Path(place["location"]).name, place)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def _read_weights(file: Path, place: dict[str, str]) -> bytes:
    with file.open("rb") as weights:
        weights.seek(int(place.get("offset", 0)))
        return weights.read(int(place["length"]))
