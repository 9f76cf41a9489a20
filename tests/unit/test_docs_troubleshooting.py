"""The messages in docs/troubleshooting.md are messages of the program, and no family is left out."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscribe.core.messages import describe_install

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "batchscribe"
_, MESSAGES = (ROOT / "docs" / "troubleshooting.md").read_text().split("\n## Messages\n")
FRAGMENTS = re.findall(r"^\| `([^|]+)` \|", MESSAGES, re.MULTILINE)
RAISED = re.compile(r"(Misconfigured|Credentials|Gpu|Refused|NotOurs|Launch|NotStopped|DamagedLedger)Error")


def text_of(node: ast.AST) -> str:
    """Text of a string, with `…` for each value in it; empty for everything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def raised_in(tree: ast.AST) -> Iterator[str]:
    """Texts of the errors that a user sees, without those that pass on another error's text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = text_of(node.exc.args[0])
            if RAISED.search(ast.unparse(node.exc.func)) and text.strip(" …:;"):
                yield text


def matches(fragment: str, texts: str) -> bool:
    """True if a line of the texts is this message."""
    return re.search(".*".join(map(re.escape, fragment.split("…"))), texts.replace("`", "")) is not None


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}


def test_the_program_prints_the_messages(trees: dict[Path, ast.Module]) -> None:
    texts = "\n".join(text for tree in trees.values() for text in map(text_of, ast.walk(tree)))
    assert [each for each in FRAGMENTS if not matches(each, texts)] == []


def test_the_messages_of_each_module_have_an_entry(trees: dict[Path, ast.Module]) -> None:
    missing = {}
    for path, tree in trees.items():
        raised = [] if "testing" in path.parts else list(raised_in(tree))
        if raised and not any(matches(fragment, "\n".join(raised)) for fragment in FRAGMENTS):
            missing[path.relative_to(SOURCE).as_posix()] = raised
    assert missing == {}


def test_each_alert_has_an_entry(trees: dict[Path, ast.Module]) -> None:
    calls = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    titles = {
        text
        for call in calls
        if ast.unparse(call.func) in {"alert", "send_alert"}
        for text in map(text_of, call.args)
        if text.startswith("batchscribe: ")
    }
    assert len(titles) > 10
    assert titles <= set(FRAGMENTS)


def test_fixes_install_extras_that_exist_from_the_sources(trees: dict[Path, ast.Module]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    calls = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    first = {"describe_install": 0, "require_extra": 1}
    named = [arg for call in calls for arg in call.args[first.get(ast.unparse(call.func), len(call.args)) :]]
    given = {arg.value for arg in named if isinstance(arg, ast.Constant)}
    assert {"aws", "gpu"} <= given <= set(extras)
    texts = [text for tree in trees.values() for text in map(text_of, ast.walk(tree))]
    assert not [text for text in texts if re.search(r"install '?batchscribe\[", text)]
    assert describe_install("plot") == "pip install --editable '.[plot]' in the folder of the sources"
