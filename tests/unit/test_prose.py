"""The words of the field in all prose, and one name for one class."""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CODE = [*SOURCES, *sorted((ROOT / "simulation").rglob("*.py"))]
PROSE = [
    *CODE,
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
]
BANNED = re.compile(
    r"\b(nobody|somebody|anybody|whoever|strangers?|mend(s|ed|ing)?|signs? of life|stands? still"
    r"|weav(e|es|ing)|last word|taken? back|gives? back|afresh|anew|retreat|fruitless|unfit)\b",
    re.IGNORECASE,
)


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Lines and texts: of Python its comments and strings with blanks, of other files everything.

    A string without blanks is a name, as is what an f-string takes in braces.
    """
    if path.suffix != ".py":
        return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    kinds = {tokenize.COMMENT, tokenize.STRING}
    texts = [(token.start[0], token.string) for token in tokens if token.type in kinds]
    return [(line, re.sub(r"\{[^{}]*\}", "", text)) for line, text in texts if " " in text]


def test_no_idiom_stands_for_a_term_of_the_field() -> None:
    # To split a module into tokens takes far longer than to search it.
    suspects = [path for path in PROSE if BANNED.search(path.read_text(encoding="utf-8"))]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {at[0]}"
        for path in suspects
        for line, text in prose_of(path)
        for at in BANNED.finditer(text)
    ]
    assert found == []


@cache
def list_nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_a_docstring_begins_with_one_short_line() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    headlines = [
        (path, (ast.get_docstring(node) or "").partition("\n")[0])
        for path in CODE
        for node in list_nodes(path)
        if isinstance(node, documented)
    ]
    assert [f"{path.name}: {line}" for path, line in headlines if len(line.split()) > 12] == []


def test_every_class_has_a_name_of_its_own() -> None:
    nodes = (node for path in SOURCES for node in list_nodes(path))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_module_is_too_long_to_be_read() -> None:
    long = {path.name: count for path in SOURCES if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_no_folder_has_more_than_25_modules() -> None:
    modules = Counter(path.parent for path in SOURCES)
    assert [folder.name for folder, count in modules.items() if count > 25] == []
