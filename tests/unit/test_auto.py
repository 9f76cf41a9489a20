"""The engine and model of `auto`: the published table, and who resolves it where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
import structlog.testing
from click.testing import CliRunner

from batchscribe import __version__
from batchscribe.adapters.engines.parakeet.models import PUBLISHED
from batchscribe.adapters.engines.whisper.models import MODELS as WHISPER_MODELS
from batchscribe.cli.app import App
from batchscribe.cli.engines import engines as engines_command
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.published_models import AUTO, MODELS, find_publisher, list_candidates
from batchscribe.core.objects import Blob
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import StoreUnavailableError
from batchscribe.ledger import Ledger
from batchscribe.protocols import Store
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring import engine_choice, engines
from batchscribe.wiring.engine_choice import EngineChoice, engine_spec
from batchscribe.wiring.engines import known_factory, list_limits
from batchscribe.wiring.preflight import check_model, check_record
from batchscribe.wiring.scheduler import open_scheduler
from support.stores import NOW
from support.world import stage

INSTANCE = "i-0123456789abcdef0"
WHISPER, PARAKEET = "faster-whisper", "parakeet"
V2, V3 = "nemo-parakeet-tdt-0.6b-v2", "nemo-parakeet-tdt-0.6b-v3"
TURBO = "large-v3-turbo"
Chosen = tuple[str, str]


# ------------------------------------------------------------------ the table


def test_each_model_of_the_table_exists_and_can_do_what_the_table_shows() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert model.name in (PUBLISHED if model.engine == PARAKEET else WHISPER_MODELS)
        for language in model.languages or {"ja", "de"}:
            tasks = ("transcribe", "translate") if model.translates else ("transcribe",)
            for task in tasks:
                spec = EngineSpec(engine=model.engine, model=model.name, language=language, task=task)
                assert list_limits(spec) == ()


@pytest.mark.parametrize("task", ["transcribe", "translate"])
@pytest.mark.parametrize("language", ["en", "de", "uk", "ja", "zh", "xx", None])
def test_each_language_and_task_has_a_choice(language: str | None, task: str) -> None:
    found = list_candidates(AUTO, language, task)
    assert found == list_candidates(AUTO, language, task)
    assert all(model.can(language, task) for model in found)
    assert {model.engine for model in list_candidates(WHISPER, language, task)} == {WHISPER}
    assert found


# ------------------------------------------------------------------ resolution


def settings(folder: Path, **names: str) -> Settings:
    return load({"GPU_INSTANCE_ID": INSTANCE} | names, folder=folder)


def record(engine: str = "", model: str = "") -> InstanceRecord:
    return InstanceRecord(instance=INSTANCE, release=__version__, at=NOW, engine=engine, model=model)


def choose(wanted: Settings, store: Store) -> EngineSpec:
    return EngineChoice(wanted, store).choose("")


def names_of(spec: EngineSpec) -> Chosen:
    return spec.engine, spec.model


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({"BATCH_LANGUAGE": "en"}, (PARAKEET, V2)),
        ({"BATCH_LANGUAGE": "pl"}, (PARAKEET, V3)),
        ({"BATCH_LANGUAGE": "ja"}, (WHISPER, TURBO)),
        ({}, (WHISPER, TURBO)),
        ({"BATCH_LANGUAGE": "auto", "WHISPER_MODEL": "auto"}, (WHISPER, TURBO)),
        ({"BATCH_TASK": "translate"}, (WHISPER, "large-v3")),
        ({"BATCH_LANGUAGE": "de", "BATCH_TASK": "translate"}, (WHISPER, "large-v3")),
        ({"BATCH_LANGUAGE": "en", "WHISPER_COMPUTE_TYPE": "float16"}, (PARAKEET, V2)),
        ({"BATCH_LANGUAGE": "en", "WHISPER_COMPUTE_TYPE": "int8_float16"}, (WHISPER, TURBO)),
        # explicit settings win
        ({"BATCH_LANGUAGE": "en", "BATCH_ENGINE": WHISPER}, (WHISPER, TURBO)),
        ({"BATCH_LANGUAGE": "de", "BATCH_ENGINE": PARAKEET}, (PARAKEET, V3)),
        ({"BATCH_ENGINE": PARAKEET}, (PARAKEET, V2)),
        ({"BATCH_LANGUAGE": "en", "WHISPER_MODEL": "small.en"}, (WHISPER, "small.en")),
        ({"WHISPER_MODEL": V3}, (PARAKEET, V3)),
        ({"WHISPER_MODEL": "/models/mine"}, (WHISPER, "/models/mine")),
        ({"BATCH_LANGUAGE": "en", "BATCH_ENGINE": PARAKEET, "WHISPER_MODEL": "/mine"}, (PARAKEET, "/mine")),
        ({"BATCH_LANGUAGE": "en", "BATCH_ENGINE": "pocketsphinx"}, ("pocketsphinx", "")),
        ({"BATCH_ENGINE": "only-on-the-host"}, ("only-on-the-host", "")),
    ],
    ids=str,
)
def test_a_host_is_set_up_for_the_best_model_unless_the_settings_name_one(
    names: dict[str, str], chosen: Chosen, tmp_path: Path
) -> None:
    assert names_of(engine_spec(settings(tmp_path, **names))) == chosen


@pytest.mark.parametrize(
    ("prepared", "names", "chosen"),
    [
        ((WHISPER, "small.en"), {}, (WHISPER, "small.en")),
        ((WHISPER, "small.en"), {"BATCH_LANGUAGE": "en"}, (WHISPER, "small.en")),
        ((WHISPER, "small.en"), {"BATCH_ENGINE": WHISPER}, (WHISPER, "small.en")),
        (("", ""), {"BATCH_LANGUAGE": "en"}, (WHISPER, "small.en")),
        ((WHISPER, TURBO), {"BATCH_LANGUAGE": "en"}, (WHISPER, TURBO)),
        ((PARAKEET, V3), {"BATCH_LANGUAGE": "en"}, (PARAKEET, V3)),
        # it cannot do that
        ((WHISPER, "small.en"), {"BATCH_LANGUAGE": "ja"}, (WHISPER, TURBO)),
        ((WHISPER, TURBO), {"BATCH_TASK": "translate"}, (WHISPER, "large-v3")),
        ((PARAKEET, V2), {"BATCH_LANGUAGE": "de"}, (PARAKEET, V3)),
        ((PARAKEET, V2), {}, (WHISPER, TURBO)),
        # another engine was chosen since
        ((WHISPER, "small.en"), {"BATCH_LANGUAGE": "en", "BATCH_ENGINE": PARAKEET}, (PARAKEET, V2)),
        ((WHISPER, "small.en"), {"WHISPER_MODEL": "medium.en"}, (WHISPER, "medium.en")),
        (("pocketsphinx", ""), {"BATCH_LANGUAGE": "en"}, (PARAKEET, V2)),
        ((PARAKEET, V2), {"BATCH_ENGINE": PARAKEET}, (PARAKEET, V2)),
    ],
    ids=str,
)
def test_a_host_that_was_set_up_keeps_its_engine_if_that_can_do_the_work(
    prepared: Chosen, names: dict[str, str], chosen: Chosen, tmp_path: Path
) -> None:
    wanted, host = settings(tmp_path, **names), record(*prepared)
    store = MemoryStore(FakeClock())
    store.create(keys.instance(INSTANCE), msgspec.json.encode(host))
    assert names_of(choose(wanted, store)) == chosen
    kept = prepared in {chosen, ("", "")}
    checks = (*check_record(wanted, host), check_model(host, engine_spec(wanted, host)))
    refused = {found.what for found in checks if not found.ok}
    assert refused == (set() if kept else {"model"})


def test_the_record_is_read_only_if_auto_depends_on_it(tmp_path: Path) -> None:
    class Broken(MemoryStore):
        def get(self, key: str, *, limit: int | None = None) -> Blob:
            raise StoreUnavailableError(f"{key}: no answer, limit {limit}")

    store = Broken(FakeClock())
    explicit = settings(tmp_path, WHISPER_MODEL="small.en")
    local = load({"GPU_PROVIDER": "local"}, folder=tmp_path)
    assert choose(explicit, store).model == "small.en"
    assert choose(local, store).engine == WHISPER
    with pytest.raises(StoreUnavailableError):
        choose(settings(tmp_path), store)


def test_a_scheduler_resolves_auto_only_when_it_needs_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a store that does not answer would delay the stop of a GPU."""
    (tmp_path / "audio").mkdir()

    def refuse(*_args: object) -> EngineSpec:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(engine_choice, "engine_spec", refuse)
    settings = load({"BATCH_SOURCE": str(tmp_path / "audio")}, folder=tmp_path)
    with open_scheduler(settings) as made, pytest.raises(StoreUnavailableError):
        made.config.engine.model.upper()


