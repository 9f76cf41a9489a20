"""Questions of `batchscribe init`; each answer is checked at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from batchscribe.core.redaction import printable
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.wiring.init import make_absolute, read_answers

T = TypeVar("T")

Check = Callable[[str], str]
"""Returns why an answer is refused; empty if it is accepted."""


class Interview:
    """Collects settings from options, taken-over values, defaults and prompts.

    `given` are answers from options: they are not asked for. With `yes` nothing is asked: a default is taken,
    and a question without one goes to `missing`.
    """

    def __init__(self, values: Mapping[str, str], given: Mapping[str, str], *, home: Path, yes: bool) -> None:
        self.values = dict(values)
        self.home = home
        self.given = {name: text for name, text in given.items() if text}
        self.yes = yes
        self.missing: list[str] = []
        self.unset: list[str] = []
        """Settings without which no GPU is started; the file is written without them."""

    def ask(
        self,
        name: str,
        question: str,
        default: str = "",
        *,
        check: Check | None = None,
        shape: Callable[[str], str] = str.strip,
        optional: bool = False,
        numbers: int = 0,
    ) -> str:
        """Asks for a setting until the answer is accepted, and returns it.

        `shape` turns the text of an answer into the value of the setting, e.g. a number of a list with
        `numbers` rows.
        """
        default = self.values.pop(name, "") or default
        if name in self.given or self.yes:
            text = shape(self.given.get(name, default))
            if problem := self._describe_problem(name, text, check):
                raise MisconfiguredError(f"{problem} (nothing was written)")
            if not text and not optional:
                self.missing.append(f"{name}: {question}")
        else:
            text = self._prompt(name, question, default, check, shape, optional=optional, numbers=numbers)
        if text:
            self.values[name] = text
        return text

    def ask_once(self, question: str, default: str) -> str:
        """Asks for a text that is no setting."""
        return default if self.yes else str(click.prompt(question, default=default))

    def peek(self, name: str) -> str:
        """Answer to a question that may come later; empty if open."""
        return self.given.get(name) or self.values.get(name, "")

    def make_absolute(self, text: str) -> str:
        """A path from the folder of `.env`; URLs and empty texts stay."""
        return make_absolute(text.strip(), self.home)

    def read(self, subject: str, act: Callable[[], T]) -> T | None:
        """Result of a read of AWS; prints a refusal and returns None."""
        try:
            return act()
        except BatchscribeError as error:
            print_line(f"{subject} not read: {error}")
            return None

    def confirm(self, question: str) -> bool:
        """Asks before something is created or changed; the default is no."""
        return not self.yes and click.confirm(question, default=False)

    def refuse_missing(self) -> None:
        """Raises MisconfiguredError after a list of the questions without an answer."""
        for line in self.missing:
            click.echo(f"missing: {line}", err=True)
        if self.missing:
            raise MisconfiguredError("nothing was written: answer these with options, or without --yes")

    def refuse_unset(self, path: Path) -> None:
        """Raises MisconfiguredError if a start needs further settings."""
        if self.unset:
            raise MisconfiguredError(
                f"{path} was written without {', '.join(self.unset)}: no GPU is started until the first of "
                "the steps above is done"
            )

    def _prompt(
        self,
        name: str,
        question: str,
        default: str,
        check: Check | None,
        shape: Callable[[str], str],
        *,
        optional: bool,
        numbers: int,
    ) -> str:
        offered = default if default or optional else None
        while True:
            text = shape(click.prompt(question, default=offered, show_default=bool(default)))
            problem = self._describe_problem(name, text, check)
            if not problem:
                return text
            listed = f", or 1 to {numbers} for a row of the list" if numbers and text.isdigit() else ""
            print_line(f"  {problem}{listed}")

    def _describe_problem(self, name: str, text: str, check: Check | None) -> str:
        if not text:
            return ""
        try:
            read_answers({**self.values, name: text})
            return check(text) if check else ""
        except BatchscribeError as error:
            return str(error)


def print_line(text: str) -> None:
    click.echo(printable(text, keep="\n"))
