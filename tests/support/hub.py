"""A double of the Hugging Face hub: a cache as the hub's client lays it out."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

HEAD = "a" * 40
"""What the branch of the double's repositories points at."""


class Hub:
    """A cache that a double of `snapshot_download` fills with links to the files of one repository."""

    def __init__(self, root: Path, contents: dict[str, bytes]) -> None:
        self.root = root
        self.head = HEAD
        self.contents = contents
        self.calls: list[tuple[str, str | None]] = []
        self.broken = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.root))

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repository, revision))
        home = self.root / f"models--{repository.replace('/', '--')}"
        folder = home / "snapshots" / (revision or self.head)
        for place in (folder, home / "blobs"):
            place.mkdir(parents=True, exist_ok=True)
        for name, data in self.contents.items():
            if (folder / name).exists() or not any(fnmatch(name, pattern) for pattern in allow_patterns):
                continue
            blob = home / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data[:-1] if self.broken else data)
            (folder / name).symlink_to(Path("../../blobs") / blob.name)
        return str(folder)
