"""Tables that fit the width of a console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from batchscribe.core.redaction import printable

GAP = 2
"""Blanks between two columns of a table."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; the highest `optional` is left out first, 0 never."""

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
    """Prints the columns that fit the width."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    kept = choose_columns(columns, console.width)
    narrowest = min((column.folded for column in kept), default=0)
    for column in kept:
        justify: Literal["right", "left"] = "right" if column.right else "left"
        fixed = column.right or column.folded > narrowest
        table.add_column(column.name, justify=justify, overflow="fold", no_wrap=fixed)
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*(escape(printable(cell)) for cell in row))
    console.print(table)


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Leaves out optional columns until the rest fits the width."""
    kept = list(columns)
    while sum(column.width + GAP for column in kept) - GAP > width:
        least = max(kept, key=lambda column: column.optional)
        if not least.optional:
            break
        kept.remove(least)
    return kept
