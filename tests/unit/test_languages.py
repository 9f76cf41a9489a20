"""The language of a session: identified before a start, kept, and served by an engine of its own."""

from __future__ import annotations

import sys
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from batchscribe import __version__
from batchscribe.adapters.engines.problems import list_failures
from batchscribe.adapters.engines.voice_detectors import find_voice_detector
from batchscribe.adapters.engines.whisper import language
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.adapters.engines.whisper.language import identify_language
from batchscribe.adapters.host_access.setup import SetupOptions
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.controller import languages
from batchscribe.controller.context import World
from batchscribe.controller.languages import LANGUAGE, identify_sessions
from batchscribe.controller.observe import PAUSED
from batchscribe.controller.records import COPIES
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.policy import Hold, Launch
from batchscribe.core.run.host import CheckRequest, HostReply, InstanceRecord, PreparedEngine, passed
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, decode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.errors import (
    AudioError,
    EngineError,
    InterruptedRunError,
    StoreUnavailableError,
)
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import engine_choice, environments, host, worker
from batchscribe.wiring.engine_choice import EngineChoice, list_session_engines
from support.audio import bundled, corpus
from support.host_setup import PlayedSetup
from support.stores import NOW
from support.whisper_model import build
from support.world import Stage, stage

INSTANCE = "i-0123456789abcdef0"
WHISPER, PARAKEET = "faster-whisper", "parakeet"
V2, V3, TURBO = "nemo-parakeet-tdt-0.6b-v2", "nemo-parakeet-tdt-0.6b-v3", "large-v3-turbo"
ENGINES = {"": EngineSpec(engine="usual"), "en": EngineSpec(engine="english", language="en")}
Identify = Callable[[bytes], str]


def choose(language: str) -> EngineSpec:
    return ENGINES.get(language, ENGINES[""])


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW), choose_engine=choose)
    yield made
    made.ledger.close()


def with_identifier(at: Stage, identify: Identify | None) -> World:
    return replace(at.world, open_identifier=lambda: identify)


def ready(at: Stage, *sessions: str, count: int = 2) -> None:
    for session in sessions:
        at.upload(count, session=session)
        at.clock.sleep(1)
    at.clock.sleep(600)


def by_name(data: bytes) -> str:
    """The played language of a recording is the first part of its session's name."""
    return data.decode().partition("-")[0]


# ------------------------------------------------------------------ a run of two engines


def test_each_engine_gets_a_manifest_of_its_own_in_one_run(at: Stage) -> None:
    ready(at, "en-a", "ja-b", "en-c", "de-d")
    ticked = tick(with_identifier(at, by_name), at.config)
    (run,) = ticked.runs
    manifests = [at.worker.started[run.id, number].manifest for number in range(len(run.workers))]
    assert [
        (manifest.engine, [chunk.key.split("/")[0] for chunk in manifest.chunks]) for manifest in manifests
    ] == [(ENGINES["en"], ["en-a", "en-a", "en-c", "en-c"]), (ENGINES[""], ["ja-b", "ja-b", "de-d", "de-d"])]
    assert manifests[0].settings_hash != manifests[1].settings_hash
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, 8)
    assert at.compute.describe(run.instance).state is InstanceState.STOPPED
    assert [call for call, _ in at.compute.calls].count("start") == 1
    assert at.ledger.last_engine() == "english"


@pytest.mark.parametrize("limit", [4, 100])
def test_a_limited_run_takes_its_batch_for_all_engines_and_nothing_else(at: Stage, limit: int) -> None:
    ready(at, "en-a", "ja-b")
    at.clock.at(1, lambda: at.upload(2, session="ja-later"))
    limited = replace(at.config, policy=Policy(name=PolicyName.NOW, limit=limit, manual=True))
    (run,) = tick(with_identifier(at, by_name), limited).runs
    assert (run.outcome, run.chunks_done, len(run.workers)) == (Outcome.COMPLETED, 4, 2)
    assert at.ledger.facts(COPIES) == {}


