"""docs/quickstart-local.md as a user types it, and the documents that docs/reference/json.md describes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchscribe.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart-local.md").read_text()
(SETTINGS,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
STEPS = [
    (command, lines.splitlines())
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command, lines in re.findall(r"^\$ batchscribe (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
ROWS = re.findall(
    r"^\| `([^`]*) --json`.*? \| (.*) \|$", (ROOT / "docs/reference/json.md").read_text(), re.MULTILINE
)
SHOWN = {"scan", "tick --dry-run", "status", "quarantine list", "engines", "iam-policy", "gpu status"}
"""Commands whose document needs neither a cloud nor work to be done."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the page, in which the commands run."""
    folder = tmp_path_factory.mktemp("first-hour")
    session = folder / "my-recordings" / "morning-walk"
    session.mkdir(parents=True)
    for name in ("chunk-001.webm", "chunk-002.ogg"):
        shutil.copy(ROOT / "src/batchscribe/demo/audio/morning-walk" / name, session)
    (folder / ".env").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in [each for each in os.environ if each.startswith(("AWS_", "BATCH_", "GPU_", "WHISPER_"))]:
            patch.delenv(name)
        yield folder


def run(command: str) -> Result:
    return CliRunner().invoke(cli, shlex.split(command), standalone_mode=False, catch_exceptions=False)


def plain(line: str) -> str:
    """A line of output without what differs between two runs: names, numbers and widths."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"\d{8}-\d{6}-[0-9a-f]{6}|  +", " ", line)).strip()


def test_the_commands_print_what_the_page_shows(project: Path) -> None:
    assert len(STEPS) >= 7
    for command, lines in STEPS:
        result = run(command)
        assert result.return_value in {None, 0}, (command, result.output)
        printed = {plain(line) for line in result.stdout.splitlines()}
        assert [line for line in lines if plain(line) not in printed] == [], (command, result.stdout)
    assert (project / "my-recordings" / "morning-walk" / "transcript.vtt").is_file()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", sorted(SHOWN))
def test_json_has_the_documented_keys(command: str) -> None:
    document = json.loads(run(f"{command} --json").stdout)
    (described,) = [text for name, text in ROWS if name == command.removesuffix(" --dry-run")]
    assert set(document) == keys_in(described)


def keys_in(text: str) -> set[str]:
    """The names in a row: without those in brackets, and without those after a colon."""
    outer = re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", text)
    return {name for part in outer.split(";") for name in re.findall(r"`(\w+)`", part.partition(":")[0])}
