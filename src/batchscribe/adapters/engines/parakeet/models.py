"""Parakeet's models: their names, what they know, where they lie, and how they get there.

A model is a folder with `config.json`, `vocab.txt`, and for a transducer `encoder-model.onnx` and
`decoder_joint-model.onnx`, for CTC `model.onnx`. Names and places are onnx-asr's.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from batchscribe.adapters.engines.problems import line
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError, MisconfiguredError

DEFAULT_MODEL = "nemo-parakeet-tdt-0.6b-v2"
MULTILINGUAL_MODEL = "nemo-parakeet-tdt-0.6b-v3"
ENGLISH = frozenset({"en"})
_EUROPEAN = "bg cs da de el en es et fi fr hr hu it lt lv mt nl pl pt ro ru sk sl sv uk"
EUROPEAN = frozenset(_EUROPEAN.split())
PUBLISHED = {
    DEFAULT_MODEL: ENGLISH,
    MULTILINGUAL_MODEL: EUROPEAN,
    "nemo-parakeet-rnnt-0.6b": ENGLISH,
    "nemo-parakeet-ctc-0.6b": ENGLISH,
}
"""Each model that can be fetched, and the languages that it knows."""
_ENGLISH_NAME = "parakeet-tdt-0.6b-v2"
"""What may follow it is a number format."""
KINDS = ("nemo-conformer-tdt", "nemo-conformer-rnnt", "nemo-conformer-ctc")
"""What `model_type` in a folder's `config.json` may say."""
GRAPHS = ("encoder-model", "decoder_joint-model", "model")
QUANTIZATIONS = {"auto": None, "float32": None, "int8": "int8"}
"""Which files of the model are taken, by WHISPER_COMPUTE_TYPE."""
_WHISPERS = re.compile(r"(distil-)?(tiny|base|small|medium|large|turbo)([-.].*)?")
_SMALL = 256 * 1024 * 1024
"""A file whose weights lie beside it is smaller than that, in bytes."""


def model_name(wanted: str) -> str:
    """The model that is meant: WHISPER_MODEL names one of Whisper's unless somebody chose."""
    return DEFAULT_MODEL if not wanted or _WHISPERS.fullmatch(wanted) else wanted


