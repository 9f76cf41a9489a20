"""Names, revisions, the fetch and its record: with a double of the hub's client."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import faster_whisper.utils
import huggingface_hub
import pytest
import structlog.testing

from batchscribe.adapters.engines import problems
from batchscribe.adapters.engines.hub_models import RECORD, beside, verify_model
from batchscribe.adapters.engines.whisper import models
from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.adapters.engines.whisper.models import MODELS, fetch_model, model_folder, unable
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError, MisconfiguredError
from support.hub import HEAD, Hub

WEIGHTS = {"model.bin": b"weights", "config.json": b"{}", "tokenizer.json": b"words"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub", WEIGHTS)
    made.install(monkeypatch)
    monkeypatch.setattr(models, "PACKAGED", {})
    return made


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder of a Python package that brings `tiny.en`."""
    folder = tmp_path / "site" / "some_models" / "model"
    folder.mkdir(parents=True)
    for name in models.MODEL_FILES:
        (folder / name).write_bytes(b"bundled")
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(models, "PACKAGED", {"tiny.en": "some_models"})
    return folder


def spec_of(model: str, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"engine": "faster-whisper", "model": model, "device": "cpu", **changes})


def test_every_name_of_faster_whispers_is_known_with_its_repository() -> None:
    assert {name: repository for name, (repository, _) in MODELS.items()} == faster_whisper.utils._MODELS
    assert all(commit is None or re.fullmatch("[0-9a-f]{40}", commit) for _, commit in MODELS.values())


def test_a_name_is_one_commit_for_the_fetch_and_for_the_run(hub: Hub) -> None:
    repository, commit = MODELS["small.en"]
    folder = fetch_model("small.en")
    assert model_folder(spec_of("")) == folder
    assert hub.calls == [(repository, commit)]


def test_where_no_commit_is_known_the_first_fetchs_is_kept(hub: Hub) -> None:
    first = fetch_model("somebody/a-whisper")
    hub.head = "b" * 40
    assert fetch_model("somebody/a-whisper") == first
    assert model_folder(spec_of("somebody/a-whisper")) == first
    assert [revision for _, revision in hub.calls] == [None, HEAD]


def test_a_file_that_was_cut_short_shows_before_any_work(hub: Hub) -> None:
    folder = fetch_model("small.en")
    (folder / "model.bin").write_bytes(b"weight")
    assert "changed after it was fetched" in FACTORY.problems(spec_of("small.en"))[0]
    with pytest.raises(MisconfiguredError, match=rf"remove {hub.root}/models--Systran--faster-whisper-small"):
        fetch_model("small.en")


def test_a_file_that_was_changed_shows_when_its_contents_are_read(hub: Hub) -> None:
    folder = fetch_model("small.en")
    (folder / "model.bin").write_bytes(b"Weights")
    assert model_folder(spec_of("small.en")) == folder
    verify_model(folder)
    with pytest.raises(MisconfiguredError, match=r"model\.bin changed after it was fetched"):
        verify_model(folder, contents=True)
    with pytest.raises(MisconfiguredError, match=r"model\.bin changed after it was fetched"):
        fetch_model("small.en")


def test_a_broken_transfer_is_seen_by_the_hubs_own_name_for_the_file(hub: Hub) -> None:
    hub.broken = True
    with pytest.raises(EngineError, match="is damaged"):
        fetch_model("small.en")


def test_a_model_that_somebody_else_put_into_the_cache_is_taken_as_it_is(hub: Hub) -> None:
    repository, commit = MODELS["small.en"]
    hub.snapshot_download(repository, revision=commit, allow_patterns=list(WEIGHTS))
    assert FACTORY.problems(spec_of("small.en")) == ()


def test_a_packaged_model_is_found_by_its_name_without_a_fetch(hub: Hub, package: Path) -> None:
    assert model_folder(spec_of("tiny.en")) == package
    assert {name for name, here in FACTORY.models().items() if here} == {"tiny.en"}
    assert hub.calls == []


def test_a_fetched_model_comes_before_a_packaged_one(hub: Hub, package: Path) -> None:
    folder = fetch_model("tiny.en")
    assert folder != package
    assert model_folder(spec_of("tiny.en")) == folder
    assert hub.calls


