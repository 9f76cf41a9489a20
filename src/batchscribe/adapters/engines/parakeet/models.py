"""Parakeet's models: names, languages, folders, and downloads.

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

import structlog

from batchscribe.adapters.engines.hub_models import HubModel, verify_model
from batchscribe.adapters.engines.parakeet.half_precision import HALF, find_half, make_half
from batchscribe.adapters.engines.problems import describe_unknown
from batchscribe.core.decide.published_models import ENGLISH, EUROPEAN
from batchscribe.core.messages import describe_install
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError, first_line

DEFAULT_MODEL = "nemo-parakeet-tdt-0.6b-v2"
MULTILINGUAL_MODEL = "nemo-parakeet-tdt-0.6b-v3"
PUBLISHED = {
    DEFAULT_MODEL: ENGLISH,
    MULTILINGUAL_MODEL: EUROPEAN,
    "nemo-parakeet-rnnt-0.6b": ENGLISH,
    "nemo-parakeet-ctc-0.6b": ENGLISH,
}
"""Models that can be fetched -> their languages."""
SOURCES: dict[str, tuple[str, str | None]] = {
    DEFAULT_MODEL: ("istupakov/parakeet-tdt-0.6b-v2-onnx", "0bbb45a3365852604aef28b538a8f066f4ccaa85"),
    MULTILINGUAL_MODEL: ("istupakov/parakeet-tdt-0.6b-v3-onnx", "8f23f0c03c8761650bdb5b40aaf3e40d2c15f1ce"),
    "nemo-parakeet-rnnt-0.6b": ("istupakov/parakeet-rnnt-0.6b-onnx", None),
    "nemo-parakeet-ctc-0.6b": ("istupakov/parakeet-ctc-0.6b-onnx", None),
}
"""Model -> (repository, commit). If the commit is None, the one of the first fetch is kept."""
INSTALL = describe_install("parakeet-gpu", "parakeet")
_ENGLISH_NAME = "parakeet-tdt-0.6b-v2"
"""A number format may follow."""
KINDS = ("nemo-conformer-tdt", "nemo-conformer-rnnt", "nemo-conformer-ctc")
"""Supported values of `model_type` in a folder's `config.json`."""
GRAPHS = ("encoder-model", "decoder_joint-model", "model")
FLOAT = "float32"
QUANTIZATIONS = {"auto": None, FLOAT: None, HALF: None, "int8": "int8"}
"""WHISPER_COMPUTE_TYPE -> variant of the model's files; float16 is made from those in float32."""
_WHISPERS = re.compile(r"(distil-)?(tiny|base|small|medium|large|turbo)([-.].*)?")
LOG = structlog.get_logger()
_SMALL = 256 * 1024 * 1024
"""Bytes; a graph with its weights in a separate file is smaller."""


def model_name(wanted: str) -> str:
    """Parakeet model for a WHISPER_MODEL; DEFAULT_MODEL if empty or a Whisper model."""
    return DEFAULT_MODEL if not wanted or _WHISPERS.fullmatch(wanted) else wanted