def test_a_chunk_that_got_the_rest_of_a_run_did_not_take_a_whole_one(at: Stage) -> None:
    ready(at, "en-a", count=40)
    ready(at, "ja-b", count=1)
    at.worker.seconds_each = 22
    at.worker.endless = frozenset({"ja-b/chunk-001.webm"})
    short = replace(at.config, policy=Policy(name=PolicyName.NOW, max_runtime=timedelta(minutes=20)))
    (run,) = tick(with_identifier(at, by_name), short).runs
    assert (run.outcome, run.chunks_done, run.failures) == (Outcome.TIMED_OUT, 40, {})


def test_a_chunk_that_failed_before_gets_its_engine_in_the_same_run(at: Stage) -> None:
    world = with_identifier(at, by_name)
    ready(at, "ja-a", count=1)
    at.worker.fails = frozenset({"ja-a/chunk-001.webm"})
    (failed,) = tick(world, at.config).runs
    assert failed.chunks_done == 0
    at.worker.fails = frozenset()
    at.clock.sleep(24 * 3600)
    ready(at, "en-b", count=1)
    (run,) = tick(world, at.config).runs
    assert (run.outcome, run.chunks_done, len(run.workers)) == (Outcome.COMPLETED, 2, 2)


def test_without_a_model_that_identifies_there_is_one_engine_for_all(at: Stage) -> None:
    ready(at, "en-a", "ja-b")
    (run,) = tick(at.world, at.config).runs
    assert len(run.workers) == 1
    assert at.worker.manifest(run).engine == ENGINES[""]
    assert at.ledger.facts(LANGUAGE) == {}


# ------------------------------------------------------------------ identification


def test_a_session_is_identified_once_and_its_language_is_kept(at: Stage) -> None:
    ready(at, "en-a", "ja-b")
    read: list[bytes] = []

    def identify(data: bytes) -> str:
        read.append(data)
        return by_name(data)

    held = replace(at.config, policy=Policy(name=PolicyName.THRESHOLD, threshold=100))
    for _ in range(2):
        assert isinstance(tick(with_identifier(at, identify), held).decision, Hold)
    assert len(read) == 2
    assert at.ledger.facts(LANGUAGE) == {f"{LANGUAGE}en-a/": "en", f"{LANGUAGE}ja-b/": "ja"}


def test_only_some_sessions_of_a_tick_are_identified_the_oldest_first(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "MOST_SESSIONS", 2)
    ready(at, "en-c", "en-b", "en-a")
    candidates = at.world.scanner(False).backlog().candidates
    identify_sessions(with_identifier(at, by_name), candidates)
    assert list(at.ledger.facts(LANGUAGE)) == [f"{LANGUAGE}en-b/", f"{LANGUAGE}en-c/"]
    identify_sessions(with_identifier(at, by_name), candidates)
    assert f"{LANGUAGE}en-a/" in at.ledger.facts(LANGUAGE)


def test_a_tick_spends_a_bounded_time_on_languages(at: Stage) -> None:
    ready(at, "en-a", "en-b", "en-c", "en-d")

    def identify(data: bytes) -> str:
        at.clock.sleep(0.4 * languages.MOST_SECONDS)
        return by_name(data)

    identify_sessions(with_identifier(at, identify), at.world.scanner(False).backlog().candidates)
    assert len(at.ledger.facts(LANGUAGE)) == 3


@pytest.mark.parametrize("error", [AudioError("no audio"), EngineError("broken")])
def test_a_failure_means_unknown_and_is_not_repeated(at: Stage, error: Exception) -> None:
    ready(at, "en-a", "ja-b")

    def identify(data: bytes) -> str:
        if data.startswith(b"en-a"):
            raise error
        return by_name(data)

    ticked = tick(with_identifier(at, identify), at.config)
    assert isinstance(ticked.decision, Launch)
    assert ticked.errors == ()
    assert at.ledger.facts(LANGUAGE) == {f"{LANGUAGE}en-a/": "", f"{LANGUAGE}ja-b/": "ja"}


