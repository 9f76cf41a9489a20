"""What must hold of a box before its start is paid for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.preflight import engine_spec, preflight
from support.stores import NOW

INSTANCE = "i-0123456789abcdef0"


def settings(folder: Path, launch: str = "auto") -> Settings:
    environ = {"GPU_INSTANCE_ID": INSTANCE, "BATCH_LAUNCH": launch, "BATCH_CLOUD_GUARD": "off"}
    return load(environ, folder=folder)


def recorded(**fields: object) -> MemoryStore:
    store = MemoryStore(FakeClock())
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=NOW)
    store.create(keys.instance(INSTANCE), msgspec.json.encode(msgspec.structs.replace(record, **fields)))
    return store


@pytest.mark.parametrize("launch", ["auto", "ssh"])
def test_a_box_without_units_is_reached_over_ssh(tmp_path: Path, launch: str) -> None:
    preflight(settings(tmp_path, launch), recorded())


def test_launch_at_boot_needs_a_box_that_boots(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="gpu setup"):
        preflight(settings(tmp_path, "boot"), recorded())
    with pytest.raises(MisconfiguredError, match="does not show its tags"):
        preflight(settings(tmp_path, "boot"), recorded(boots=True))
    preflight(settings(tmp_path, "boot"), recorded(boots=True, shows_tags=True))


def test_a_box_of_another_version_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="nothing was started"):
        preflight(settings(tmp_path), recorded(release="0.0.1"))
    with pytest.raises(MisconfiguredError, match="is not set up"):
        preflight(settings(tmp_path), MemoryStore(FakeClock()))


def test_the_ledger_learns_under_the_engines_own_model(tmp_path: Path) -> None:
    def model(**chosen: str) -> str:
        return engine_spec(load({"GPU_INSTANCE_ID": INSTANCE, **chosen}, folder=tmp_path)).model

    assert model() == "small.en"
    assert model(BATCH_ENGINE="parakeet") == "nemo-parakeet-tdt-0.6b-v2"
    assert model(BATCH_ENGINE="parakeet", WHISPER_MODEL="/models/mine") == "/models/mine"
    assert model(BATCH_ENGINE="pocketsphinx") == ""
    assert model(BATCH_ENGINE="only-on-the-box", WHISPER_MODEL="its-own") == "its-own"
