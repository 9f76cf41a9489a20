"""The state directory in a store: generations, conflicts, damage, and settings that it excludes."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from batchscribe.cli.app import App
from batchscribe.detached import boot_id
from batchscribe.errors import MisconfiguredError, NotStoppedError, RefusedError, UnreadableError
from batchscribe.ledger import Ledger
from batchscribe.ledger.kept_state import KEPT, KeptState
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.install import describe_schedule
from batchscribe.wiring.process import scheduler_identity
from batchscribe.wiring.scheduler import open_scheduler
from batchscribe.wiring.seams import open_state

INSTANCE = "i-0123456789abcdef0"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    names = {
        "BATCH_SOURCE": str(tmp_path / "audio"),
        "BATCH_STATE_DIR": "s3://state",
        "GPU_INSTANCE_ID": INSTANCE,
    }
    return replace(load(names, folder=tmp_path), state=(tmp_path / "kept").as_uri())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(FakeClock())


def copy_of(store: MemoryStore, folder: Path) -> KeptState:
    """A process's copy of the newest generation."""
    folder.mkdir()
    state = KeptState(store, folder)
    state.fetch()
    for name, data in state.files.items():
        (folder / name).write_bytes(data)
    return state


def generations(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list()]


@contextmanager
def facts_of(settings: Settings) -> Iterator[Ledger]:
    with open_state(settings) as copied, Ledger(copied.state_dir / FILE_NAME) as ledger:
        yield ledger


def overtake(settings: Settings, slow: Ledger) -> None:
    """Changes the ledger here, and before that is stored, in another command."""
    slow.put("key", "slow")
    with facts_of(settings) as fast:
        fast.put("key", "fast")


def fail_after(act: Callable[[], object]) -> None:
    act()
    raise NotStoppedError("the GPU runs")


def test_a_ledger_and_an_identity_survive_an_empty_disk(settings: Settings) -> None:
    with open_state(settings) as first:
        identity = scheduler_identity(first)
        with Ledger(first.state_dir / FILE_NAME) as ledger:
            ledger.put("key", "value")
    assert not first.state_dir.exists(), "nothing stays on this disk"
    with open_state(settings) as second:
        assert second.state_dir != first.state_dir
        assert scheduler_identity(second) == identity
        with Ledger(second.state_dir / FILE_NAME) as ledger:
            assert ledger.get("key") == "value"


def test_a_command_that_changes_nothing_stores_nothing(settings: Settings, tmp_path: Path) -> None:
    with facts_of(settings) as ledger:
        ledger.put("key", "value")
    before = sorted((tmp_path / "kept").iterdir())
    with facts_of(settings) as ledger:
        assert ledger.get("key") == "value"
    assert sorted((tmp_path / "kept").iterdir()) == before


def test_the_identity_is_stored_before_a_command_acts(settings: Settings) -> None:
    with open_state(settings) as first, open_state(settings) as other:
        assert scheduler_identity(first) == scheduler_identity(other)


def test_what_a_failed_command_recorded_is_stored(settings: Settings) -> None:
    with pytest.raises(NotStoppedError), facts_of(settings) as ledger:
        fail_after(lambda: ledger.put("key", "value"))
    with facts_of(settings) as ledger:
        assert ledger.get("key") == "value"


def test_a_failed_command_keeps_its_error_if_its_state_is_refused(settings: Settings) -> None:
    with pytest.raises(NotStoppedError), facts_of(settings) as slow:
        fail_after(lambda: overtake(settings, slow))
    with facts_of(settings) as ledger:
        assert ledger.get("key") == "fast"


def test_of_two_commands_the_later_one_is_refused_and_loses_only_its_copy(settings: Settings) -> None:
    with pytest.raises(RefusedError, match="changed by another process"), facts_of(settings) as slow:
        overtake(settings, slow)
    with facts_of(settings) as ledger:
        assert ledger.get("key") == "fast"


def test_changes_of_different_files_are_both_kept(store: MemoryStore, tmp_path: Path) -> None:
    slow, fast = copy_of(store, tmp_path / "slow"), copy_of(store, tmp_path / "fast")
    (fast.folder / "ledger.sqlite").write_bytes(b"a run")
    fast.save()
    (slow.folder / "known_hosts").write_bytes(b"a key")
    slow.save()
    assert copy_of(store, tmp_path / "next").files == {"ledger.sqlite": b"a run", "known_hosts": b"a key"}


def test_a_deleted_file_stays_deleted(store: MemoryStore, tmp_path: Path) -> None:
    state = copy_of(store, tmp_path / "first")
    (state.folder / "prices.json").write_bytes(b"[]")
    state.save()
    (state.folder / "prices.json").unlink()
    state.save()
    assert copy_of(store, tmp_path / "next").files == {}


def test_files_of_this_machine_are_left_out(store: MemoryStore, tmp_path: Path) -> None:
    state = copy_of(store, tmp_path / "first")
    (state.folder / "workers").mkdir()
    for name in ("tick.lock", ".draft.12", "ledger.sqlite-shm"):
        (state.folder / name).write_bytes(b"here")
    state.save()
    assert generations(store) == []