def test_a_model_that_does_not_load_stops_no_tick(at: Stage) -> None:
    ready(at, "en-a")

    def refuse() -> None:
        raise EngineError("the model is damaged")

    ticked = tick(replace(at.world, open_identifier=refuse), at.config)
    assert isinstance(ticked.decision, Launch)


def test_a_pause_while_languages_are_identified_holds_the_start(at: Stage) -> None:
    ready(at, "en-a")

    def pause(data: bytes) -> str:
        at.ledger.put(PAUSED, (at.clock.now() + timedelta(hours=1)).isoformat())
        return by_name(data)

    assert isinstance(tick(with_identifier(at, pause), at.config).decision, Hold)


def test_a_signal_while_the_model_loads_ends_the_tick_before_a_start(at: Stage) -> None:
    ready(at, "en-a")

    def interrupt() -> None:
        raise InterruptedRunError("SIGTERM")

    with pytest.raises(InterruptedRunError):
        tick(replace(at.world, open_identifier=interrupt), at.config)
    assert "start" not in [call for call, _ in at.compute.calls]


def test_a_signal_while_an_engine_is_checked_is_no_failed_check() -> None:
    def interrupt(_spec: EngineSpec) -> None:
        raise InterruptedRunError("SIGTERM")

    with pytest.raises(InterruptedRunError):
        list(list_failures("an engine", EngineSpec(engine="any"), [interrupt]))


@pytest.mark.parametrize("error", [StoreUnavailableError("no answer"), InterruptedRunError("SIGTERM")])
def test_a_store_that_does_not_answer_and_a_signal_leave_it_for_the_next_tick(
    at: Stage, error: Exception
) -> None:
    ready(at, "en-a")

    def refuse(_data: bytes) -> str:
        raise error

    candidates = at.world.scanner(False).backlog().candidates
    interrupted = isinstance(error, InterruptedRunError)
    try:
        identify_sessions(with_identifier(at, refuse), candidates)
        assert not interrupted
    except InterruptedRunError:
        assert interrupted
    assert at.ledger.facts(LANGUAGE) == {}


def test_a_recording_that_kills_the_process_is_not_tried_again(at: Stage) -> None:
    class KilledError(BaseException):
        pass

    def die(_data: bytes) -> str:
        raise KilledError

    ready(at, "en-a")
    candidates = at.world.scanner(False).backlog().candidates
    with pytest.raises(KilledError):
        identify_sessions(with_identifier(at, die), candidates)
    identify_sessions(with_identifier(at, die), candidates)
    assert at.ledger.facts(LANGUAGE) == {f"{LANGUAGE}en-a/": ""}


# ------------------------------------------------------------------ by Whisper


@dataclass
class Voter:
    """Stands in for a decoder; reports the same chances for each window."""

    chances: Mapping[str, float]
    windows: list[int] = field(default_factory=list)

    def features(self, audio: Any) -> Any:
        self.windows.append(len(audio))
        return audio

    def encode(self, features: list[Any]) -> int:
        return len(features)

    def languages(self, encoded: int) -> list[Mapping[str, float]]:
        return [self.chances] * encoded


def identify(chances: Mapping[str, float], data: bytes) -> tuple[str, list[int]]:
    voter: Any = Voter(chances)
    return identify_language(voter, find_voice_detector(), data), voter.windows


def test_the_language_of_a_recording_is_that_of_its_first_speech() -> None:
    recording = bundled(next(iter(corpus())))
    spoken, windows = identify({"en": 0.9, "de": 0.1}, recording)
    assert (spoken, len(windows) >= 1) == ("en", True)
    assert identify({"en": 0.55, "de": 0.45}, recording)[0] == ""


def test_a_voice_detector_that_breaks_is_an_error_of_the_engine() -> None:
    def break_down(_audio: Any) -> Any:
        raise RuntimeError("the vendor's error")

    voter: Any = Voter({"en": 0.9})
    with pytest.raises(EngineError, match="while identifying a language: RuntimeError"):
        identify_language(voter, break_down, bundled(next(iter(corpus()))))