def languages(model: str) -> frozenset[str]:
    """Languages by a model's name or folder name; empty if unknown."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    if name.removeprefix("nemo-").startswith(_ENGLISH_NAME):
        return ENGLISH
    return PUBLISHED.get(name, frozenset())


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """Reasons why no machine can run `spec`, each with a remedy."""
    model = model_name(spec.model)
    found: list[str] = []
    if not _is_folder(model) and model not in PUBLISHED:
        found.append(describe_unknown("Parakeet", model, PUBLISHED))
    known = languages(model)
    if spec.language and known and spec.language not in known:
        found.append(_describe_language(model, spec.language))
    if spec.task != "transcribe":
        found.append(
            f"parakeet transcribes only, and BATCH_TASK is {spec.task}: use BATCH_ENGINE=faster-whisper and "
            "a multilingual model, WHISPER_MODEL=small"
        )
    if spec.compute_type not in QUANTIZATIONS:
        found.append(
            f"parakeet cannot compute in {spec.compute_type}: WHISPER_COMPUTE_TYPE may be "
            f"{', '.join(QUANTIZATIONS)}"
        )
    return tuple(found)


def model_folder(spec: EngineSpec) -> Path:
    """The folder to load on this machine.

    With float16 it is the one that was made, if there is one. Raises MisconfiguredError if the model is
    missing or incomplete.
    """
    model = model_name(spec.model)
    folder = _find_folder(model, spec)
    verify_model(folder)
    files = _resolve_files(model, folder, spec)
    if absent := [name for name in _list_weight_files(files.values()) if not (folder / name).is_file()]:
        raise MisconfiguredError(
            f"the model in {folder} is incomplete ({', '.join(absent)} missing): fetch it again"
        )
    return (find_half(folder) if spec.compute_type == HALF else None) or folder


def list_files(spec: EngineSpec) -> tuple[Path, ...]:
    """The files that `spec` loads. Raises MisconfiguredError without a complete model."""
    folder = model_folder(spec)
    return tuple(path for name in _file_patterns(spec) if (path := folder / name).is_file())


def find_kind(model: str, folder: Path) -> str:
    """The model's kind for onnx-asr.

    A published name, or the kind in config.json. Raises MisconfiguredError if that is not supported.
    """
    if model in PUBLISHED:
        return model
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise MisconfiguredError(
            f"the folder {folder} has no readable config.json: it is not a Parakeet model in ONNX"
        ) from error
    if found not in KINDS:
        raise MisconfiguredError(
            f"config.json in {folder} has model_type {found!r}; parakeet supports {', '.join(KINDS)}"
        )
    return str(found)


def list_models() -> dict[str, bool]:
    """Published model -> True if it is on this machine."""
    return {model: _is_here(model) for model in PUBLISHED}


def fetch(spec: EngineSpec) -> Path:
    """Downloads a named model and returns its folder.

    A folder is returned unchanged. With float16, its encoder is made, too. Uses the network. Raises
    MisconfiguredError for an unknown name, EngineError if the download fails.
    """
    model = model_name(spec.model)
    if not _is_folder(model) and model not in PUBLISHED:
        raise MisconfiguredError(describe_unknown("Parakeet", model, PUBLISHED))
    folder = Path(model) if _is_folder(model) else _find_source(model, spec).fetch()
    if spec.compute_type == HALF:
        try:
            make_half(folder)
        except Exception as error:  # noqa: BLE001 - see `make_half`
            reason = f"{type(error).__name__}: {first_line(error)}"
            LOG.warning("model.not_converted", model=model, reason=reason, note="float32 is used")
    return folder


def _find_source(model: str, spec: EngineSpec) -> HubModel:
    return HubModel(model, *SOURCES[model], _file_patterns(spec), INSTALL)


def _file_patterns(spec: EngineSpec) -> list[str]:
    """Files that onnx-asr needs for any kind of model."""
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


def _find_folder(model: str, spec: EngineSpec) -> Path:
    if _is_folder(model):
        return Path(model)
    if model in SOURCES and (folder := _find_source(model, spec).find()) is not None:
        return folder
    raise MisconfiguredError(
        f"the model {model} is not on this machine: fetch it with `batchscribe engines --engine parakeet "
        f"--fetch {model}`, or set WHISPER_MODEL to a model folder"
    )


def _resolve_files(model: str, folder: Path, spec: EngineSpec) -> dict[str, Path]:
    if not folder.is_dir():
        raise MisconfiguredError(f"there is no folder {folder}: WHISPER_MODEL is a model name or a folder")
    loader: Any = importlib.import_module("onnx_asr.loader")
    try:
        resolver = loader.create_asr_resolver(find_kind(model, folder), folder, offline=True)
        found: dict[str, Path] = resolver.resolve_model(quantization=QUANTIZATIONS.get(spec.compute_type))
    except OSError as error:
        raise MisconfiguredError(f"the model in {folder} is incomplete: {error}") from error
    return found


def _list_weight_files(files: Iterable[Path]) -> Iterable[str]:
    """Names of the separate weight files of a model's graphs."""
    for path in files:
        name = f"{path.name}.data"
        if path.suffix == ".onnx" and path.stat().st_size < _SMALL and name.encode() in path.read_bytes():
            yield name


def _describe_language(model: str, language: str) -> str:
    if language in EUROPEAN:
        remedy = f"use WHISPER_MODEL={MULTILINGUAL_MODEL}"
    else:
        remedy = "use BATCH_ENGINE=faster-whisper and WHISPER_MODEL=small"
    known = "English only" if languages(model) == ENGLISH else "25 European languages only"
    return f"{model} supports {known}, and BATCH_LANGUAGE is {language}: {remedy}"
