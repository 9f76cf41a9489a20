"""Tables, lines and findings that fit the width of a console."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.segment import Segment, Segments
from rich.table import Table

from batchscribe.core.decide.money import Usd
from batchscribe.core.redaction import printable
from batchscribe.core.run.host import Finding, Grade

GAP = 2
"""Blanks between two columns of a table."""
LABELS = {Grade.PASS: "ok  ", Grade.WARN: "warn", Grade.FAIL: "FAIL"}
_LABEL = re.compile(r"\S {2,}(?=\S)")
"""The gap after a label; text continues below what follows it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    cells: Sequence[str]
    optional: int = 0
    right: bool = False
    folded: int = 1_000
    """Width to which it may be folded before a column is left out."""

    @property
    def width(self) -> int:
        return min(self.folded, max(cell_len(text) for text in (self.name, *self.cells)))


def print_table(console: Console, columns: Sequence[Column]) -> None:
    """Prints the columns that fit the width; no line ends in blanks."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    kept = choose_columns(columns, console.width)
    narrowest = min((column.folded for column in kept), default=0)
    for column in kept:
        justify: Literal["right", "left"] = "right" if column.right else "left"
        fixed = column.right or column.folded > narrowest
        table.add_column(column.name, justify=justify, overflow="fold", no_wrap=fixed)
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(escape(printable(cell)) for cell in row))
    lines = console.render_lines(table, pad=False)
    console.print(Segments(part for line in lines for part in (*_strip_end(line), Segment.line())), end="")


def _strip_end(line: Sequence[Segment]) -> Sequence[Segment]:
    """Removes blanks at the end of a line."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], *(Segment(last.text.rstrip(), last.style) for last in line[-1:])]


def fold(text: str, width: int, *, hang: int | None = None, end: str = "") -> str:
    """Folds each line between words, below the text after its label.

    Without a label, further lines hang two columns further in. `hang` is another column for them; `end` is
    put at the end of each folded line.
    """
    return "\n".join(_fold_line(line, width, hang, end) for line in text.split("\n"))


def _fold_line(line: str, width: int, hang: int | None, end: str) -> str:
    if len(line) <= width:
        return line
    labels = [found.end() for found in _LABEL.finditer(line, 0, width // 2)]
    column = max([len(line) - len(line.lstrip()) + GAP, *labels]) if hang is None else hang
    folded = textwrap.wrap(
        line,
        max(width - len(end), column + 1),
        subsequent_indent=" " * column,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{end}\n".join(folded)


def describe_finding(finding: Finding, width: int, *, indent: str = "") -> str:
    """A line with grade, name and detail, and its fix.

    A fix that does not fit follows on the next line. A folded command of a shell stays one: its lines end
    with a backslash.
    """
    line = f"{indent}{LABELS[finding.level]}  {finding.what:<18} {finding.detail}"
    fix = f" -> {finding.fix}" if finding.fix and finding.level is not Grade.PASS else ""
    if not fix or len(line + fix) <= width:
        return line + fix
    column = len(indent) + 6
    below = f"{'':{column - 1}}{fix}"
    end = " \\" if finding.fix.startswith("aws ") else ""
    return f"{line}\n{fold(below, width, hang=column + 3, end=end)}"


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Leaves out optional columns until the rest fits the width."""
    kept = list(columns)
    while sum(column.width + GAP for column in kept) - GAP > width:
        least = max(kept, key=lambda column: column.optional)
        if not least.optional:
            break
        kept.remove(least)
    return kept


def format_value(value: object) -> str:
    """Text of a value of unknown type; a float is dollars."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"${Usd.parse(value).text(3)}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M} UTC"
        case _:
            return str(value)