def test_a_ledger_that_was_not_closed_is_stored_whole(store: MemoryStore, tmp_path: Path) -> None:
    state = copy_of(store, tmp_path / "first")
    left_open = Ledger(state.folder / FILE_NAME)
    left_open.put("key", "value")
    state.save()
    left_open.close()
    later = copy_of(store, tmp_path / "next")
    with Ledger(later.folder / FILE_NAME) as ledger:
        assert ledger.get("key") == "value"


def test_old_generations_are_deleted(store: MemoryStore, tmp_path: Path) -> None:
    state = copy_of(store, tmp_path / "first")
    for number in range(1, KEPT + 6):
        (state.folder / "prices.json").write_text(str(number))
        state.save()
    assert generations(store) == [f"generations/{number:010}" for number in range(6, KEPT + 6)]


def test_a_writer_whose_number_was_pruned_already_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    slow, fast = copy_of(store, tmp_path / "slow"), copy_of(store, tmp_path / "fast")
    for number in range(KEPT + 5):
        (fast.folder / "prices.json").write_text(str(number))
        fast.save()
    (slow.folder / "prices.json").write_text("old")
    with pytest.raises(RefusedError):
        slow.save()
    assert copy_of(store, tmp_path / "next").files == {"prices.json": str(KEPT + 4).encode()}


def test_a_lost_reply_is_no_conflict(store: MemoryStore, tmp_path: Path) -> None:
    state = copy_of(store, tmp_path / "first")
    (state.folder / "prices.json").write_text("[]")
    twin = copy_of(store, tmp_path / "twin")
    (twin.folder / "prices.json").write_text("[]")
    state.save()
    twin.save()
    assert len(generations(store)) == 1


@pytest.mark.parametrize("data", [b"", b"torn", b"\x1f\x8b\x08\x00\x00", b"\x1f\x8b"])
def test_a_damaged_generation_is_reported_and_the_one_before_is_in_effect_after_its_deletion(
    store: MemoryStore, tmp_path: Path, data: bytes
) -> None:
    state = copy_of(store, tmp_path / "first")
    (state.folder / "prices.json").write_text("[]")
    state.save()
    store.create("generations/0000000002", data)
    with pytest.raises(UnreadableError, match="delete it"):
        copy_of(store, tmp_path / "second")
    store.delete("generations/0000000002")
    assert copy_of(store, tmp_path / "third").files == {"prices.json": b"[]"}


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "", ".hidden"])
def test_a_forged_generation_cannot_write_elsewhere(store: MemoryStore, tmp_path: Path, name: str) -> None:
    store.create("generations/0000000001", gzip.compress(msgspec.msgpack.encode({name: b"evil"})))
    with pytest.raises(UnreadableError, match="no file of a state"):
        copy_of(store, tmp_path / "first")


def test_a_state_that_cannot_be_fetched_stops_no_way_out(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"no folder")
    with pytest.raises(MisconfiguredError), open_state(settings):
        pass
    with open_state(settings, lenient=True) as without:
        (problem,) = without.problems
    assert "could not be fetched" in problem
    with open_state(settings, lenient=True) as again:
        assert again.state_dir == without.state_dir, "or alerts would be repeated with each pass"


@pytest.mark.parametrize(
    ("names", "refusal"),
    [
        ({"BATCH_STATE_DIR": "s3://audio/sessions/state"}, "inside BATCH_SOURCE"),
        ({"BATCH_STATE_DIR": "s3://audio/sessions"}, "inside BATCH_SOURCE"),
        ({"BATCH_STATE_DIR": "s3://results/x", "BATCH_OUTPUT": "s3://results"}, "inside BATCH_OUTPUT"),
        ({"BATCH_STATE_DIR": "s3://control/x", "BATCH_CONTROL": "s3://control"}, "inside BATCH_CONTROL"),
        ({"GPU_PROVIDER": "local"}, "needs a folder"),
        ({"BATCH_CPU_LANE": "auto"}, "needs a folder"),
        ({"BATCH_STATE_DIR": "s3:/state"}, "did you mean"),
        ({"BATCH_STATE_DIR": "file:///state"}, "the folder itself"),
    ],
)
def test_settings_that_exclude_it_are_refused(tmp_path: Path, names: dict[str, str], refusal: str) -> None:
    given = {
        "BATCH_SOURCE": "s3://audio/sessions",
        "BATCH_STATE_DIR": "s3://state",
        "GPU_INSTANCE_ID": INSTANCE,
    }
    with pytest.raises(MisconfiguredError, match=refusal):
        load(given | names, folder=tmp_path)
    assert load(given, folder=tmp_path).state_url == "s3://state"


def test_commands_of_several_processes_are_refused(settings: Settings) -> None:
    app = App()
    app.reads_state = False
    app.__dict__["settings"] = settings
    with pytest.raises(MisconfiguredError, match="needs a folder of this machine"):
        app.require_state_folder("use another command")


def test_each_pass_is_on_a_machine_of_the_same_name_and_with_a_boot_of_its_own(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    settings = replace(settings, region="us-east-1")
    boots = set()
    for machine in ("one", "another"):
        monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
        with open_state(settings) as copied, open_scheduler(copied, quiet=True) as made:
            assert made.config.host == settings.state_url
            boots.add(made.world.clock.boot())
    assert len(boots) == 2
    assert boot_id() not in boots


def test_the_schedule_of_a_state_in_a_store_is_elsewhere(settings: Settings) -> None:
    assert describe_schedule(settings) == f"not on this machine: its state is in {settings.state_url}"
