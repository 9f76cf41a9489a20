"""The documents name what there is, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import pytest

from batchscribe.cli.main import COMMANDS, cli
from batchscribe.core.decide.observation import ReasonCode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.settings import load
from docs import generate
from docs.conf import html_css_files, html_static_path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *generate.pages()]
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)
COMING = {"doctor"}
"""Commands that the pages name before they are there."""
FOREIGN = {"GPU_DEVICE_ORDINAL"}
"""Names of other programs that the pages explain."""
OURS = [path for path in DOCUMENTS if path.name != "migration.md"]
"""Pages that name no settings of another program."""
CONTEXT = click.Context(cli, info_name="batchscribe")


def by_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"batchscribe {name}\b|`{name}`|`{name} ", TEXT), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_path)
def test_every_documented_command_and_option_is_there(path: Path) -> None:
    """In each code span and line of code that begins with a command, as far as the next shell word."""
    lines = [
        found[1]
        for code in code_lines(path.read_text())
        for found in re.finditer(r"(?:^|\$ |bin/)batchscribe ([^|#;&]*)", code)
    ]
    assert [(line, each) for line in lines for each in unknown_words(line.split())] == []


def code_lines(page: str) -> Iterator[str]:
    for code in re.findall(r"```.*?```|`[^`]+`", page, re.DOTALL):
        yield from code.splitlines() if code.startswith("```") else [" ".join(code.strip("`").split())]


def unknown_words(words: list[str]) -> list[str]:
    """Commands and options among the words of a command line that are not there."""
    command: click.Command | None = cli
    while isinstance(command, click.Group) and re.match(r"[a-z]", "".join(words[:1])):
        name, *words = words
        if name in COMING:
            return []
        if (command := command.get_command(CONTEXT, name)) is None:
            return [name]
    assert command is not None
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    return [word for word in words if re.match("--[a-z]", word) and word not in known | {"--help"}]


def test_every_setting_is_documented(tmp_path: Path) -> None:
    settings = (ROOT / "docs" / "settings.md").read_text()
    missing = [
        row.name for row in load({}, folder=tmp_path).list_effective() if f"`{row.name}`" not in settings
    ]
    assert missing == []


@pytest.mark.parametrize("path", OURS, ids=by_path)
def test_every_documented_setting_is_there(path: Path, tmp_path: Path) -> None:
    known = {row.name for row in load({}, folder=tmp_path).list_effective()}
    named = set(re.findall(r"\b(?:BATCH|GPU|WHISPER|SLACK)_[A-Z_]*[A-Z]\b", path.read_text()))
    assert named - known - FOREIGN == set()


def test_every_outcome_is_documented() -> None:
    text = (ROOT / "docs" / "aws.md").read_text()
    quiet = {Outcome.COMPLETED, Outcome.ABANDONED}
    assert [outcome for outcome in Outcome if outcome not in quiet and f"`{outcome}`" not in text] == []


def test_every_reason_is_documented() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| \w+ \|", (ROOT / "docs" / "decisions.md").read_text(), re.MULTILINE
    )
    assert sorted(rows) == sorted(ReasonCode)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_front_door_says_what_the_command_says_of_itself(name: str) -> None:
    command = cli.get_command(CONTEXT, name)
    assert command is not None
    assert command.name == name
    assert command.help, name


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_path)
def test_generated_parts_equal_the_code(path: Path) -> None:
    text = path.read_text()
    assert generate.fill(text) == text, "run `python -m docs.generate`"


def test_every_generated_part_is_on_a_page() -> None:
    assert {block["name"] for block in generate.BLOCK.finditer(TEXT)} == set(generate.PARTS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_path)
def test_links_lead_to_pages_and_headings(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text())
    assert [link for link in links if not leads_somewhere(path, link)] == []


def leads_somewhere(path: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    return target.is_file() and (not anchor or anchor in anchors(target.read_text()))


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart-aws.md"])
def test_the_host_is_started_once_before_the_first_tick(name: str) -> None:
    """And `doctor` comes after the set-up, so that no command of the walk fails."""
    walk = [line for line in code_lines((ROOT / name).read_text()) if "batchscribe " in line]
    commands = [line.partition("batchscribe ")[2].partition("#")[0].strip() for line in walk]
    before = commands[commands.index("init") : commands.index("tick")]
    assert [command for command in before if "--start" in command] == ["gpu setup --start"]
    assert before[-3:] == ["gpu setup --start", "doctor", "tick --dry-run"]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    entries = {
        name for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for name in block.split()
    }
    names = {path.relative_to(generate.FOLDER).with_suffix("").as_posix() for path in generate.pages()}
    assert names - entries == {"index"}


def test_the_picture_can_be_read() -> None:
    picture = ET.fromstring((ROOT / "docs" / "architecture.svg").read_text())
    assert picture.find("{*}title") is not None
    assert "prefers-color-scheme: dark" in (picture.findtext("{*}style") or "")
    (style,) = (ROOT / "docs" / name / file for name in html_static_path for file in html_css_files)
    assert "width: max(100%, 44rem)" in style.read_text(), "on a narrow screen it scrolls"


def test_no_document_names_a_path_of_somebodys_machine() -> None:
    assert not re.search(r"/root/|/tmp/(?!batchscribe-demo|batch-transcribe)", TEXT)
