"""Names too long for the output: their transcripts are planned, found, shown and moved all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.controller.commands.redo import find_by_key, redo
from batchscribe.controller.commands.why import read_history
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core.scan.backlog import ChunkState
from batchscribe.core.text.rendering import Rendering
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore

TEXT = b'{"text":"hello"}'
NAMES = ["a" * 251 + ".mp3", "日" * 82 + ".mp3", "é" * 124 + ".webm"]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_long_name_goes_all_the_way(store: DirectoryStore, name: str) -> None:
    key = f"s/{name}"
    store.create(key, b"audio")
    scanner = Scanner(store, store, clock=FakeClock())
    life = read_history(scanner, key)
    assert life.planned is not None
    assert store.create(life.planned, TEXT)
    assert read_history(scanner, key).state is ChunkState.DONE
    stem = publish_session(scanner, key, Rendering())
    assert store.get(f"{stem}.txt").data == b"hello\n\n"
    (redone,) = redo(scanner, find_by_key(scanner, key), stamp="now")
    assert [store.get(kept).data for kept in redone.kept] == [TEXT]
    assert read_history(scanner, key).planned == life.planned


def test_two_long_names_that_begin_alike_have_a_transcript_each(store: DirectoryStore) -> None:
    keys = ["a" * 240 + last for last in ("1.mp3", "2.mp3", "2.wav")]
    for key in keys:
        store.create(key, b"audio")
    scanner = Scanner(store, store, clock=FakeClock())
    planned = {read_history(scanner, key).planned for key in keys}
    assert len(planned) == 3
    for place in planned:
        assert place is not None
        assert store.create(place, TEXT)
    assert all(read_history(scanner, key).state is ChunkState.DONE for key in keys)


def test_a_transcript_that_has_its_long_name_whole_is_found_by_it() -> None:
    # A store that holds longer names than file systems do has them from before names were shortened.
    clock = FakeClock()
    store = MemoryStore(clock)
    key = "a" * 251 + ".mp3"
    store.place(key, b"audio")
    store.place(f"transcription-{'a' * 251}.json", TEXT)
    assert read_history(Scanner(store, store, clock=clock), key).state is ChunkState.DONE