def languages(model: str) -> frozenset[str]:
    """The languages that a model knows by its name; empty where that says nothing.

    Of a folder the last part is the name.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    if name.removeprefix("nemo-").startswith(_ENGLISH_NAME):
        return ENGLISH
    return PUBLISHED.get(name, frozenset())


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """What no machine could do, whatever is installed there, each with the mend."""
    model = model_name(spec.model)
    found: list[str] = []
    if not _is_folder(model) and model not in PUBLISHED:
        found.append(_unknown(model))
    known = languages(model)
    if spec.language and known and spec.language not in known:
        found.append(_deaf(model, spec.language))
    if spec.task != "transcribe":
        found.append(
            f"parakeet transcribes only, and BATCH_TASK is {spec.task}: take BATCH_ENGINE=faster-whisper and "
            "a model for several languages, WHISPER_MODEL=small"
        )
    if spec.compute_type not in QUANTIZATIONS:
        found.append(
            f"parakeet cannot compute in {spec.compute_type}: WHISPER_COMPUTE_TYPE may be "
            f"{', '.join(QUANTIZATIONS)}"
        )
    return tuple(found)


def model_folder(spec: EngineSpec) -> Path:
    """The folder of the model on this machine. Raises MisconfiguredError: missing, or not whole."""
    model = model_name(spec.model)
    files = _in_folder(Path(model), spec) if _is_folder(model) else _fetched(model, spec)
    folder = files["vocab"].parent
    if absent := [name for name in _weights(files.values()) if not (folder / name).is_file()]:
        raise MisconfiguredError(
            f"the model in {folder} has no {', '.join(absent)}, so it is not whole: fetch it again"
        )
    return folder


def kind(model: str, folder: Path) -> str:
    """What onnx-asr has to build: a published name, or the kind that the folder says it is.

    Raises MisconfiguredError where the folder says none that Parakeet has.
    """
    if model in PUBLISHED:
        return model
    try:
        said = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise MisconfiguredError(
            f"the folder {folder} has no readable config.json: it is no model of Parakeet's in ONNX"
        ) from error
    if said not in KINDS:
        raise MisconfiguredError(
            f"config.json in {folder} has model_type {said!r}; parakeet runs {', '.join(KINDS)}"
        )
    return str(said)


def here() -> dict[str, bool]:
    """Every published model, and whether it is on this machine."""
    return {model: _is_here(model) for model in PUBLISHED}


def fetch(spec: EngineSpec) -> Path:
    """Fetches a named model onto this machine and returns its folder; a folder is returned as it is.

    Reaches for the network. Raises MisconfiguredError for an unknown name, EngineError where it fails.
    """
    model = model_name(spec.model)
    if _is_folder(model):
        return Path(model)
    if model not in PUBLISHED:
        raise MisconfiguredError(_unknown(model))
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        place = _resolver(model, offline=True).repo_id
    except ImportError as error:
        raise MisconfiguredError(
            f"{error.name} not installed: pip install 'batchscribe[parakeet]'"
        ) from error
    try:
        return Path(hub.snapshot_download(place, allow_patterns=_wanted(spec)))
    except Exception as error:
        # The hub's client raises a family of its own for every way a download can fail.
        raise EngineError(f"the model {model} could not be fetched: {line(error)}") from error


def _wanted(spec: EngineSpec) -> list[str]:
    """The files that onnx-asr looks for, of whichever kind the model is."""
    chosen = QUANTIZATIONS.get(spec.compute_type)
    graphs = [f"{name}.{chosen}.onnx" if chosen else f"{name}.onnx" for name in GRAPHS]
    return ["config.json", "vocab.txt", *graphs, *(f"{graph}.data" for graph in graphs)]


def _is_here(model: str) -> bool:
    try:
        return bool(model_folder(EngineSpec(engine="parakeet", model=model)))
    except (MisconfiguredError, ImportError):
        return False


def _is_folder(model: str) -> bool:
    return "/" in model or model.startswith(".")


def _in_folder(folder: Path, spec: EngineSpec) -> dict[str, Path]:
    if not folder.is_dir():
        raise MisconfiguredError(f"there is no folder {folder}: WHISPER_MODEL is a model's name or folder")
    try:
        return _files(_resolver(kind(str(folder), folder), folder), spec)
    except OSError as error:
        raise MisconfiguredError(f"the model in {folder} is not whole: {error}") from error


def _fetched(model: str, spec: EngineSpec) -> dict[str, Path]:
    try:
        return _files(_resolver(model, offline=True), spec)
    except OSError as error:
        raise MisconfiguredError(
            f"the model {model} is not on this machine: fetch it with `batchscribe engines --engine parakeet "
            f"--fetch {model}`, or take the folder of a model (WHISPER_MODEL)"
        ) from error


def _resolver(model: str, folder: Path | None = None, *, offline: bool | None = None) -> Any:
    loader: Any = importlib.import_module("onnx_asr.loader")
    return loader.create_asr_resolver(model, folder, offline=offline)


def _files(resolver: Any, spec: EngineSpec) -> dict[str, Path]:
    found: dict[str, Path] = resolver.resolve_model(quantization=QUANTIZATIONS.get(spec.compute_type))
    return found


def _weights(files: Iterable[Path]) -> Iterable[str]:
    """Names of files beside the model's that its graphs take their weights from."""
    for path in files:
        name = f"{path.name}.data"
        if path.suffix == ".onnx" and path.stat().st_size < _SMALL and name.encode() in path.read_bytes():
            yield name


def _unknown(model: str) -> str:
    return f"no model of Parakeet's is called {model!r}: a folder, or one of {', '.join(PUBLISHED)}"


def _deaf(model: str, language: str) -> str:
    if language in EUROPEAN:
        mend = f"take WHISPER_MODEL={MULTILINGUAL_MODEL}"
    else:
        mend = "take BATCH_ENGINE=faster-whisper and WHISPER_MODEL=small"
    known = "English only" if languages(model) == ENGLISH else "25 European languages only"
    return f"{model} knows {known}, and BATCH_LANGUAGE is {language}: {mend}"
