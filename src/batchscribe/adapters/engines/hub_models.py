"""Models of the Hugging Face hub: pinned revisions, download, records, and verification.

A model is pinned to one revision, so its name always means the same weights. Each download is recorded with
sizes and SHA-256, so that a truncated or changed model is an error, not a worse transcript. Only `fetch` uses
the network.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchscribe.errors import EngineError, MisconfiguredError, first_line

RECORD = "batchscribe-model.json"
SHA256_DIGITS = 64


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model as it was fetched."""

    size: int
    sha256: str


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record of a fetch: repository, commit and files."""

    repository: str
    revision: str
    files: dict[str, FileRecord]


@dataclass(frozen=True, slots=True)
class HubModel:
    """Files of one repository at one commit."""

    name: str
    """The model's, for messages."""
    repository: str
    revision: str | None
    """The commit; if None, the one of the first fetch is kept."""
    patterns: Sequence[str]
    """Names of the files to download."""
    install: str
    """Command that installs the hub's client."""

    def fetch(self) -> Path:
        """Downloads or verifies the files in the local cache; returns their folder.

        Uses the network. Raises MisconfiguredError without the hub's client or for files that differ from
        their record, EngineError if the download fails or is damaged.
        """
        hub = self._import_client()
        # The client prints its warnings itself.
        logging.getLogger("huggingface_hub").propagate = False
        revision, patterns = self.revision or self._find_first_revision(), list(self.patterns)
        try:
            folder = Path(hub.snapshot_download(self.repository, revision=revision, allow_patterns=patterns))
        except Exception as error:
            # The hub's client raises many types of errors.
            reason = first_line(error).replace("Got:", "").strip(" .")
            raise EngineError(
                f"the model {self.name} could not be fetched ({reason}): check the network and the free disk "
                "space, and try again; nothing was changed"
            ) from error
        verify_model(folder, contents=True)
        self.record(folder)
        return folder

    def find(self) -> Path | None:
        """The cached folder; None if missing. Raises MisconfiguredError without the client."""
        # The hub's own search takes half a second to import, and `tick` and `status` need only the place.
        home, branch = self._find_home(), Path("refs", "main")
        revision = self.revision or self._find_first_revision()
        if revision is None and (home / branch).is_file():
            revision = (home / branch).read_text().strip()
        folder = home / "snapshots" / (revision or "")
        return folder if revision and folder.is_dir() else None

    def _import_client(self) -> Any:
        try:
            importlib.import_module("huggingface_hub.constants")
            return importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise MisconfiguredError(f"{error.name} not installed: {self.install}") from error

    def _find_home(self) -> Path:
        """The repository's folder in the hub's cache."""
        cache = self._import_client().constants.HF_HUB_CACHE
        return Path(cache) / f"models--{self.repository.replace('/', '--')}"

    def _find_first_revision(self) -> str | None:
        """The commit of the first fetch; None before it."""
        found = sorted(self._find_home().glob(f"*.{RECORD}"))
        return found[0].name.removesuffix(f".{RECORD}") if found else None

    def record(self, folder: Path) -> None:
        """Records files without a record: each number format has its own."""
        known = _read_record(folder)
        files = dict(known.files) if known else {}
        for path in (path for pattern in self.patterns for path in sorted(folder.glob(pattern))):
            if path.name not in files:
                files[path.name] = describe_file(path)
        record = ModelRecord(repository=self.repository, revision=folder.name, files=files)
        beside(folder, RECORD).write_bytes(msgspec.json.encode(record))


def verify_model(folder: Path, *, contents: bool = False) -> None:
    """Compares a fetched model with its record: sizes, and with `contents` hashes.

    A folder without a record was not fetched by us, and is not checked. Raises MisconfiguredError.
    """
    record = _read_record(folder)
    for name, known in record.files.items() if record else ():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != known.size or (contents and _hash_file(path) != known.sha256):
            raise MisconfiguredError(
                f"{path} changed after it was fetched: remove {_repository_folder(folder)} and fetch the "
                "model again (`batchscribe engines --fetch`; a GPU host: `batchscribe gpu setup`)"
            )


def beside(folder: Path, suffix: str) -> Path:
    """Path beside a commit's folder, or in a user's own folder."""
    return _repository_folder(folder) / f"{folder.name}.{suffix}"


def _repository_folder(folder: Path) -> Path:
    """The repository's folder: the hub stores commits in its `snapshots`."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


def _read_record(folder: Path) -> ModelRecord | None:
    path = beside(folder, RECORD)
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise MisconfiguredError(
            f"{path} cannot be read: remove it and fetch the model again (`batchscribe engines --fetch`)"
        ) from error


def describe_file(path: Path) -> FileRecord:
    """Size and hash of a file. Raises EngineError if it is damaged."""
    digest = _hash_file(path)
    given = path.resolve().name
    if len(given) == SHA256_DIGITS and given != digest:
        raise EngineError(
            f"{path} is damaged: remove {_repository_folder(path.parent)} and fetch the model again"
        )
    return FileRecord(size=path.stat().st_size, sha256=digest)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
