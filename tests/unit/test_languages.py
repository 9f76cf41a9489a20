"""A model that cannot do what the settings ask is refused by its name, before a dollar is spent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscribe.controller.rehearsal import Act
from batchscribe.controller.rehearsal import check as rehearsable
from batchscribe.controller.tick import tick
from batchscribe.core.instances import InstanceState
from batchscribe.core.languages import refuse_unfit
from batchscribe.core.manifest import EngineSpec
from batchscribe.core.policy import Policy, PolicyName
from batchscribe.errors import MisconfiguredError
from support.world import INSTANCE, Stage, stage

WHISPER = "faster-whisper"


def spec(
    model: str, language: str | None = None, task: str = "transcribe", engine: str = WHISPER
) -> EngineSpec:
    return EngineSpec(engine=engine, model=model, language=language, task=task)


@pytest.mark.parametrize(
    "fine",
    [
        spec("small.en"),
        spec("small.en", "en"),
        spec("small", "fr"),
        spec("small", "fr", "translate"),
        spec("/models/enough", "fr"),
        spec("parakeet-tdt-0.6b-v3", "fr"),
        spec("parakeet-tdt-0.6b-v2", "en"),
        spec("large-v3-turbo", "fr"),
        spec("", "en", engine="pocketsphinx"),
    ],
    ids=str,
)
def test_what_a_model_can_do_is_not_refused(fine: EngineSpec) -> None:
    refuse_unfit(fine)


@pytest.mark.parametrize(
    ("unfit", "mend"),
    [
        (spec("small.en", "fr"), "WHISPER_MODEL=small"),
        (spec("small.en", None, "translate"), "WHISPER_MODEL=small"),
        (spec("small.en", "en", "translate"), "WHISPER_MODEL=small"),
        (spec("/models/Small.EN/", "fr"), "WHISPER_MODEL=small"),
        (spec("parakeet-tdt-0.6b-v2", "fr"), "WHISPER_MODEL=parakeet-tdt-0.6b-v3"),
        (spec("nvidia/parakeet-tdt-0.6b-v2-int8", "fr"), "WHISPER_MODEL=parakeet-tdt-0.6b-v3"),
        (spec("parakeet-tdt-0.6b-v2", None, "translate"), "WHISPER_MODEL=small"),
        (spec("parakeet-tdt-0.6b-v3", "fr", "translate"), "WHISPER_MODEL=small"),
        (spec("large-v3-turbo", "fr", "translate"), "WHISPER_MODEL=small"),
        (spec("turbo", None, "translate"), "WHISPER_MODEL=small"),
        (spec("", "fr", engine="pocketsphinx"), "BATCH_ENGINE=faster-whisper"),
        (spec("", None, "translate", engine="pocketsphinx"), "BATCH_ENGINE=faster-whisper"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_one_line_with_the_mend(unfit: EngineSpec, mend: str) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        refuse_unfit(unfit)
    line = str(caught.value)
    assert "\n" not in line
    assert mend in line
    assert ("BATCH_TASK is translate" if unfit.task == "translate" else "BATCH_LANGUAGE is fr") in line
    assert caught.value.exit_code == 2


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(
        tmp_path, policy=Policy(name=PolicyName.THRESHOLD, threshold=3), engine=spec("small.en", "fr")
    )
    yield made
    made.ledger.close()


@pytest.mark.parametrize("chunks", [0, 2, 3])
def test_a_tick_starts_nothing_and_says_so_even_where_it_would_hold(at: Stage, chunks: int) -> None:
    at.upload(chunks)
    at.clock.sleep(600)
    with pytest.raises(MisconfiguredError, match="BATCH_LANGUAGE is fr"):
        tick(at.world, at.terms)
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert not [call for call in at.compute.calls if call[0] == "start"]
    assert at.ledger.open_runs() == ()
    assert [message.title for message in at.notes.messages] == ["batchscribe: the tick failed"]


def test_nothing_is_rehearsed_with_it_either(at: Stage) -> None:
    with pytest.raises(MisconfiguredError, match="BATCH_LANGUAGE is fr"):
        rehearsable(at.world, at.terms, Act.BOX, guarded=True)
