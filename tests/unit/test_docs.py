"""The documents name what there is, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batchscribe.cli.main import COMMANDS, cli
from batchscribe.core.run.runs import Outcome
from batchscribe.settings import load

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"batchscribe {name}\b|`{name}`|`{name} ", TEXT), name


def test_every_documented_command_is_there() -> None:
    named = set(re.findall(r"batchscribe ([a-z]+(?:-[a-z]+)*)", TEXT))
    prose = {"transcribes", "is", "looks", "reads", "has"}
    assert named - prose <= set(COMMANDS), named - prose - set(COMMANDS)


def test_every_setting_is_documented(tmp_path: Path) -> None:
    settings = (ROOT / "docs" / "settings.md").read_text()
    missing = [row.name for row in load({}, folder=tmp_path).effective() if f"`{row.name}`" not in settings]
    assert missing == []


def test_every_outcome_is_documented() -> None:
    text = (ROOT / "docs" / "aws.md").read_text()
    quiet = {Outcome.COMPLETED, Outcome.ABANDONED}
    assert [outcome for outcome in Outcome if outcome not in quiet and f"`{outcome}`" not in text] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_front_door_says_what_the_command_says_of_itself(name: str) -> None:
    import click

    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help, name


def test_no_document_names_a_path_of_somebodys_machine() -> None:
    assert not re.search(r"/root/|/tmp/(?!batchscribe-demo|batch-transcribe)", TEXT)