@dataclass
class Here(EngineFactory):
    """An engine that has some models on this machine."""

    name: str
    here: frozenset[str] = field(default_factory=frozenset)

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        return () if spec.model in self.here else (f"{spec.model} is missing",)

    def load(self, spec: EngineSpec) -> Engine:
        raise NotImplementedError


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Puts models on this machine."""

    def put(*models: str) -> None:
        made = {name: Here(name, frozenset(models)) for name in (WHISPER, PARAKEET, "pocketsphinx")}
        monkeypatch.setattr(engine_choice, "known_factory", made.__getitem__)

    return put


@pytest.mark.parametrize(
    ("here", "names", "chosen"),
    [
        ((), {}, (WHISPER, "small.en")),
        ((), {"BATCH_LANGUAGE": "en"}, (WHISPER, "small.en")),
        ((), {"BATCH_LANGUAGE": "de"}, (WHISPER, "small")),
        ((), {"BATCH_TASK": "translate"}, (WHISPER, "small")),
        (("tiny.en",), {"BATCH_LANGUAGE": "en"}, (WHISPER, "small.en")),
        (("small", TURBO, "small.en"), {}, (WHISPER, TURBO)),
        (("small.en", V3, TURBO), {"BATCH_LANGUAGE": "en"}, (PARAKEET, V3)),
        (("small.en", V3, TURBO), {"BATCH_LANGUAGE": "en", "BATCH_ENGINE": WHISPER}, (WHISPER, TURBO)),
        (("small.en",), {"BATCH_LANGUAGE": "en", "BATCH_ENGINE": PARAKEET}, (PARAKEET, V2)),
        ((V2, V3), {}, (WHISPER, "small.en")),
        ((V2,), {"BATCH_LANGUAGE": "en", "WHISPER_MODEL": "small.en"}, (WHISPER, "small.en")),
    ],
    ids=str,
)
def test_this_machine_uses_the_best_model_that_it_has(
    here: tuple[str, ...], names: dict[str, str], chosen: Chosen, machine: Machine, tmp_path: Path
) -> None:
    machine(*here)
    assert names_of(engine_spec(load({"GPU_PROVIDER": "local"} | names, folder=tmp_path))) == chosen


def test_a_models_name_selects_its_engine() -> None:
    assert {find_publisher(model.name) == model.engine for model in MODELS} == {True}
    assert find_publisher("tiny.en") == find_publisher("/models/mine") == WHISPER


# ------------------------------------------------------------------ the note of a change


def note_of(folder: Path, engine: str, model: str, *, manual: bool = False) -> str:
    policy = Policy(name=PolicyName.THRESHOLD, manual=manual)
    at = stage(folder, policy=policy, choose_engine=lambda _language: EngineSpec(engine=engine, model=model))
    with structlog.testing.capture_logs() as logged:
        note = tick(at.world, at.config).note
    at.ledger.close()
    events = [entry for entry in logged if entry["event"] == "engine.changed"]
    assert bool(events) == bool(note)
    return note


def test_a_tick_notes_another_engine_than_before_once(tmp_path: Path) -> None:
    assert note_of(tmp_path, WHISPER, "small.en") == ""
    assert note_of(tmp_path, WHISPER, "small.en") == ""
    assert note_of(tmp_path, PARAKEET, V2) == (
        f"New audio is transcribed by parakeet {V2}, before it was faster-whisper small.en; existing "
        "transcripts stay"
    )
    assert note_of(tmp_path, PARAKEET, V2) == ""


def test_a_ledger_of_an_older_version_shows_the_engine_of_its_last_run(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        lesson = {"engine": WHISPER, "model": "small.en", "instance_type": "", "measured": Priors()}
        ledger.learn(run="r", at=NOW, **lesson)  # type: ignore[arg-type]
    assert "before it was faster-whisper small.en" in note_of(tmp_path, WHISPER, TURBO)
    assert note_of(tmp_path, WHISPER, TURBO) == ""


def test_a_run_with_another_engine_by_hand_is_no_change(tmp_path: Path) -> None:
    assert note_of(tmp_path, WHISPER, "small.en") == ""
    assert note_of(tmp_path, WHISPER, TURBO, manual=True) == ""
    assert note_of(tmp_path, WHISPER, "small.en") == ""


def test_a_run_is_learned_under_the_engine_of_its_manifest(tmp_path: Path) -> None:
    """The settings may have changed since."""
    at = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    at.upload(3)
    at.clock.sleep(600)
    tick(at.world, at.config, wait=False)
    assert at.ledger.open_runs()
    tick(at.world, replace(at.config, choose_engine=lambda _language: EngineSpec(engine="another")))
    assert at.ledger.open_runs() == ()
    assert at.ledger.last_engine() == "played"
    at.ledger.close()


# ------------------------------------------------------------------ the table on the screen


def show_engines(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str, **names: str) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(engines_command, list(words), obj=App())
    assert done.exit_code == 0, done.output
    return done.output


def test_the_table_fits_80_columns_and_marks_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {"GPU_INSTANCE_ID": INSTANCE, "BATCH_LANGUAGE": "en"}
    shown = show_engines(monkeypatch, tmp_path, **names)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    (marked,) = [line.split() for line in lines if line.startswith("*  ")]
    assert marked == ["*", V2, PARAKEET, "en", "6.05", "11.18", "3386", "2.5"]
    assert all(any(model.name in line for line in lines) for model in MODELS)
    assert "Open ASR" in shown
    assert "yours: the same of your own runs" in " ".join(shown.split())
    assert "for: en is English, 25 are European languages, any" in shown
    assert "CC-BY-4.0 (parakeet)" in shown


def test_the_document_has_published_figures_beside_measured_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Ledger(tmp_path / ".batchscribe" / "ledger.sqlite") as ledger:
        lesson = {"engine": WHISPER, "model": TURBO, "instance_type": "g4dn.xlarge"}
        ledger.learn(run="r", at=NOW, measured=Priors(speed=41.0), **lesson)
    names = {"GPU_PROVIDER": "local", "WHISPER_MODEL": "small.en"}
    document = msgspec.json.decode(show_engines(monkeypatch, tmp_path, "--json", **names))
    assert (document["auto"]["engine"], document["auto"]["model"]) == (WHISPER, "small.en")
    (turbo,) = [model for model in document["published"] if model["model"] == TURBO]
    assert (turbo["wer"], turbo["languages"], turbo["measured"]) == (7.83, None, [41.0])
    assert [model["model"] for model in document["published"]] == [model.name for model in MODELS]


def test_the_models_of_this_machine_are_reported_as_a_tick_would_use_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {"GPU_PROVIDER": "local", "WHISPER_MODEL": "tiny.en"}
    document = msgspec.json.decode(show_engines(monkeypatch, tmp_path, "--json", **names))
    whisper = next(found for found in document["engines"] if found["name"] == WHISPER)
    used = engine_spec(load(names, folder=tmp_path))
    assert whisper["problems"] == list(known_factory(WHISPER).problems(used))
    assert "small.en" not in str(whisper["problems"])
    shown = " ".join(show_engines(monkeypatch, tmp_path, **names, BATCH_LANGUAGE="de").split())
    assert "tiny.en supports English only, and BATCH_LANGUAGE is de" in shown


@pytest.mark.parametrize(
    ("model", "note"),
    [
        ("tiny.en", ""),
        ("small", "* faster-whisper small: named by WHISPER_MODEL"),
        ("auto", "* faster-whisper small.en: with BATCH_LANGUAGE=auto; not on this machine:"),
    ],
)
def test_the_note_of_the_mark_names_the_origin_of_the_choice(
    model: str, note: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Machine
) -> None:
    machine()
    monkeypatch.setattr(engines, "engine_reports", lambda *_arguments: ())
    shown = show_engines(monkeypatch, tmp_path, GPU_PROVIDER="local", WHISPER_MODEL=model)
    assert [line for line in shown.splitlines() if line.startswith("* f")] == ([note] if note else [])
    better = "better, but not on this machine: `batchscribe engines --fetch large-v3-turbo` WER"
    assert (better in " ".join(shown.split())) == (model == "auto")


def test_one_engine_is_listed_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = msgspec.json.decode(show_engines(monkeypatch, tmp_path, "--engine", PARAKEET, "--json"))
    assert [found["name"] for found in document["engines"]] == [PARAKEET]
    assert {model["engine"] for model in document["published"]} == {PARAKEET}
    assert WHISPER not in show_engines(monkeypatch, tmp_path, "--engine", PARAKEET)
    assert "no speech engine 'parrot'" in show_engines(monkeypatch, tmp_path, "--engine", "parrot")