def test_a_packaged_model_that_is_not_installed_is_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PACKAGED", {"tiny.en": "no_such_package"})
    assert "not on this machine" in FACTORY.problems(spec_of("tiny.en"))[0]
    assert hub.calls == []


def test_a_missing_model_names_one_that_is_here(hub: Hub, package: Path) -> None:
    assert "or use one that is here: --model tiny.en " in FACTORY.problems(spec_of("small.en"))[0]
    assert "or choose another engine" in FACTORY.problems(spec_of("small"))[0], "tiny.en is English only"


def test_a_record_that_cannot_be_read_is_one_line(hub: Hub) -> None:
    folder = fetch_model("small.en")
    beside(folder, RECORD).write_bytes(b"{")
    with pytest.raises(MisconfiguredError, match="cannot be read: remove it"):
        model_folder(spec_of("small.en"))


def test_a_fetch_without_the_hubs_client_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    with pytest.raises(MisconfiguredError, match=r"not installed: pip install --editable '\.\[gpu\]'"):
        fetch_model("small")


def test_a_fetch_that_fails_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise ConnectionError("Got: no route.\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(EngineError) as caught:
        fetch_model("small.en")
    assert str(caught.value) == (
        "the model small.en could not be fetched (no route): check the network and the free disk space, and "
        "try again; nothing was changed"
    )
    assert hub.calls == []


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("parakeet", "did you mean BATCH_ENGINE=parakeet? "),
        ("Nemo-Parakeet-TDT-0.6B-v2", "did you mean BATCH_ENGINE=parakeet? "),
        ("Large-V3-Turbo", "did you mean large-v3-turbo? "),
        ("TINY.EN", "did you mean tiny.en? "),
    ],
)
def test_an_unknown_model_is_reported_with_what_was_meant(model: str, hint: str) -> None:
    (reason,) = unable(spec_of(model))
    assert f"there is no Whisper model '{model}': {hint}use a folder" in reason


def test_a_fetch_without_the_engines_packages_warns_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "not_installed", lambda *_modules: "ctranslate2 not installed")
    with structlog.testing.capture_logs() as logged:
        FACTORY.fetch(spec_of("small.en"))
    assert [entry["event"] for entry in logged] == ["engine.not_installed"]
    assert "ctranslate2 not installed: pip install" in logged[0]["note"]
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    ("model", "task", "language", "problem"),
    [
        ("small.en", "translate", None, "cannot translate"),
        ("turbo", "translate", None, "not trained to translate"),
        ("distil-large-v3", "translate", "de", "not trained to translate"),
        ("somebody/Distil-german", "translate", "de", "not trained to translate"),
        ("small.en", "transcribe", "fr", "English only"),
        ("small", "transcribe", "xx", "language 'xx'"),
        ("small", "summarise", None, "no task 'summarise'"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_any_work(
    hub: Hub, model: str, task: str, language: str | None, problem: str
) -> None:
    fetch_model(model)
    found = FACTORY.problems(spec_of(model, task=task, language=language))
    assert len(found) == 1
    assert problem in found[0]
    assert hub.calls


@pytest.mark.parametrize("model", ["small", "large-v3", "medium"])
def test_models_of_many_languages_translate(hub: Hub, model: str) -> None:
    fetch_model(model)
    assert FACTORY.problems(spec_of(model, task="translate", language="de")) == ()
    assert hub.calls


def test_the_names_say_what_is_on_this_machine_and_a_fetch_brings_more(hub: Hub) -> None:
    assert set(FACTORY.models().items()) == {(name, False) for name in MODELS}
    folder = FACTORY.fetch(spec_of("turbo"))
    assert {name for name, here in FACTORY.models().items() if here} == {"turbo", "large-v3-turbo"}
    assert folder.name == MODELS["turbo"][1]
    assert hub.calls


def test_what_no_machine_could_do_is_known_without_the_model() -> None:
    assert "cannot translate" in FACTORY.unable(spec_of("base.en", task="translate"))[0]
    assert FACTORY.unable(spec_of("base", task="translate")) == ()
