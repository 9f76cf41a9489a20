"""A folder as a store: links, names that are no keys, crashes, and folders that are not there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from batchscribe.adapters.stores import directory
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.core.scan.backlog import ScanRules, scan_sessions
from batchscribe.core.scan.folders import merge_listings
from batchscribe.errors import (
    MisconfiguredError,
    ObjectNotFoundError,
    PermanentError,
    RefusedError,
    StoreUnavailableError,
)
from batchscribe.wiring.stores import open_store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "root").mkdir()
    return DirectoryStore(tmp_path / "root")


def listed(store: DirectoryStore, prefix: str = "", after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, after=after)]


@pytest.mark.parametrize("key", ["line\nbreak.mp3", "tab\t.mp3", "ctl\x01.mp3", ".hidden.mp3", "a\\b.mp3"])
def test_any_name_a_folder_can_hold_is_a_key(store: DirectoryStore, key: str) -> None:
    assert store.create(key, b"1")
    assert listed(store) == [key]
    assert store.get(key).data == b"1"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/.", "nul\0.mp3"])
def test_a_key_that_no_folder_can_hold(store: DirectoryStore, key: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"outside")
    with pytest.raises(ObjectNotFoundError):
        store.get(key)
    for write in (store.create, store.replace):
        with pytest.raises(PermanentError):
            write(key, b"1")
    store.delete(key)
    assert (tmp_path / "a").read_bytes() == b"outside"
    assert listed(store) == []


def test_a_name_that_is_too_long_is_that_keys_own_trouble(store: DirectoryStore) -> None:
    with pytest.raises(PermanentError):
        store.create("x" * 300, b"1")
    with pytest.raises(ObjectNotFoundError):
        store.get("x" * 300)


def test_links_are_neither_listed_nor_followed(store: DirectoryStore, tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret.mp3").write_bytes(b"secret")
    (root / "file.mp3").symlink_to(outside / "secret.mp3")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "dangling.mp3").symlink_to(outside / "nothing")
    assert listed(store) == []
    assert listed(store, "fi") == []
    assert len(store.odd_keys) == 4
    assert "'file.mp3': left out, links are not followed" in store.odd_keys
    for key in ("file.mp3", "folder/secret.mp3", "loop/file.mp3", "dangling.mp3"):
        with pytest.raises(RefusedError):
            store.get(key)
        with pytest.raises(RefusedError):
            store.create(key, b"new")
    with pytest.raises(RefusedError):
        store.replace("folder/new.mp3", b"new")
    with pytest.raises(RefusedError):
        store.delete("folder/secret.mp3")
    assert [path.name for path in outside.iterdir()] == ["secret.mp3"]


def test_replacing_a_link_replaces_the_link(store: DirectoryStore, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"outside")
    (tmp_path / "root" / "k").symlink_to(target)
    store.replace("k", b"inside")
    assert target.read_bytes() == b"outside"
    assert store.get("k").data == b"inside"


def test_the_root_itself_may_be_a_link(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    store.create("a.mp3", b"1")
    assert listed(DirectoryStore(tmp_path / "alias")) == ["a.mp3"]


def test_a_name_that_is_not_utf8_is_left_out_and_named(store: DirectoryStore, tmp_path: Path) -> None:
    with Path(os.fsdecode(os.fsencode(tmp_path / "root") + b"/bad\xff.mp3")).open("wb"):
        pass
    store.create("good.mp3", b"1")
    assert listed(store) == ["good.mp3"]
    assert store.odd_keys == (r"'bad\\xff.mp3': left out, its name is not valid UTF-8",)


def test_what_is_not_a_plain_file_is_left_out(store: DirectoryStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "pipe.mp3")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "root" / "s.mp3"))
        assert listed(store) == []
        for key in ("pipe.mp3", "s.mp3"):
            with pytest.raises(ObjectNotFoundError):
                store.get(key)


def test_a_missing_folder_is_an_error_and_never_an_empty_backlog(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "absent")
    with pytest.raises(MisconfiguredError, match="create it"):
        listed(store)
    with pytest.raises(MisconfiguredError, match="create it"):
        store.get("k")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MisconfiguredError, match="not a folder"):
        listed(DirectoryStore(tmp_path / "file"))


def test_folders_come_into_being_on_write(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "new")
    assert store.create("a/b/c.json", b"1")
    assert listed(store) == ["a/b/c.json"]


def test_a_folder_that_cannot_be_read_is_an_error(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("a/b.mp3", b"1")
    real = os.scandir

    def denied(path: int) -> object:
        if len(os.listdir(path)) == 1 and os.listdir(path) == ["b.mp3"]:
            raise PermissionError(13, "denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(MisconfiguredError, match="grant the user"):
        listed(store)


def test_no_half_written_file_is_ever_seen(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of a write: nothing is there afterwards, not even a temporary file."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", full)
    for write in (store.create, store.replace):
        with pytest.raises(StoreUnavailableError, match="No space left"):
            write("k", b"data")
    monkeypatch.undo()
    assert listed(store) == []
    assert list(store._root.iterdir()) == []


def test_what_a_crash_left_behind_is_not_an_object(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "root" / f".batchscribe-{'0' * 32}.tmp").write_bytes(b"half")
    assert listed(store) == []


def test_a_create_is_synced_before_it_is_told(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's bytes before its name, and the name before the answer."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def linked(*args: Any, **named: Any) -> None:
        steps.append("link")
        link(*args, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    assert store.create("k", b"1")
    assert steps == ["file", "link", "folder"]


def test_no_hard_links_is_said(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object, **_named: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(MisconfiguredError, match="hard links"):
        store.create("k", b"1")
    assert listed(store) == []


def test_a_file_that_changes_while_it_is_read(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("k", b"1234")
    etags = iter(["before", "after"])
    monkeypatch.setattr(directory, "_make_etag", lambda _status: next(etags))
    with pytest.raises(StoreUnavailableError, match="written to"):
        store.get("k")


def test_folders_out_of_reach_of_a_prefix_are_not_walked(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a/1", "b/c/1", "b/d/1", "e/1"):
        store.create(key, b"")
    walked: list[str] = []
    entries = DirectoryStore._list_folder

    def watched(self: DirectoryStore, folder: str) -> Sequence[Any]:
        walked.append(folder)
        return entries(self, folder)

    monkeypatch.setattr(DirectoryStore, "_list_folder", watched)
    assert listed(store, "b/", after="b/c0") == ["b/d/1"]
    assert walked == ["b/", "b/d/"]


def test_urls_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "my recordings 100% #1?"
    folder.mkdir()
    store = DirectoryStore(folder)
    store.create("a.mp3", b"1")
    for url in (store.url, str(folder)):
        assert [info.key for info in open_store(url).list()] == ["a.mp3"]
        assert open_store(url).url == store.url


def test_a_copy_that_keeps_an_old_time_is_as_young_as_its_arrival(tmp_path: Path) -> None:
    copied = tmp_path / "a.mp3"
    copied.write_bytes(b"half of it")
    os.utime(copied, (0, 0))
    store = DirectoryStore(tmp_path)
    (info,) = store.list()
    assert info.modified.timestamp() == 0
    assert info.changed is not None
    rules = ScanRules(now=info.changed + timedelta(minutes=1), min_age=timedelta(minutes=5))
    (found,) = scan_sessions(merge_listings(store.list()), rules)
    assert (len(found.waiting), len(found.pending)) == (1, 0)
    (found,) = scan_sessions(
        merge_listings(store.list()), replace(rules, now=info.changed + timedelta(minutes=6))
    )
    assert (len(found.waiting), len(found.pending)) == (0, 1)
