"""The model of voices: its double, and sherpa-onnx with a tiny model of our own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import UNSET, structs
from onnx import TensorProto, helper, numpy_helper

from batchscribe import __version__
from batchscribe.adapters.engines import speaker_model
from batchscribe.adapters.engines.speaker_model import (
    FILE,
    SOURCE,
    SherpaSpeakerModel,
    fetch_speaker_model,
    find_speaker_problems,
    open_speaker_model,
)
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.audio.audio_decoder import Samples
from batchscribe.core.decide.published_models import SPEAKER_MODEL
from batchscribe.core.run.host import CheckRequest, InstanceRecord
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError, MisconfiguredError
from batchscribe.protocols import SpeakerModel
from batchscribe.settings import Settings, load
from batchscribe.testing.speaker_model_suite import SpeakerModelSuite
from batchscribe.testing.speakers import SpectralSpeakers
from batchscribe.wiring import engines, host
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.preflight import check_record
from support.hub import Hub
from support.values import INSTANCE, NOW
from support.voices import Voice

BANDS = 80


def build_model(path: Path) -> Path:
    """The mean of the bands over time, less their mean: a model in the form of WeSpeaker's."""
    constants = {"time": np.array([1], np.int64), "band": np.array([1], np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["x", "time"], ["levels"], keepdims=0),
        helper.make_node("ReduceMean", ["levels", "band"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["levels", "mean"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "voices",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", BANDS])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", BANDS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    facts = {"framework": "wespeaker", "sample_rate": "16000", "output_dim": str(BANDS)}
    facts |= {"language": "none", "url": "none", "comment": "none"}
    facts |= {"normalize_samples": "1", "feature_normalize_type": ""}
    helper.set_model_props(model, facts)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def voices() -> tuple[tuple[Samples, Samples], tuple[Samples, Samples]]:
    chance = np.random.default_rng(1)
    one, two = Voice(0, chance), Voice(4, chance)
    return (one.speak(3), one.speak(3)), (two.speak(3), two.speak(3))


@pytest.fixture(params=["double", "sherpa-onnx"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> SpeakerModel:
    if request.param == "double":
        return SpectralSpeakers()
    return SherpaSpeakerModel(build_model(tmp_path / "voices.onnx"), name="tiny", alike=0.9)


class TestEveryModel(SpeakerModelSuite):
    pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    data = build_model(tmp_path / "voices.onnx").read_bytes()
    made = Hub(tmp_path / "hub", {FILE: data})
    made.install(monkeypatch)
    monkeypatch.setattr(speaker_model, "SHA256", hashlib.sha256(data).hexdigest())
    return made


def test_the_model_is_fetched_once_at_its_pinned_revision(hub: Hub) -> None:
    command = f"fetch it with `batchscribe engines --fetch {SPEAKER_MODEL}`"
    with pytest.raises(MisconfiguredError, match=re.escape(command)):
        open_speaker_model()
    spec = EngineSpec(engine="faster-whisper", model=SPEAKER_MODEL)
    assert engines.fetch_model(spec) == fetch_speaker_model().parent
    assert set(hub.calls) == {(SOURCE.repository, SOURCE.revision)}
    assert find_speaker_problems() == ()
    assert open_speaker_model().name == SPEAKER_MODEL


def test_another_file_under_its_name_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_model, "SHA256", "0" * 64)
    with pytest.raises(EngineError, match="is not the published"):
        fetch_speaker_model()


def test_a_missing_package_is_a_problem_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker_model, "PACKAGE", "absent_package")
    (problem,) = find_speaker_problems()
    assert problem.startswith("BATCH_SPEAKERS needs absent_package") or "absent_package" in problem
    assert "[speakers]" in problem


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no model of voices"):
        SherpaSpeakerModel(tmp_path / "absent.onnx").embed(np.zeros(24_000, np.float32))


def test_a_host_is_set_up_with_the_model_if_speakers_are_wanted(hub: Hub, tmp_path: Path) -> None:
    gpu_host, spec = GpuHost(tmp_path, SystemClock()), EngineSpec(engine="pocketsphinx")
    host.fetch(gpu_host, spec)
    assert hub.calls == []
    wanted = structs.replace(spec, speakers=True)
    before = host.inspect(CheckRequest(now=NOW, engine=wanted, gpu=False)).findings[0]
    assert not before.ok
    assert "for BATCH_SPEAKERS is not on this machine" in before.detail
    host.fetch(gpu_host, wanted)
    assert host.inspect(CheckRequest(now=NOW, engine=wanted, gpu=False)).findings[0].ok


def test_a_start_needs_a_host_with_the_model(tmp_path: Path) -> None:
    names = {"GPU_INSTANCE_ID": INSTANCE, "BATCH_ENGINE": "pocketsphinx"}
    plain, wanted = (load(names | more, folder=tmp_path) for more in ({}, {"BATCH_SPEAKERS": "2"}))
    assert engine_spec(plain).speakers is UNSET
    assert engine_spec(wanted).speakers is True
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=NOW, engine="pocketsphinx")

    def find(settings: Settings, record: InstanceRecord) -> set[str]:
        return {each.what for each in check_record(settings, record) if not each.ok}

    assert find(plain, record) == set()
    assert find(wanted, record) == {"speakers"}
    assert find(wanted, structs.replace(record, speakers=True)) == set()
