"""What every engine does, the double included; and what is only Whisper's or only PocketSphinx's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper
import jiwer
import pytest

from batchscribe.adapters.engines import pocketsphinx_engine
from batchscribe.adapters.engines.parakeet.engine import FACTORY as PARAKEET
from batchscribe.adapters.engines.parakeet.engine import Parakeet
from batchscribe.adapters.engines.pocketsphinx_engine import FACTORY as SPHINX
from batchscribe.adapters.engines.pocketsphinx_engine import PocketSphinx
from batchscribe.adapters.engines.whisper import device
from batchscribe.adapters.engines.whisper.engine import FACTORY as WHISPER
from batchscribe.adapters.engines.whisper.models import fetch_model
from batchscribe.adapters.engines.whisper.silero_vad import find_speech
from batchscribe.adapters.machine import nvidia
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.windows import Cutter
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.flags import LOW_CONFIDENCE
from batchscribe.core.text.speech import SAMPLE_RATE, Window
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import EngineError, MisconfiguredError
from batchscribe.testing.engine import ScriptedEngine, ScriptedFactory
from batchscribe.testing.engine_suite import EngineSuite, join_texts, silence, transcribe
from batchscribe.wiring import engines
from support.audio import bundled, corpus
from support.parakeet_model import build_ctc, build_tdt
from support.whisper_model import build

LOUDEST = 0.1


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def sphinx() -> Iterator[PocketSphinx]:
    engine = SPHINX.load(EngineSpec(engine="pocketsphinx"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def parakeet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tdt(tmp_path_factory.mktemp("parakeet"))


@pytest.fixture(scope="module")
def parakeet_ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_ctc(tmp_path_factory.mktemp("parakeet-ctc"))


@pytest.fixture(
    scope="module",
    params=[
        "double",
        "double-batching",
        pytest.param("pocketsphinx", marks=pytest.mark.deep),
        "faster-whisper",
        "faster-whisper-batching",
        "parakeet",
        "parakeet-ctc",
        "parakeet-batching",
    ],
)
def engine(request: pytest.FixtureRequest) -> Engine:
    def whisper(batch: int = 1) -> Engine:
        folder = str(request.getfixturevalue("whisper_folder"))
        engine = WHISPER.load(EngineSpec(engine="faster-whisper", model=folder, device="cpu"))
        engine.batch_size = batch
        return engine

    makers: dict[str, Callable[[], Engine]] = {
        "double": ScriptedEngine,
        "double-batching": lambda: ScriptedEngine(batch_size=3),
        "pocketsphinx": lambda: request.getfixturevalue("sphinx"),
        "faster-whisper": whisper,
        "faster-whisper-batching": lambda: whisper(batch=2),
    }
    if request.param.startswith("parakeet"):
        ctc = request.param == "parakeet-ctc"
        folder = request.getfixturevalue("parakeet_ctc_folder" if ctc else "parakeet_folder")
        return parakeet(folder, batch=3 if request.param == "parakeet-batching" else 1)
    return makers[request.param]()


def parakeet(folder: Path, *, batch: int = 1) -> Parakeet:
    engine = PARAKEET.load(EngineSpec(engine="parakeet", model=str(folder), device="cpu"))
    engine.batch_size = batch
    return engine


def speech(*keys: str, seconds: int = 60) -> list[Window]:
    with AudioDecoder() as decoder:
        found = [
            decoder.decode_all(bundled(key), max_seconds=60).samples[: seconds * SAMPLE_RATE] for key in keys
        ]
    return [Window(10 + number, 3.0 * number, audio) for number, audio in enumerate(found)]


class TestEveryEngine(EngineSuite):
    """The suite that ships, on the double and on each of ours."""


@pytest.mark.parametrize(
    "factory", [ScriptedFactory(), SPHINX, WHISPER, PARAKEET], ids=lambda factory: factory.name
)
def test_a_factory_is_one(factory: EngineFactory) -> None:
    assert isinstance(factory, EngineFactory)


# ------------------------------------------------------------------ finding engines


def test_engines_are_found_by_their_entry_points() -> None:
    assert {"faster-whisper", "parakeet", "pocketsphinx"} <= set(engines.engine_names())
    assert engines.engine_factory("pocketsphinx") is SPHINX


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    with pytest.raises(MisconfiguredError, match="auto, faster-whisper, parakeet, pocketsphinx"):
        engines.engine_factory("parrot")


def test_reports_name_what_cannot_run(whisper_folder: Path) -> None:
    def make_spec(name: str) -> EngineSpec:
        whisper = EngineSpec(engine="faster-whisper", model=str(whisper_folder), language="de")
        return whisper if name == whisper.engine else EngineSpec(engine=name)

    reports = {report.name: report for report in engines.engine_reports(make_spec)}
    assert reports["pocketsphinx"].usable
    assert reports["faster-whisper"].usable  # whether a folder's model knows German shows when it is loaded


# ------------------------------------------------------------------ PocketSphinx


@pytest.mark.parametrize("session", ["notes/the", pytest.param("", marks=pytest.mark.deep)])
def test_pocketsphinx_hears_the_bundled_speech(sphinx: PocketSphinx, session: str) -> None:
    texts = {key: text for key, text in corpus().items() if key.startswith(session)}
    expected, heard = [], []
    with AudioDecoder() as decoder:
        for key, text in texts.items():
            cutter = Cutter(find_speech)
            pieces = decoder.decode(bundled(key), max_seconds=60)
            cuts = [*(cut for piece in pieces for cut in cutter.push(piece)), *cutter.finish()]
            windows = [Window(number, cut.seconds_in, cut.audio) for number, cut in enumerate(cuts)]
            expected.append(text)
            results = transcribe(sphinx, windows)
            assert all(result.flags == () for result in results)
            heard.append(join_texts(sorted(results, key=lambda result: result.window)))
    assert jiwer.wer(expected, heard) < 0.15


@pytest.mark.parametrize(
    ("heard", "flags"),
    [
        ([("well", 0, 40), ("yes", 50, 90)], ()),
        ([("no", 10 * place, 10 * place + 9) for place in range(10)], (LOW_CONFIDENCE,)),
        ([("well", 0, 40), ("yes", 50, 400)], (LOW_CONFIDENCE,)),
    ],
    ids=["plain", "loop", "beyond the audio"],
)
def test_what_looks_wrong_is_flagged(
    heard: list[pocketsphinx_engine.DecodedWord], flags: tuple[str, ...]
) -> None:
    found = pocketsphinx_engine._to_recognition(silence(7, 1.0), heard)
    assert found.flags == flags
    assert found.segments[-1].end <= 1.0


def test_pocketsphinx_leaves_no_marks(sphinx: PocketSphinx) -> None:
    (result,) = sphinx.transcribe(speech("morning-walk/chunk-001.webm", seconds=2))
    assert not set("()<>[]+") & set(join_texts([result]))
    assert all(word.probability is None for part in result.segments for word in part.words)


def test_a_killed_process_is_an_error_and_not_the_end() -> None:
    engine = SPHINX.load(EngineSpec(engine="pocketsphinx"))
    windows = speech("notes/the idea.flac", seconds=1)
    for process in list(engine._pool._processes.values()):
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="failed while transcribing"):
        list(engine.transcribe(windows))
    assert join_texts(list(engine.transcribe(windows)))
    engine.close()


def test_a_closed_pocketsphinx_leaves_no_process() -> None:
    engine = SPHINX.load(EngineSpec(engine="pocketsphinx"))
    processes = list(engine._pool._processes.values())
    assert all(process.is_alive() for process in processes)
    engine.close()
    engine.close()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(EngineError, match="RuntimeError"):
        list(engine.transcribe(speech("notes/the idea.flac", seconds=1)))


def test_pocketsphinx_hands_back_what_is_done_though_an_earlier_window_is_not(
    sphinx: PocketSphinx, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: Future[Any] = Future()
    ready: Future[Any] = Future()
    ready.set_result([("one", 0, 50)])
    futures = iter([held, ready])
    monkeypatch.setattr(sphinx._pool, "submit", lambda *_work: next(futures))
    results = sphinx.transcribe([silence(1, 1.0), silence(2, 1.0)])
    assert next(results).window == 2
    held.set_result([])
    assert [result.window for result in results] == [1]


@pytest.mark.parametrize(("broken", "kind"), [("no bytes", "TypeError"), (None, "IndexError")])
def test_whatever_pocketsphinx_raises_is_an_engine_error_and_not_the_end(
    sphinx: PocketSphinx, monkeypatch: pytest.MonkeyPatch, broken: object, kind: str
) -> None:
    windows = speech("notes/the idea.flac", seconds=1)
    before = join_texts(list(sphinx.transcribe(windows)))
    monkeypatch.setattr(pocketsphinx_engine, "_to_pcm", lambda _window: broken)
    with pytest.raises(EngineError, match=f"transcribing: {kind}$"):
        list(sphinx.transcribe(windows))
    monkeypatch.undo()
    assert join_texts(list(sphinx.transcribe(windows))) == before


def test_pocketsphinx_says_what_it_cannot() -> None:
    spec = EngineSpec(engine="pocketsphinx", language="de", device="cuda")
    assert len(SPHINX.problems(spec)) == 2
    with pytest.raises(MisconfiguredError, match="English only"):
        SPHINX.load(spec)


# ------------------------------------------------------------------ Whisper


def spec_of(folder: Path | str, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"engine": "faster-whisper", "model": str(folder), "device": "cpu", **changes})


def test_whisper_loads_without_the_network(whisper_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert WHISPER.problems(spec_of(whisper_folder)) == ()
    assert WHISPER.load(spec_of(whisper_folder)).device == "cpu, int8"
    assert "gpu setup" in WHISPER.problems(spec_of("base.en"))[0] or prefetch_is_cached("base.en")


def prefetch_is_cached(name: str) -> bool:
    return WHISPER.problems(spec_of(name)) == ()


def test_whisper_gives_words_with_probabilities(whisper_folder: Path) -> None:
    engine = WHISPER.load(spec_of(whisper_folder))
    (result,) = engine.transcribe(speech("notes/the idea.flac"))
    words = [word for segment in result.segments for word in segment.words]
    assert words
    assert all(word.probability is not None for word in words)
    assert result.language == "en"


def test_a_model_that_cannot_run_does_not_load(whisper_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_whisper: object, features: object) -> None:
        raise RuntimeError("CUDA failed with error no kernel image is available")

    monkeypatch.setattr(faster_whisper.WhisperModel, "encode", broken)
    with pytest.raises(EngineError, match="no kernel image"):
        WHISPER.load(spec_of(whisper_folder))


class OddError(Exception):
    """What no vendor has documented."""


def test_whatever_is_raised_while_loading_is_an_engine_error(
    whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise OddError("odd")

    monkeypatch.setattr(faster_whisper, "WhisperModel", broken)
    with pytest.raises(EngineError, match="cannot load"):
        WHISPER.load(spec_of(whisper_folder))
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", broken)
    assert "install it again" in WHISPER.problems(spec_of(whisper_folder, device="auto"))[0]


def test_a_model_that_is_not_here_names_the_mend(tmp_path: Path) -> None:
    assert "no folder" in WHISPER.problems(spec_of("/nowhere/at-all"))[0]
    assert "small.en" in WHISPER.problems(spec_of("smal.en"))[0]
    assert "model.bin" in WHISPER.problems(spec_of(tmp_path))[0]
    with pytest.raises(MisconfiguredError, match="no Whisper model"):
        WHISPER.load(spec_of("smal.en"))


def test_a_model_without_its_tokenizer_is_not_sent_to_the_hub(whisper_folder: Path, tmp_path: Path) -> None:
    for file in whisper_folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MisconfiguredError, match=r"tokenizer\.json"):
        WHISPER.load(spec_of(tmp_path))


def test_a_broken_model_is_one_line(whisper_folder: Path, tmp_path: Path) -> None:
    for file in whisper_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100])
    with pytest.raises(EngineError) as error:
        WHISPER.load(spec_of(tmp_path))
    assert "\n" not in str(error.value)


def test_english_only_means_it(whisper_folder: Path) -> None:
    with pytest.raises(MisconfiguredError, match="English only"):
        WHISPER.load(spec_of(whisper_folder, language="de"))
    assert any("English only" in problem for problem in WHISPER.problems(spec_of("tiny.en", language="fr")))
    assert WHISPER.load(spec_of(whisper_folder, language="en")).device


def test_a_gpu_that_is_asked_for_is_never_replaced(
    whisper_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 0)
    monkeypatch.setattr(nvidia, "PCI_DEVICES", tmp_path)
    assert "no usable GPU" in WHISPER.problems(spec_of(whisper_folder, device="cuda"))[0]
    assert WHISPER.load(spec_of(whisper_folder, device="auto")).device.startswith("cpu")
    card = tmp_path / "0000:00:1e.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    assert "no usable GPU" in WHISPER.problems(spec_of(whisper_folder, device="auto"))[0]
    assert WHISPER.problems(spec_of(whisper_folder, device="cpu")) == ()


@pytest.mark.parametrize(
    ("able", "chosen"),
    [
        ({"float32", "float16", "int8_float16", "int8"}, "float16"),
        ({"float32", "int8", "int8_float16"}, "int8_float16"),
        ({"float32", "int8", "int8_float32"}, "int8_float32"),
        ({"float32"}, "float32"),
    ],
)
def test_the_number_format_follows_the_gpu(
    able: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _device: able)
    assert device.compute_type(spec_of("x"), "cuda") == chosen
    with pytest.raises(MisconfiguredError, match="WHISPER_COMPUTE_TYPE"):
        device.compute_type(spec_of("x", compute_type="bfloat16"), "cuda")


def test_the_number_format_can_be_chosen(whisper_folder: Path) -> None:
    assert WHISPER.load(spec_of(whisper_folder, compute_type="float32")).device == "cpu, float32"


def test_prefetching_a_folder_is_nothing_and_an_unknown_name_an_error(whisper_folder: Path) -> None:
    assert fetch_model(str(whisper_folder)) == whisper_folder
    with pytest.raises(MisconfiguredError, match="one of"):
        fetch_model("smal.en")
