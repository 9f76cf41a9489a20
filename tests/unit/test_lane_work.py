"""The CPU lane on this machine: self-test, requests, unit."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace as with_fields

from batchscribe import __version__
from batchscribe.adapters.local import lane as adapter
from batchscribe.adapters.local.lane import TEST, LaneFiles, LaneLauncher, LaneRequest, LaneTest
from batchscribe.adapters.local.launcher import worker_name
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.manifest import EngineSpec, WorkerName
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.engine import ScriptedEngine, ScriptedFactory
from batchscribe.testing.launcher_suite import INSTANCE, make_manifest
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import lane as wiring
from batchscribe.wiring.engine_choice import EngineChoice
from batchscribe.wiring.lane import Lane, describe_test, open_lane, process_requests, run_self_test
from support.stand_in import StandIns

URL = "file:///bucket/_batchscribe/runs/run-1/workers/0/manifest.json"


def settings_of(folder: Path, **environ: str) -> Settings:
    plain = {"BATCH_SOURCE": str(folder), "GPU_INSTANCE_ID": "i-0123456789abcdef0", "BATCH_CPU_LANE": "auto"}
    return load(plain | {"BATCH_ENGINE": "faster-whisper", "WHISPER_MODEL": "small"} | environ, folder=folder)


def lane_of(folder: Path, **environ: str) -> Lane:
    settings = settings_of(folder, **environ)
    return Lane(settings, EngineChoice(settings, MemoryStore(FakeClock())), FakeClock())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedFactory:
    factory = ScriptedFactory()
    monkeypatch.setattr(wiring, "engine_factory", lambda _name: factory)
    monkeypatch.setattr("batchscribe.adapters.engines.voice_detectors.find_voice_detector", lambda: None)
    return factory


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Processes that were started instead of a unit."""
    found: list[object] = []
    monkeypatch.setattr(adapter, "spawn", lambda argv, **_options: found.append(argv))
    return found


def test_the_engine_of_the_gpu_is_tested_on_the_processor(tmp_path: Path, engine: ScriptedFactory) -> None:
    lane = lane_of(tmp_path)
    assert "its self-test has not run yet" in lane.find_problem()
    test = run_self_test(lane)
    assert (test.spec, test.release, test.error) == (
        EngineSpec(engine="faster-whisper", model="small", device="cpu"),
        __version__,
        "",
    )
    assert engine.engine.transcribed == [0]
    assert describe_test(test).startswith("self-test passed: ")
    assert lane.find_problem() == ""
    assert "faster-whisper small transcribes" in lane.describe()


@pytest.mark.parametrize(
    ("broken", "script", "error"),
    [
        (("its packages are missing: install them",), "words", "its packages are missing: install them"),
        ((), "", "found no words in the bundled speech"),
    ],
)
def test_a_failed_self_test_keeps_the_lane_off(
    tmp_path: Path, engine: ScriptedFactory, broken: tuple[str, ...], script: str, error: str
) -> None:
    lane = lane_of(tmp_path)
    engine.broken, engine.engine = broken, ScriptedEngine(script=lambda _window: script)
    assert error in run_self_test(lane).error
    assert error in lane.find_problem()


def test_a_self_test_that_kills_its_process_is_not_repeated_by_each_tick(
    tmp_path: Path, engine: ScriptedFactory, started: list[object]
) -> None:
    lane = lane_of(tmp_path)
    lane.prepare()
    assert len(started) == 1

    def die(_spec: EngineSpec) -> None:
        raise KeyboardInterrupt

    engine.load = die  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_self_test(lane)
    lane.prepare()
    assert len(started) == 1
    assert "did not finish" in lane.find_problem()
    replace(lane, clock=FakeClock(lane.clock.now() + timedelta(days=1, hours=1))).prepare()
    assert len(started) == 2


