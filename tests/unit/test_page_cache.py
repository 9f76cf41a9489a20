from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchscribe import page_cache


def test_every_file_is_read_to_its_end_in_order_and_a_missing_one_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"config.json": 5, "model.bin": 10_000, "empty": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    read: dict[str, int] = {}
    send = os.sendfile

    def noted(out: int, source: int, offset: int | None, count: int) -> int:
        sent = send(out, source, offset, count)
        name = Path(f"/proc/self/fd/{source}").readlink().name
        read[name] = read.get(name, 0) + sent
        return sent

    monkeypatch.setattr(page_cache, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(os, "sendfile", noted)
    reader = page_cache.read_ahead(
        [tmp_path / name for name in ("config.json", "missing", "model.bin", "empty")]
    )
    assert reader.daemon, "it ends with its process"
    reader.join(60)
    assert list(read.items()) == list(sizes.items())