def test_a_voice_detector_that_cannot_be_imported_is_an_error_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise ImportError("libonnxruntime.so")

    monkeypatch.setattr(language, "find_voice_detector", refuse)
    monkeypatch.setattr(type(FACTORY), "load_decoder", lambda _factory, _spec: (Voter({}), "cpu", "int8"))
    with pytest.raises(EngineError, match="ImportError"):
        language.load_identifier(EngineSpec(engine=WHISPER, model="tiny", device="cpu"))


def test_a_recording_without_speech_is_of_no_language(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "silence.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(5 * 16_000, np.int16).tobytes())
    assert identify({"en": 1.0}, (tmp_path / "silence.wav").read_bytes()) == ("", [])


def test_a_real_model_identifies_one_of_its_languages(tmp_path: Path) -> None:
    folder = build(tmp_path, languages=("en", "de"))
    spec = EngineSpec(engine=WHISPER, model=str(folder), device="cpu")
    decoder, device, _ = FACTORY.load_decoder(spec)
    assert isinstance(decoder, WhisperDecoder)
    assert device == "cpu"
    found = identify_language(decoder, find_voice_detector(), bundled(next(iter(corpus()))))
    assert found in {"", "en", "de"}


# ------------------------------------------------------------------ the choice of each session


def settings(folder: Path, **names: str) -> Settings:
    return load({"GPU_INSTANCE_ID": INSTANCE} | names, folder=folder)


def choice_of(wanted: Settings, *besides: str) -> EngineChoice:
    store = MemoryStore(FakeClock())
    engines = tuple(PreparedEngine(engine=PARAKEET, model=model) for model in besides)
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=NOW, engine=WHISPER, model=TURBO)
    record = msgspec.structs.replace(record, engines=engines)
    store.create(keys.instance(INSTANCE), msgspec.json.encode(record))
    return EngineChoice(wanted, store)


def models(choice: EngineChoice, *spoken: str) -> list[tuple[str, str | None]]:
    found = [choice.choose(language) for language in spoken]
    return [(spec.model, spec.language) for spec in found]


def test_a_session_gets_an_engine_that_its_host_was_prepared_for(tmp_path: Path) -> None:
    both = choice_of(settings(tmp_path), V2, V3)
    assert models(both, "", "en", "de", "ja") == [(TURBO, None), (V2, "en"), (V3, "de"), (TURBO, None)]
    only = choice_of(settings(tmp_path), V3)
    assert models(only, "en", "ja") == [(V3, "en"), (TURBO, None)]
    assert models(choice_of(settings(tmp_path)), "en", "de") == [(TURBO, None)] * 2


@pytest.mark.parametrize(
    "names",
    [
        {"BATCH_LANGUAGE": "en"},
        {"BATCH_ENGINE": WHISPER},
        {"WHISPER_MODEL": TURBO},
        {"BATCH_TASK": "translate"},
    ],
    ids=str,
)
def test_explicit_settings_are_for_all_sessions(tmp_path: Path, names: dict[str, str]) -> None:
    choice = choice_of(settings(tmp_path, **names), V2, V3)
    assert choice.choose("en") == choice.choose("de") == choice.choose("")
    assert choice.open_identifier() is None
    assert list_session_engines(settings(tmp_path, **names)) == ()


def test_a_host_is_prepared_for_sessions_if_this_machine_identifies_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "has_identifier", lambda: False)
    assert list_session_engines(settings(tmp_path)) == ()
    assert choice_of(settings(tmp_path), V2).open_identifier() is None
    monkeypatch.setattr(engine_choice, "has_identifier", lambda: True)
    found = list_session_engines(settings(tmp_path))
    assert {(spec.engine, spec.model, spec.device) for spec in found} == {
        (PARAKEET, V2, "cuda"),
        (PARAKEET, V3, "cuda"),
    }
    assert list_session_engines(load({"GPU_PROVIDER": "local"}, folder=tmp_path)) == ()


# ------------------------------------------------------------------ two environments of a host