def test_another_model_or_release_is_tested_again(
    tmp_path: Path, engine: ScriptedFactory, started: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lane_of(tmp_path)
    run_self_test(lane)
    lane.prepare()
    assert started == []
    lane_of(tmp_path, WHISPER_MODEL="large-v3").prepare()
    assert len(started) == 1
    monkeypatch.setattr(wiring, "__version__", "9.9")
    lane.prepare()
    assert len(started) == 2
    assert engine.engine.transcribed == [0]


def test_without_the_setting_nothing_is_tested(tmp_path: Path, started: list[object]) -> None:
    lane_of(tmp_path, BATCH_CPU_LANE="off").prepare()
    assert started == []
    with pytest.raises(MisconfiguredError, match="there is no CPU lane"):
        open_lane(settings_of(tmp_path, GPU_PROVIDER="local"))


def test_sessions_with_engines_of_their_own_have_no_lane(tmp_path: Path, started: list[object]) -> None:
    lane = lane_of(tmp_path)
    lane.choice.choose = cache(lambda language: EngineSpec(engine=language or "usual"))
    lane.prepare()
    assert started == []
    assert "sessions of different languages" in lane.find_problem()


def test_an_unreadable_result_counts_as_none(tmp_path: Path) -> None:
    lane = lane_of(tmp_path)
    (lane.settings.state_dir / "lane").mkdir(parents=True)
    (lane.settings.state_dir / "lane" / "test.json").write_text("{")
    assert "has not run yet" in lane.find_problem()


def launcher_of(folder: Path, *, has_unit: bool) -> LaneLauncher:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    stand_ins = StandIns(folder / "started").command
    return LaneLauncher(
        folder, folder / "logs", environment=environment, has_unit=has_unit, command=stand_ins
    )


def test_a_worker_waits_for_its_unit(tmp_path: Path) -> None:
    launcher, manifest = launcher_of(tmp_path, has_unit=True), make_manifest()
    stand_ins = StandIns(tmp_path / "started")
    worker = WorkerName(run=manifest.run, worker=manifest.worker)
    launcher.launch(INSTANCE, manifest, URL)
    assert launcher.alive(INSTANCE, worker) is None
    assert [path.name for path in launcher.files.requests.iterdir()] == [worker_name(worker)]
    ((name, request),) = launcher.files.take_requests()
    launcher.files.add_request(name, request)
    unit = threading.Thread(target=launcher.run_requested, args=(name, request, SystemClock()))
    unit.start()
    try:
        assert stand_ins.urls() == [URL]
        launcher.launch(INSTANCE, manifest, URL)
        assert not launcher.files.has_request(name)
        assert launcher.alive(INSTANCE, worker)
        launcher.cancel(INSTANCE, worker)
        unit.join(30)
        assert not unit.is_alive()
        assert launcher.alive(INSTANCE, worker) is False
    finally:
        stand_ins.kill()


def test_a_request_that_is_not_taken_yet_is_withdrawn(tmp_path: Path) -> None:
    launcher, manifest = launcher_of(tmp_path, has_unit=True), make_manifest()
    worker = WorkerName(run=manifest.run, worker=manifest.worker)
    launcher.launch(INSTANCE, manifest, URL)
    launcher.cancel(INSTANCE, worker)
    assert launcher.alive(INSTANCE, worker) is False
    assert list(launcher.files.requests.iterdir()) == []


def test_without_the_unit_a_worker_is_a_process_of_its_own(tmp_path: Path) -> None:
    launcher, stand_ins = launcher_of(tmp_path, has_unit=False), StandIns(tmp_path / "started")
    try:
        launcher.launch(INSTANCE, make_manifest(), URL)
        assert stand_ins.notes()[0]["leads_session"]
    finally:
        stand_ins.kill()


def test_the_unit_runs_a_requested_self_test_and_drops_what_it_cannot_read(
    tmp_path: Path, engine: ScriptedFactory
) -> None:
    lane = lane_of(tmp_path)
    files = LaneFiles(lane.settings.state_dir)
    files.add_request(TEST, LaneRequest())
    (files.requests / "garbage").write_bytes(b"\xff")
    (line,) = process_requests(lane)
    assert line.startswith("self-test passed")
    assert list(files.requests.iterdir()) == []
    assert engine.engine.transcribed == [0]


def test_priors_come_from_the_self_test() -> None:
    test = LaneTest(
        spec=EngineSpec(engine="e"), release="", at=FakeClock().now(), setup_seconds=7.0, speed=2.5
    )
    assert (test.priors.speed, test.priors.setup_seconds, test.priors.setup_p95_seconds) == (2.5, 7.0, 14.0)
    assert with_fields(test, speed=0.0).priors.speed > 0
