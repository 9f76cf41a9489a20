"""What is only Parakeet's: words out of tokens, its models, its GPU."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_asr.resolver
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from batchscribe.adapters.engines.parakeet import engine, models
from batchscribe.adapters.engines.parakeet.engine import FACTORY
from batchscribe.adapters.engines.parakeet.words import Token, build_segments
from batchscribe.adapters.machine import nvidia
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.flags import LOW_CONFIDENCE
from batchscribe.core.text.speech import Window
from batchscribe.errors import EngineError, GpuError, MisconfiguredError, OutOfMemoryError
from support.fastconformer import build_model
from support.hub import Hub
from support.parakeet_model import FRAME, build_ctc, build_tdt, speak

SAID = [("▁one", 0.4), ("▁two", 0.88), (",", 1.2), ("▁th", 1.6), ("ree", 1.92), (".", 2.24), ("▁four", 3.52)]


@pytest.fixture(scope="module")
def tdt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tdt(tmp_path_factory.mktemp("models") / "tdt")


def spec_of(model: Path | str, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"engine": "parakeet", "model": str(model), "device": "cpu", **changes})


def words_of(*tokens: tuple[str, float]) -> list[list[tuple[str, float, float]]]:
    found = build_segments([Token(*token) for token in tokens], FRAME)
    return [[(word.word, round(word.start, 2), round(word.end, 2)) for word in part.words] for part in found]


# ------------------------------------------------------------------ words


def test_a_blank_begins_a_word_and_a_mark_joins_the_one_before() -> None:
    tokens = ((" He", 0.0), ("llo", 0.16), (",", 0.24), (" wor", 0.4), ("ld", 0.48), (" !", 0.56))
    assert words_of(*tokens) == [[("Hello,", 0.0, 0.24), ("world!", 0.4, 0.56)]]


def test_a_blank_by_itself_begins_the_next_word() -> None:
    assert words_of((" a", 0.0), (" ", 0.08), ("b", 0.16)) == [[("a", 0.0, 0.08), ("b", 0.16, 0.48)]]


def test_marks_that_open_belong_to_the_word_after_them() -> None:
    (found,) = words_of((" pay", 0.0), (" $", 0.16), ("5", 0.24), (" ¿", 0.4), ("qué", 0.48), ("?", 0.56))
    assert [word for word, _, _ in found] == ["pay", "$5", "¿qué?"]


def test_specials_are_not_said_and_a_mark_before_all_words_is_kept() -> None:
    assert words_of(("<unk>", 0.0), ("…", 0.08), (" a", 0.16)) == [[("…", 0.08, 0.16)], [("a", 0.16, 0.48)]]


def test_a_segment_ends_with_a_sentence_or_a_pause() -> None:
    tokens = ((" a", 0.0), (".", 0.1), (" b", 0.2), (" c", 2.0))
    assert [[word for word, _, _ in part] for part in words_of(*tokens)] == [["a."], ["b"], ["c"]]
    assert words_of() == []


def test_a_word_is_as_probable_as_its_tokens_together() -> None:
    (segment,) = build_segments([Token(" a", 0.0, np.log(0.9)), Token("b", 0.1, np.log(0.4))], FRAME)
    assert segment.words[0].probability == pytest.approx(0.6)
    (segment,) = build_segments([Token(" a", 0.0)], FRAME)
    assert segment.words[0].probability is None


# ------------------------------------------------------------------ the engine, on models of the real format


@pytest.mark.parametrize("build", [build_tdt, build_ctc])
def test_what_is_said_and_when(build: Any, tmp_path: Path) -> None:
    engine = FACTORY.load(spec_of(build(tmp_path)))
    (result,) = engine.transcribe([Window(7, 30.0, speak(SAID, 5.0))])
    assert [segment.text for segment in result.segments] == ["one two, three.", "four"]
    words = [word for segment in result.segments for word in segment.words]
    assert [word.start for word in words] == pytest.approx([0.4, 0.88, 1.6, 3.52], abs=FRAME)
    assert [word.end for word in words] == pytest.approx([0.72, 1.2, 2.24, 3.84], abs=FRAME)
    assert all(word.probability is not None and 0.5 < word.probability <= 1 for word in words)


@pytest.mark.parametrize(
    ("said", "flags"),
    [(SAID, ()), ([("▁two", 0.4 + 0.64 * place) for place in range(9)], (LOW_CONFIDENCE,))],
    ids=["plain", "loop"],
)
@pytest.mark.parametrize("build", [build_tdt, build_ctc])
def test_what_looks_wrong_is_flagged(
    build: Any, said: list[tuple[str, float]], flags: tuple[str, ...], tmp_path: Path
) -> None:
    (result,) = FACTORY.load(spec_of(build(tmp_path))).transcribe([Window(7, 30.0, speak(said, 7.0))])
    assert result.segments
    assert result.flags == flags


def test_what_the_model_itself_holds_for_unlikely_is_flagged(
    tdt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FACTORY.load(spec_of(tdt))
    recognise = engine._recogniser.recognize

    def guess(audio: Any) -> list[Any]:
        return [replace(each, logprobs=[-1.5] * len(each.tokens)) for each in recognise(audio)]

    monkeypatch.setattr(engine._recogniser, "recognize", guess)
    (result,) = engine.transcribe([Window(7, 30.0, speak(SAID, 5.0))])
    assert result.flags == (LOW_CONFIDENCE,)


def test_a_batch_hears_what_each_window_says_alone(tdt: Path) -> None:
    engine = FACTORY.load(spec_of(tdt))
    windows = [Window(n, 0.0, speak(SAID[n:], seconds)) for n, seconds in enumerate((5.0, 4.0, 29.9))]
    alone = [result.segments for window in windows for result in engine.transcribe([window])]
    assert [result.segments for result in engine.transcribe(windows)] == alone


def test_the_language_is_what_is_known_of_it(tdt: Path) -> None:
    window = Window(1, 0.0, speak(SAID, 4.0), language="fr")
    for language, expected in ((None, "fr"), ("de", "de")):
        (result,) = FACTORY.load(spec_of(tdt, language=language)).transcribe([window])
        assert result.language == expected


def test_it_loads_without_the_network(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert FACTORY.problems(spec_of(tdt)) == ()
    assert FACTORY.load(spec_of(tdt)).device == "cpu, float32"
    assert "--fetch nemo-parakeet-tdt-0.6b-v2" in FACTORY.problems(spec_of("small.en"))[0]
    assert not any(FACTORY.models().values())


def test_half_precision_needs_a_gpu(tdt: Path) -> None:
    (problem,) = FACTORY.problems(spec_of(tdt, compute_type="float16"))
    assert "on a GPU only" in problem


def test_eight_bits_are_other_files(tdt: Path, tmp_path: Path) -> None:
    assert "int8.onnx" in FACTORY.problems(spec_of(tdt, compute_type="int8"))[0]
    engine = FACTORY.load(spec_of(build_tdt(tmp_path, quantization="int8"), compute_type="int8"))
    assert engine.device == "cpu, int8"


def test_quantised_operators_run_on_a_cpu(tmp_path: Path) -> None:
    """Those of ONNX Runtime's dynamic quantisation, with a graph of Parakeet's operators."""
    folder = build_model(tmp_path)
    for name in ("encoder-model", "decoder_joint-model"):
        quantize_dynamic(folder / f"{name}.onnx", folder / f"{name}.int8.onnx", weight_type=QuantType.QUInt8)
    window = Window(1, 0.0, speak(SAID, 5.0))
    plain, small = (FACTORY.load(spec_of(folder, compute_type=kind)) for kind in ("float32", "int8"))
    assert small.device == "cpu, int8"
    expected, found = (
        engine._recogniser.asr._encode(*features_of(engine, window)) for engine in (plain, small)
    )
    assert np.corrcoef(found[0].ravel(), expected[0].ravel())[0, 1] > 0.99
    assert small.transcribe([window])[0].segments


def features_of(engine: Any, window: Window) -> Any:
    length = np.array([len(window.audio)], np.int64)
    return engine._recogniser.asr._preprocessor(window.audio[None], length)


def test_what_breaks_is_told_without_what_was_said(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FACTORY.load(spec_of(tdt))

    def broken(*_args: object) -> None:
        raise ValueError("a secret sentence")

    monkeypatch.setattr(engine, "_recogniser", broken)
    with pytest.raises(EngineError, match=r"transcribing: AttributeError$"):
        list(engine.transcribe([Window(1, 0.0, speak(SAID, 4.0))]))


def test_onnx_runtimes_own_words_are_repeated(tdt: Path, tmp_path: Path) -> None:
    for file in tdt.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100])
    (tmp_path / "config.json").write_bytes((tdt / "config.json").read_bytes())
    with pytest.raises(EngineError, match=r"loading .*INVALID_PROTOBUF|loading .*Protobuf") as error:
        FACTORY.load(spec_of(tmp_path))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ before anything is paid for


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "small.en", "language": "de"}, "English only.*nemo-parakeet-tdt-0.6b-v3"),
        ({"model": "nemo-parakeet-tdt-0.6b-v3", "language": "ja"}, "25 European.*faster-whisper"),
        ({"model": "nemo-parakeet-tdt-0.6b-v2", "task": "translate"}, "transcribes only"),
        ({"model": "nemo-parakeet-tdt-9b"}, "no Parakeet model.*tdt-0.6b-v2"),
        ({"model": "", "compute_type": "bfloat16"}, "auto, float32, float16, int8"),
    ],
)
def test_what_no_machine_can_do_needs_no_package_to_be_known(
    changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PACKAGES", ("no_such_package",))
    found = FACTORY.unable(EngineSpec(engine="parakeet", **changes))
    assert len(found) == 1
    with pytest.raises(MisconfiguredError, match=problem):
        FACTORY.load(EngineSpec(engine="parakeet", **changes))


@pytest.mark.parametrize("language", ["de", "uk", None])
def test_what_can_be_done_is_no_problem(language: str | None) -> None:
    assert FACTORY.unable(spec_of("nemo-parakeet-tdt-0.6b-v3", language=language)) == ()


@pytest.mark.parametrize("wanted", ["", "small.en", "large-v3", "turbo", "distil-large-v3.5", "tiny"])
def test_a_name_of_whispers_means_the_default(wanted: str) -> None:
    assert FACTORY.model_name(wanted) == "nemo-parakeet-tdt-0.6b-v2"
    assert FACTORY.model_name("nemo-parakeet-tdt-0.6b-v3") == "nemo-parakeet-tdt-0.6b-v3"


def test_what_is_not_installed_names_the_environment_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PACKAGES", ("no_such_package",))
    (problem,) = FACTORY.problems(spec_of(""))
    assert "no_such_package not installed" in problem
    assert "separate environment" in problem
    assert "hides the CUDA" in problem


def test_a_folder_that_is_no_model_is_told(tdt: Path, tmp_path: Path) -> None:
    assert "no folder" in FACTORY.problems(spec_of("/nowhere/at-all"))[0]
    assert "no readable config.json" in FACTORY.problems(spec_of(tmp_path))[0]
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert "'whisper'" in FACTORY.problems(spec_of(tmp_path))[0]
    (tmp_path / "config.json").write_bytes((tdt / "config.json").read_bytes())
    assert "incomplete" in FACTORY.problems(spec_of(tmp_path))[0]


def test_weights_that_were_not_fetched_to_their_end_are_missed(tdt: Path, tmp_path: Path) -> None:
    for file in tdt.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    encoder = tmp_path / "encoder-model.onnx"
    encoder.write_bytes(encoder.read_bytes() + b"encoder-model.onnx.data")
    assert "incomplete (encoder-model.onnx.data missing)" in FACTORY.problems(spec_of(tmp_path))[0]


# ------------------------------------------------------------------ fetching


@pytest.fixture
def hub(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = build_tdt(tmp_path_factory.mktemp("published"))
    build_tdt(folder, quantization="int8")
    made = Hub(tmp_path / "hub", {file.name: file.read_bytes() for file in folder.iterdir()})
    made.install(monkeypatch)
    return made


def test_a_published_model_is_one_commit_for_the_fetch_and_for_the_run(hub: Hub) -> None:
    folder = FACTORY.fetch(spec_of("small.en"))
    assert FACTORY.load(spec_of("")).model == models.DEFAULT_MODEL
    assert hub.calls == [models.SOURCES[models.DEFAULT_MODEL]]
    assert not list(folder.glob("*int8*"))


def test_where_no_commit_is_known_the_first_fetchs_is_kept(hub: Hub) -> None:
    first = FACTORY.fetch(spec_of("nemo-parakeet-rnnt-0.6b"))
    hub.head = "b" * 40
    assert FACTORY.fetch(spec_of("nemo-parakeet-rnnt-0.6b")) == first


def test_pinned_commits_are_whole() -> None:
    pinned = {model: commit for model, (_, commit) in models.SOURCES.items() if commit}
    assert {models.DEFAULT_MODEL, models.MULTILINGUAL_MODEL} == set(pinned)
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in pinned.values())


@pytest.mark.parametrize("compute_type", ["auto", "int8"])
def test_files_that_changed_after_the_fetch_are_refused(hub: Hub, compute_type: str) -> None:
    """The files of each number format are recorded when they are fetched."""
    FACTORY.fetch(spec_of(""))
    wanted = spec_of("", compute_type=compute_type)
    folder = FACTORY.fetch(wanted)
    mark = "" if compute_type == "auto" else ".int8"
    encoder = folder / f"encoder-model{mark}.onnx"
    content = encoder.read_bytes()
    encoder.write_bytes(content[:-1])
    assert "changed after it was fetched" in FACTORY.problems(wanted)[0]
    encoder.write_bytes(content[:-1] + b"?")
    with pytest.raises(MisconfiguredError, match="changed after it was fetched"):
        FACTORY.fetch(wanted)


def test_its_files_are_those_that_it_loads(tdt: Path) -> None:
    found = FACTORY.model_files(EngineSpec(engine="parakeet", model=str(tdt)))
    graphs = ["encoder-model.onnx", "decoder_joint-model.onnx"]
    assert [file.name for file in found] == ["config.json", "vocab.txt", *graphs]


def test_fetching_a_folder_is_nothing_and_an_unknown_name_an_error(tdt: Path) -> None:
    assert FACTORY.fetch(spec_of(tdt)) == tdt
    with pytest.raises(MisconfiguredError, match="one of"):
        FACTORY.fetch(spec_of("parakeet-9b"))


def test_a_fetch_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_args: object, **_more: object) -> None:
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(EngineError, match=r"could not be fetched \(no way\): check the network"):
        FACTORY.fetch(spec_of(""))


def test_every_published_model_is_one_of_the_librarys() -> None:
    assert set(models.PUBLISHED) == set(models.SOURCES)
    known = onnx_asr.resolver.model_repos
    assert all(known[model] == repository for model, (repository, _) in models.SOURCES.items())


# ------------------------------------------------------------------ the GPU


def test_a_gpu_that_is_asked_for_is_never_replaced(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "is_present", lambda: False)
    assert FACTORY.load(spec_of(tdt, device="auto")).device.startswith("cpu")
    with pytest.raises(GpuError, match=r"no CUDA support.*separate environment"):
        FACTORY.load(spec_of(tdt, device="cuda"))
    assert FACTORY.gpu_missing(spec_of(tdt, device="cuda"))
    assert not FACTORY.gpu_missing(spec_of(tdt, device="auto"))
    monkeypatch.setattr(nvidia, "is_present", lambda: True)
    assert "no CUDA support" in FACTORY.problems(spec_of(tdt, device="auto"))[0]
    assert FACTORY.problems(spec_of(tdt)) == ()


def test_two_runtimes_in_one_environment_are_named(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_find_distributions", lambda: {"onnxruntime", "onnxruntime-gpu"})
    assert "onnxruntime hides" in FACTORY.problems(spec_of(tdt, device="cuda"))[0]


def test_a_driver_that_shows_no_gpu_is_told_apart(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [engine.CUDA])
    monkeypatch.setattr(nvidia, "count_usable", lambda: 0)
    assert "nvidia-smi" in FACTORY.problems(spec_of(tdt, device="cuda"))[0]


def test_a_session_that_fell_to_the_cpu_is_an_error(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime warns and goes on where CUDA's libraries are missing: this one has none at all."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [engine.CUDA, engine.CPU])
    monkeypatch.setattr(nvidia, "count_usable", lambda: 1)
    assert FACTORY.problems(spec_of(tdt, device="cuda")) == ()
    with (
        pytest.raises(GpuError, match="loaded it on the CPU"),
        pytest.warns(UserWarning, match="not in available"),
    ):
        FACTORY.load(spec_of(tdt, device="cuda"))


def test_a_gpu_is_counted_by_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "DRIVER", "libno-such-driver.so")
    assert nvidia.count_usable() == 0
    monkeypatch.setattr(nvidia, "PCI_DEVICES", tmp_path)
    assert not nvidia.is_present()
    card = tmp_path / "0000:00:1e.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    assert nvidia.is_present()


def test_a_batch_that_is_too_large_is_an_error_of_its_own(tdt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FACTORY.load(spec_of(tdt))

    def large(_waves: Any) -> Any:
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")

    monkeypatch.setattr(engine, "_recogniser", SimpleNamespace(recognize=large, asr=engine._recogniser.asr))
    with pytest.raises(OutOfMemoryError, match=r"transcribing: RuntimeError: too little memory"):
        engine.transcribe([Window(1, 0.0, speak(SAID, 4.0))])
