"""Checks before a start is paid for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.machine import files
from batchscribe.cli.terminal.render import render_dry_run
from batchscribe.core import keys
from batchscribe.core.decide.observation import Reason, ReasonCode
from batchscribe.core.decide.policy import Hold
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.preflight import find_engine_problem, preflight, refuse_manual_start
from support.set_up_hosts import pin_host_key
from support.stores import NOW

INSTANCE = "i-0123456789abcdef0"


def settings(folder: Path, launch: str = "auto", **names: str) -> Settings:
    environ = {"BATCH_SOURCE": "s3://bucket", "GPU_INSTANCE_ID": INSTANCE, "BATCH_CLOUD_GUARD": "off"}
    return load(environ | {"BATCH_LAUNCH": launch} | names, folder=folder)


@pytest.fixture(autouse=True)
def pinned(tmp_path: Path) -> Path:
    """The pinned host key, as `gpu setup` leaves it."""
    return pin_host_key(tmp_path, INSTANCE)


def recorded(**fields: object) -> MemoryStore:
    store = MemoryStore(FakeClock())
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=NOW)
    store.create(keys.instance(INSTANCE), msgspec.json.encode(msgspec.structs.replace(record, **fields)))
    return store


@pytest.mark.parametrize("launch", ["auto", "ssh"])
def test_a_host_without_units_is_reached_over_ssh(tmp_path: Path, launch: str) -> None:
    preflight(settings(tmp_path, launch), recorded())


def test_launch_at_boot_needs_a_host_that_boots(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="gpu setup"):
        preflight(settings(tmp_path, "boot"), recorded())
    with pytest.raises(MisconfiguredError, match="does not show its tags"):
        preflight(settings(tmp_path, "boot"), recorded(boots=True))
    preflight(settings(tmp_path, "boot"), recorded(boots=True, shows_tags=True))


def test_a_host_of_another_version_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="nothing was started"):
        preflight(settings(tmp_path), recorded(release="0.0.1"))
    with pytest.raises(MisconfiguredError, match="is not set up"):
        preflight(settings(tmp_path), MemoryStore(FakeClock()))


@pytest.mark.parametrize(
    ("names", "fields", "says"),
    [
        ({"BATCH_ENGINE": "wisper"}, {}, "no speech engine 'wisper' is installed here: did you mean"),
        ({"BATCH_ENGINE": "zzz"}, {}, "BATCH_ENGINE may be auto, faster-whisper"),
        ({"WHISPER_MODEL": "smal.en"}, {}, "did you mean small.en"),
        ({"BATCH_ENGINE": "parakeet", "WHISPER_MODEL": "nemo-parakeet-tdt-9b"}, {}, "no Parakeet model"),
        ({"GPU_SSH_KEY_PATH": "/nope.pem"}, {}, "/nope.pem cannot be used .*: correct GPU_SSH_KEY_PATH"),
        ({"GPU_SSH_KEY_PATH": "open.pem"}, {}, "accessible to other users, .*: chmod 600 /"),
        ({"BATCH_CLOUD_GUARD": "eventbridge"}, {}, "BATCH_GUARD_ROLE_ARN is not set: create the stack"),
        ({}, {"release": "0.0.1"}, "has batchscribe 0.0.1"),
        ({}, {"credentials": False}, "no AWS credentials on .*: attach an instance profile"),
        ({"BATCH_STATE_DIR": "open.pem/state"}, {}, "is not writable by this user"),
    ],
)
def test_what_is_known_beforehand_is_refused_with_its_fix(
    tmp_path: Path, names: dict[str, str], fields: dict[str, object], says: str
) -> None:
    (tmp_path / "open.pem").write_text("key")
    (tmp_path / "open.pem").chmod(0o644)
    preflight(settings(tmp_path), recorded())
    with pytest.raises(MisconfiguredError, match=says) as caught:
        preflight(settings(tmp_path, **names), recorded(**fields))
    assert str(caught.value).endswith("(nothing was started)")


def test_no_set_up_is_proposed_for_an_engine_that_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        preflight(settings(tmp_path, BATCH_ENGINE="wisper"), recorded(engine="parakeet", model="m"))
    assert "was prepared for" not in str(caught.value)
    with pytest.raises(MisconfiguredError, match="was prepared for parakeet m"):
        preflight(settings(tmp_path), recorded(engine="parakeet", model="m"))


def test_all_obstacles_are_named_at_once(tmp_path: Path) -> None:
    broken = {"BATCH_ENGINE": "wisper", "GPU_SSH_KEY_PATH": "/nope.pem", "BATCH_CLOUD_GUARD": "eventbridge"}
    with pytest.raises(MisconfiguredError) as caught:
        preflight(settings(tmp_path, **broken), MemoryStore(FakeClock()))
    obstacles = ("'wisper' is installed", "BATCH_GUARD_ROLE_ARN", "/nope.pem cannot", "is not set up: run")
    assert [each for each in obstacles if each not in str(caught.value)] == []
    assert str(caught.value).count("(nothing was started)") == 1


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STATE_BYTES", 10**18)
    with pytest.raises(MisconfiguredError, match="its disk is full: free"):
        preflight(settings(tmp_path), recorded())


def test_a_key_file_counts_only_where_ssh_is_used(tmp_path: Path) -> None:
    at_boot = recorded(boots=True, shows_tags=True)
    preflight(settings(tmp_path, GPU_SSH_KEY_PATH="/nope.pem"), at_boot)
    with pytest.raises(MisconfiguredError, match=r"nope\.pem"):
        preflight(settings(tmp_path, "ssh", GPU_SSH_KEY_PATH="/nope.pem"), at_boot)


def test_a_start_over_ssh_needs_the_pinned_host_key(tmp_path: Path, pinned: Path) -> None:
    pinned.unlink()
    preflight(settings(tmp_path), recorded(boots=True, shows_tags=True))
    with pytest.raises(MisconfiguredError, match=f"no host key is pinned for {INSTANCE}: run `batchscribe"):
        preflight(settings(tmp_path), recorded())


@pytest.mark.parametrize("names", [{"BATCH_ENGINE": "wisper"}, {"GPU_SSH_KEY_PATH": "/nope.pem"}])
def test_a_manual_start_needs_a_host_that_can_be_reached_and_set_up(
    tmp_path: Path, names: dict[str, str]
) -> None:
    refuse_manual_start(settings(tmp_path))
    with pytest.raises(MisconfiguredError, match="nothing was started"):
        refuse_manual_start(settings(tmp_path, **names))
    local = load({"GPU_PROVIDER": "local"} | names, folder=tmp_path)
    refuse_manual_start(local)


def test_a_local_gpu_needs_its_engine(tmp_path: Path) -> None:
    def local(engine: str) -> Settings:
        names = {"BATCH_SOURCE": str(tmp_path), "GPU_PROVIDER": "local", "BATCH_ENGINE": engine}
        return load(names, folder=tmp_path)

    preflight(local("pocketsphinx"), recorded())
    with pytest.raises(MisconfiguredError, match="did you mean pocketsphinx"):
        preflight(local("pocketsphynx"), recorded())


def test_the_first_line_of_a_dry_run_is_the_refusal() -> None:
    hold = Hold(Reason(ReasonCode.EMPTY, "nothing is pending"))
    lines = render_dry_run(hold, MisconfiguredError("no such engine"), None, now=NOW)
    assert lines[:2] == ["Would not start: no such engine", "Would otherwise hold: nothing is pending"]
    assert render_dry_run(hold, None, None, now=NOW)[0] == "Would hold: nothing is pending"


def test_the_ledger_learns_under_the_engines_own_model(tmp_path: Path) -> None:
    def model(**chosen: str) -> str:
        return engine_spec(load({"GPU_INSTANCE_ID": INSTANCE, **chosen}, folder=tmp_path)).model

    assert model() == "large-v3-turbo"
    assert model(BATCH_ENGINE="parakeet") == "nemo-parakeet-tdt-0.6b-v2"
    assert model(BATCH_ENGINE="parakeet", WHISPER_MODEL="/models/mine") == "/models/mine"
    assert model(BATCH_ENGINE="pocketsphinx") == ""
    assert model(BATCH_ENGINE="only-on-the-box", WHISPER_MODEL="its-own") == "its-own"


def test_no_run_can_use_an_unknown_engine() -> None:
    wrong, right = EngineSpec(engine="wisper"), EngineSpec(engine="pocketsphinx")
    assert find_engine_problem(wrong).startswith("no speech engine 'wisper' is installed here: did you mean")
    assert find_engine_problem(right) == ""