@dataclass
class Host:
    """Answers the requests of a set-up; one engine may fail to load."""

    broken: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, _instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
        assert timeout
        if word == "check":
            engine = decode(data, CheckRequest).engine
            finding = passed(f"engine {engine.engine}", engine.model)
            ok = engine.model != self.broken
            self.asked.append((word, engine.model))
            finding = msgspec.structs.replace(finding, ok=ok)
            return HostReply(release=__version__, findings=(finding, passed("store", "listed")))
        if word == "prefetch":
            self.asked.append((word, decode(data, EngineSpec).model))
        return HostReply(release=__version__)


def set_up(host: Host) -> tuple[MemoryStore, list[str]]:
    store = MemoryStore(FakeClock())
    besides = tuple((EngineSpec(engine=PARAKEET, model=model), "parakeet-gpu") for model in (V2, V3))
    setup = PlayedSetup(
        client=host,
        clock=FakeClock(),
        request=CheckRequest(now=NOW, engine=EngineSpec(engine=WHISPER, model=TURBO), gpu=True),
        output=store,
        published=lambda _instance: frozenset(),
        besides=besides,
    )
    instance = Instance(id=INSTANCE, state=InstanceState.RUNNING)
    return store, [finding.what for finding in setup.set_up(instance, SetupOptions())]


def test_a_set_up_fetches_loads_and_records_every_engine() -> None:
    host = Host()
    store, seen = set_up(host)
    record = decode(store.get(keys.instance(INSTANCE)).data, InstanceRecord)
    assert (record.engine, record.model) == (WHISPER, TURBO)
    assert [each.model for each in record.engines] == [V2, V3]
    for word, models in (("prefetch", [V2, V3, TURBO]), ("check", [TURBO, V2, V3])):
        assert [model for asked, model in host.asked if asked == word] == models
    assert seen.count("store") == 1


def test_a_host_whose_second_engine_does_not_load_is_not_recorded() -> None:
    store, _seen = set_up(Host(broken=V3))
    assert list(store.list()) == []


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of Parakeet's environment in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    python = tmp_path / ".batchscribe" / "venv-parakeet-gpu" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -c "print(\'{{\\"box\\": 1}}\')" "$@"\n')
    python.chmod(0o700)
    return python


def test_an_engine_runs_in_its_own_environment_of_the_host(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environments.find_other_python(PARAKEET) == str(other)
    assert environments.find_other_python(WHISPER) == ""
    monkeypatch.setattr(sys, "prefix", str(other.parents[1]))
    assert environments.find_other_python(PARAKEET) == ""


def test_requests_about_an_engine_go_to_its_environment(other: Path) -> None:
    spec = EngineSpec(engine=PARAKEET, model=V2)
    box = GpuHost(Path.home(), SystemClock())
    assert host.fetch(box, spec) == HostReply(box=1)
    assert host.inspect(CheckRequest(now=NOW, engine=spec, gpu=True)) == HostReply(box=1)
    other.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(EngineError, match="venv-parakeet-gpu: fetch ended with code 7"):
        host.fetch(box, spec)


def test_a_worker_continues_in_the_environment_of_its_engine(
    other: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ReplacedError(Exception):
        pass

    def replaced(path: str, words: list[str]) -> None:
        raise ReplacedError(path, *words)

    monkeypatch.setattr("os.execv", replaced)
    monkeypatch.setattr(GpuHost, "is_set_up", True)
    monkeypatch.setattr(GpuHost, "read_place", lambda _box: HostPlaceDouble())
    monkeypatch.setattr(worker, "refuse_foreign_work", lambda *_args, **_more: None)
    monkeypatch.setattr(worker, "read_manifest", lambda *_args: (ManifestDouble(), MemoryStore(FakeClock())))
    location = f"{tmp_path.as_uri()}/{keys.manifest('r', 1)}"
    with pytest.raises(ReplacedError) as caught:
        worker.process_manifest(location, sha256="ab")
    python, *words = caught.value.args
    assert python == str(other)
    given = [location, "--control", "", "--sha256", "ab"]
    assert words == [str(other), "-P", "-m", "batchscribe", "worker", *given]


class HostPlaceDouble:
    def control_of(self, _root: str) -> str:
        return ""


class ManifestDouble:
    engine = EngineSpec(engine=PARAKEET, model=V2)
