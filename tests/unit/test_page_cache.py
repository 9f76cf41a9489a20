from __future__ import annotations

import os
import threading
from pathlib import Path

from batchscribe.page_cache import BLOCK_BYTES, read_ahead


def test_every_file_is_read_to_its_end_in_order_and_a_missing_one_is_skipped(tmp_path: Path) -> None:
    """The writer of a pipe ends only after all of it was read."""
    pipes = [tmp_path / "config.json", tmp_path / "model.bin"]
    for pipe in pipes:
        os.mkfifo(pipe)
    order: list[str] = []

    def write(pipe: Path) -> None:
        with pipe.open("wb") as file:
            order.append(pipe.name)
            file.write(bytes(3 * BLOCK_BYTES))

    writers = [threading.Thread(target=write, args=(pipe,), daemon=True) for pipe in pipes]
    for writer in writers:
        writer.start()
    reader = read_ahead([pipes[0], tmp_path / "missing", pipes[1]])
    assert reader.daemon, "it ends with its process"
    for thread in (*writers, reader):
        thread.join(60)
        assert not thread.is_alive()
    assert order == ["config.json", "model.bin"]
