"""The float16 encoder: made once beside the model, decodes to the same tokens, and never moves to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from structlog.testing import capture_logs

from batchscribe.adapters.engines.hub_models import beside
from batchscribe.adapters.engines.parakeet import engine, half_precision, models
from batchscribe.adapters.engines.parakeet.engine import FACTORY
from batchscribe.adapters.engines.parakeet.half_precision import HALF, find_half, make_half
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import Window
from batchscribe.engine import Engine
from batchscribe.errors import EngineError
from support.fastconformer import build_model
from support.hub import Hub
from support.parakeet_model import build_ctc, build_tdt, speak

SAID = [("▁one", 0.4), ("▁two", 0.88), ("▁th", 1.6), ("ree", 1.92), (".", 2.24), ("▁four", 3.52)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_model(tmp_path / "model")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in the place of a GPU: it computes float16 graphs, too, but slowly."""
    monkeypatch.setattr(engine, "_choose_device", lambda spec: "cpu" if spec.device == "cpu" else "cuda")
    monkeypatch.setattr(engine, "_check_cuda", lambda _recogniser: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setitem(engine.PROVIDERS, "cuda", [engine.CPU])


def spec_of(model: Path | str, **changes: Any) -> EngineSpec:
    spec = {"engine": "parakeet", "model": str(model), "device": "cuda", "compute_type": HALF}
    return EngineSpec(**(spec | changes))


def encode(folder: Path, seconds: float = 4.0) -> tuple[Any, Any]:
    session = onnxruntime.InferenceSession(folder / "encoder-model.onnx", providers=["CPUExecutionProvider"])
    features = np.random.default_rng(1).standard_normal((2, 80, int(seconds * 100))).astype(np.float32)
    lengths = np.array([features.shape[2], 150], np.int64)
    found, encoded = session.run(None, {"audio_signal": features, "length": lengths})
    return found, encoded


def hear(loaded: Engine, *windows: Window) -> list[Any]:
    return [result.segments for result in loaded.transcribe(windows)]


def test_the_encoders_weights_are_halves_and_its_values_nearly_the_same(model: Path) -> None:
    half = make_half(model)
    (plain, lengths), (found, encoded) = encode(model), encode(half)
    assert found.dtype == np.float32
    assert np.abs(found - plain).max() < 0.01 * plain.std()
    assert (encoded == lengths).all()
    size = sum(file.stat().st_size for file in half.glob("encoder-model.onnx.data"))
    assert size == pytest.approx((model / "encoder-model.onnx.data").stat().st_size / 2, rel=0.1)
    weights = onnx.load(half / "encoder-model.onnx", load_external_data=False).graph.initializer
    assert not [tensor.name for tensor in weights if tensor.data_type == onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("build", [build_tdt, build_ctc])
@pytest.mark.usefixtures("gpu")
def test_a_model_decodes_to_the_same_words(build: Any, tmp_path: Path) -> None:
    folder = build(tmp_path / "model")
    FACTORY.fetch(spec_of(folder))
    loaded = FACTORY.load(spec_of(folder))
    assert loaded.device == "cuda, float16"
    window = Window(7, 30.0, speak(SAID, 5.0))
    plain = FACTORY.load(spec_of(folder, device="cpu", compute_type="auto"))
    (found,), (expected,) = hear(loaded, window), hear(plain, window)
    words = [[(word.word, word.start, word.end) for word in part.words] for part in found]
    assert words == [[(word.word, word.start, word.end) for word in part.words] for part in expected]
    assert words


def test_a_graph_is_made_once_for_the_same_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_half(model)
    assert find_half(model) == made == beside(model, HALF)
    monkeypatch.setattr(half_precision, "_convert_graph", lambda *_files: pytest.fail("converted again"))
    assert make_half(model) == made


def test_another_revision_needs_another_graph(model: Path) -> None:
    before = encode(make_half(model))[0]
    data = model / "encoder-model.onnx.data"
    weights = np.fromfile(data, np.float32)
    (weights * np.float32(0.5)).tofile(data)
    after = encode(make_half(model))[0]
    assert np.abs(after - before).max() > 0.1
    data.write_bytes(data.read_bytes() + bytes(4))
    assert find_half(model) is None


def test_links_of_the_hubs_cache_are_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnx refuses them, and the hub's client makes a link of each file."""
    hub = Hub(tmp_path / "hub", {file.name: file.read_bytes() for file in model.iterdir()})
    hub.install(monkeypatch)
    folder = FACTORY.fetch(spec_of(models.DEFAULT_MODEL))
    assert (folder / "encoder-model.onnx.data").is_symlink()
    made = find_half(folder)
    assert made is not None
    assert made.parent == folder.parents[1]
    assert np.abs(encode(made)[0] - encode(folder)[0]).max() < 0.01


@pytest.mark.usefixtures("gpu")
def test_a_failed_conversion_leaves_float32_on_the_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_files: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(half_precision, "_convert_graph", fail)
    with capture_logs() as logs:
        assert FACTORY.fetch(spec_of(model)) == model
        loaded = FACTORY.load(spec_of(model))
    assert loaded.device == "cuda, float32"
    assert [entry["event"] for entry in logs] == ["model.not_converted"] * 2
    assert "No space left" in logs[0]["reason"]
    assert find_half(model) is None


def test_a_conversion_that_was_interrupted_is_made_again(model: Path) -> None:
    part = beside(model, f"{HALF}.part")
    part.mkdir()
    (part / "encoder-model.onnx").write_bytes(b"torn")
    assert encode(make_half(model))[0].shape[0] == 2
    assert not part.exists()


@pytest.mark.usefixtures("gpu")
def test_values_beyond_half_precision_are_an_error_and_not_words(model: Path) -> None:
    loud = onnx.load(model / "encoder-model.onnx")
    for tensor in loud.graph.initializer:
        if tensor.name in {"l0.ff1.in.w", "l0.ff1.back.w"}:
            tensor.raw_data = (onnx.numpy_helper.to_array(tensor) * np.float32(1000)).tobytes()
    onnx.save(loud, model / "encoder-model.onnx")
    window = Window(1, 0.0, speak(SAID, 4.0))
    assert hear(FACTORY.load(spec_of(model, compute_type="auto")), window)
    FACTORY.fetch(spec_of(model))
    with pytest.raises(
        EngineError, match="self-test: parakeet failed while transcribing: FloatingPointError"
    ):
        FACTORY.load(spec_of(model))
