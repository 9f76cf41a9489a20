"""What an engine's model can do nowhere is said by the engine, and refused before a dollar is spent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscribe.controller.commands.rehearsal import Act
from batchscribe.controller.commands.rehearsal import check as rehearsable
from batchscribe.controller.context import refuse_unsupported
from batchscribe.controller.tick import tick
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from batchscribe.testing.engine import ScriptedFactory
from batchscribe.wiring import engines
from batchscribe.wiring.gpu import open_gpu_tools
from batchscribe.wiring.preflight import describe_limits
from batchscribe.wiring.scheduler import open_scheduler
from support.world import INSTANCE, Stage, stage

WHISPER, PARAKEET, SPHINX = "faster-whisper", "parakeet", "pocketsphinx"


def spec(
    model: str, language: str | None = None, task: str = "transcribe", engine: str = WHISPER
) -> EngineSpec:
    return EngineSpec(engine=engine, model=model, language=language, task=task)


def parakeet(model: str, language: str | None = None, task: str = "transcribe") -> EngineSpec:
    return spec(model, language, task, PARAKEET)


@pytest.mark.parametrize(
    "fine",
    [
        spec("small.en"),
        spec("small.en", "en"),
        spec("", "en"),
        spec("small", "fr"),
        spec("small", "fr", "translate"),
        spec("/models/enough", "fr"),
        spec("/models/turbo/small", "fr", "translate"),
        spec("somebody/whisper-small-fr", "fr", "translate"),
        spec("large-v3-turbo", "fr"),
        spec("distil-large-v3", "fr"),
        parakeet("nemo-parakeet-tdt-0.6b-v3", "fr"),
        parakeet("nemo-parakeet-tdt-0.6b-v2", "en"),
        parakeet("/models/parakeet-tdt-0.6b-v3-int8", "fr"),
        parakeet("/models/our-own", "ja"),
        spec("", "en", engine=SPHINX),
        spec("small.en", "fr", "translate", engine="only-on-the-box"),
    ],
    ids=str,
)
def test_what_a_model_can_do_is_not_refused(fine: EngineSpec) -> None:
    assert describe_limits(fine) == ""
    refuse_unsupported(describe_limits(fine))


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        (spec("small.en", "fr"), "WHISPER_MODEL=small"),
        (spec("", "fr"), "WHISPER_MODEL=small"),
        (spec("small.en", None, "translate"), "WHISPER_MODEL=small"),
        (spec("small.en", "en", "translate"), "WHISPER_MODEL=small"),
        (spec("/models/Small.EN/", "fr"), "WHISPER_MODEL=small"),
        (spec("large-v3-turbo", "fr", "translate"), "WHISPER_MODEL=small"),
        (spec("turbo", None, "translate"), "WHISPER_MODEL=small"),
        (spec("/models/large-v3-turbo-ct2", None, "translate"), "WHISPER_MODEL=small"),
        (spec("distil-large-v3.5", "fr", "translate"), "WHISPER_MODEL=small"),
        (spec("somebody/Distil-french", "fr", "translate"), "WHISPER_MODEL=small"),
        (parakeet("nemo-parakeet-tdt-0.6b-v2", "fr"), "WHISPER_MODEL=nemo-parakeet-tdt-0.6b-v3"),
        (parakeet("nvidia/parakeet-tdt-0.6b-v2-int8", "fr"), "WHISPER_MODEL=nemo-parakeet-tdt-0.6b-v3"),
        (parakeet("nemo-parakeet-tdt-0.6b-v2", None, "translate"), "WHISPER_MODEL=small"),
        (parakeet("nemo-parakeet-tdt-0.6b-v3", "fr", "translate"), "WHISPER_MODEL=small"),
        (spec("", "fr", engine=SPHINX), "BATCH_ENGINE=faster-whisper"),
        (spec("", None, "translate", engine=SPHINX), "BATCH_ENGINE=faster-whisper"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_one_line_with_the_mend(asked: EngineSpec, fix: str) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        refuse_unsupported(describe_limits(asked))
    line = str(caught.value)
    assert "\n" not in line
    assert fix in line
    assert line.endswith(" (nothing was started)")
    assert ("BATCH_TASK is translate" if asked.task == "translate" else "BATCH_LANGUAGE is fr") in line
    assert caught.value.exit_code == 2


def test_a_model_that_does_not_exist_is_named() -> None:
    assert "there is no Whisper model 'smal.en'" in describe_limits(spec("smal.en"))
    assert "there is no Whisper model" in describe_limits(spec("nemo-parakeet-tdt-0.6b-v2", "fr"))


@pytest.mark.parametrize(
    "asked",
    [spec("small.en", "fr"), parakeet("nemo-parakeet-tdt-0.6b-v2", "fr"), spec("", "fr", engine=SPHINX)],
)
def test_what_is_true_of_every_machine_is_a_problem_of_this_one(asked: EngineSpec) -> None:
    assert describe_limits(asked) in engines.engine_factory(asked.engine).problems(asked)


class Broken(ScriptedFactory):
    """The factory of a package that is out of order."""

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        raise KeyError(spec.model)


def test_an_engine_that_cannot_say_it_keeps_nobody_from_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "engine_factory", lambda _name: Broken())
    assert "KeyError" in describe_limits(spec("any", engine="broken"))


def test_the_terms_say_it_for_every_command(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()

    def agreed(**environ: str) -> str:
        settings = load({"BATCH_SOURCE": str(tmp_path / "audio")} | environ, folder=tmp_path)
        with open_scheduler(settings, remember=False) as made:
            return made.config.unsupported

    assert agreed() == ""
    assert "BATCH_LANGUAGE is de" in agreed(BATCH_LANGUAGE="de", WHISPER_MODEL="small.en")
    assert agreed(BATCH_LANGUAGE="de") == ""
    assert agreed(BATCH_ENGINE="parakeet") == ""
    assert "English only" in agreed(BATCH_ENGINE="parakeet", BATCH_LANGUAGE="ja")
    assert "no Parakeet model" in agreed(BATCH_ENGINE="parakeet", WHISPER_MODEL="nemo-parakeet-tdt-9b")
    assert "float16, int8" in agreed(BATCH_ENGINE="parakeet", WHISPER_COMPUTE_TYPE="bfloat16")


def test_the_tools_of_a_person_at_the_gpu_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    environ = {"BATCH_SOURCE": str(tmp_path / "audio"), "GPU_PROVIDER": "local"}
    environ |= {"BATCH_LANGUAGE": "de", "WHISPER_MODEL": "small.en"}
    with open_gpu_tools(load(environ, folder=tmp_path)) as tools:
        assert "BATCH_LANGUAGE is de" in tools.unsupported


def test_terms_that_cannot_be_read_prevent_no_stop(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    environ = {"BATCH_SOURCE": str(tmp_path / "audio"), "BATCH_VOCABULARY": str(tmp_path / "absent.txt")}
    with open_gpu_tools(load(environ, folder=tmp_path)) as tools:
        assert "BATCH_VOCABULARY names" in tools.unsupported
        assert [machine.instance for machine in tools.machines()] == ["local"]


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    asked = spec("small.en", "fr")
    policy = Policy(name=PolicyName.THRESHOLD, threshold=3)
    made = stage(tmp_path, policy=policy, choose_engine=lambda _language: asked, find_limits=describe_limits)
    yield made
    made.ledger.close()


@pytest.mark.parametrize("chunks", [0, 2, 3])
def test_a_tick_starts_nothing_and_says_so_even_where_it_would_hold(at: Stage, chunks: int) -> None:
    at.upload(chunks)
    at.clock.sleep(600)
    with pytest.raises(MisconfiguredError, match="BATCH_LANGUAGE is fr"):
        tick(at.world, at.config)
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert not [call for call in at.compute.calls if call[0] == "start"]
    assert at.ledger.open_runs() == ()
    assert [message.title for message in at.notes.messages] == ["batchscribe: the tick failed"]


def test_nothing_is_rehearsed_with_it_either(at: Stage) -> None:
    with pytest.raises(MisconfiguredError, match="BATCH_LANGUAGE is fr"):
        rehearsable(at.world, at.config, Act.BOX, guarded=True)
