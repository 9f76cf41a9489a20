"""Context of the commands: settings, console and JSON output."""

from __future__ import annotations

import re
import shutil
import sys
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from batchscribe import settings as configuration
from batchscribe.cli.terminal.layout import fold
from batchscribe.cli.terminal.times import show_times
from batchscribe.core.figures import encode_json, format_size
from batchscribe.core.redaction import printable, printable_json
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings
from batchscribe.wiring.process import apply_settings

UNFOLDED = 10_000
"""Columns if stdout is no terminal and COLUMNS is not set: nothing is folded."""
UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


class PlainConsole(Console):
    """Console that escapes control characters, shows local times and folds lines.

    Object keys and stored records are untrusted. The code that fills a table escapes its cells.
    """

    @property
    def room(self) -> int:
        """Columns of a line; without a limit in a pipe."""
        return self.width if self.width < UNFOLDED else sys.maxsize

    def print(self, *objects: Any, **options: Any) -> None:
        plain = [
            fold(show_times(printable(each, keep="\n\t")), self.room) if isinstance(each, str) else each
            for each in objects
        ]
        if all(isinstance(each, str) for each in objects):
            options["soft_wrap"] = True
        super().print(*plain, **options)


class App:
    """Context object of every command; reads settings on first use."""

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        """Settings given as options: they win over the environment and over `.env`."""
        self.lenient = False
        """True for commands that stop a GPU: they raise settings errors at their end."""
        self.verbose = not sys.stderr.isatty()
        """True if events of the log are shown: by default only without a terminal."""
        self.quiet = False
        self.reads_state = True
        """False for commands that need no state directory, nor rights to the store that keeps it."""

    @property
    def log_level(self) -> str:
        """Lowest level of the events shown; log files have all."""
        return "error" if self.quiet else "info" if self.verbose else "warning"

    def take_source(self, source: str) -> None:
        """Replaces the configured source.

        Results go beside it, unless the environment sets BATCH_OUTPUT.
        """
        self.flags["BATCH_SOURCE"] = source
        origins = configuration.load(flags=self.flags).origins
        if origins.get("BATCH_OUTPUT") != configuration.ENVIRONMENT:
            self.flags["BATCH_OUTPUT"] = source

    def make_relative(self, key: str) -> str:
        """Returns the key below the source; `key` may be a whole URL."""
        return key.removeprefix(self.settings.require("BATCH_SOURCE").rstrip("/") + "/")

    @cached_property
    def settings(self) -> Settings:
        settings = configuration.load(flags=self.flags, lenient=self.lenient)
        apply_settings(settings, log_level=self.log_level)
        if not (self.reads_state and settings.state_url):
            return settings
        from batchscribe.wiring.seams import open_state  # slow to import, and rarely needed

        command = click.get_current_context().find_root()
        return command.with_resource(open_state(settings, lenient=self.lenient))

    def require_state_folder(self, instead: str) -> None:
        """Raises MisconfiguredError if the state directory is in a store."""
        if self.settings.state_url:
            raise MisconfiguredError(
                "BATCH_STATE_DIR is in a store, and this command needs a folder of this machine (nothing was "
                f"started): {instead}"
            )

    def warn_of_names(self) -> None:
        """Prints on stderr which names of settings have no effect."""
        for text in self.settings.warnings:
            print_warning(text)

    @cached_property
    def console(self) -> PlainConsole:
        """Console as wide as COLUMNS or the terminal."""
        width = shutil.get_terminal_size((UNFOLDED, 24)).columns
        return PlainConsole(highlight=False, soft_wrap=width == UNFOLDED, width=width)

    def print_labelled(self, label: str, text: str, *, indent: int) -> None:
        """Prints `text` right of `label`, folded between words; further lines are indented."""
        line = f"{label:<{indent}} {show_times(printable(text))}"
        self.console.print(fold(line, self.console.room, hang=indent + 1), markup=False)


def write_result(app: App, output: Path | None, data: bytes) -> None:
    """Writes the data to a file or stdout. Raises MisconfiguredError."""
    if output is None:
        click.echo(data, nl=False)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise MisconfiguredError(f"the file was not written: {error}; choose another one") from error
    app.console.print(f"wrote {output}, {format_size(len(data))}", markup=False)


def print_warning(text: str) -> None:
    click.echo(printable(f"warning: {text}"), err=True)


def print_json(document: Any) -> None:
    """Prints one JSON document: structs become objects, times ISO 8601, floats rounded."""
    click.echo(printable_json(encode_json(document).decode()))


class Duration(click.ParamType[timedelta]):
    """A duration such as 8h: a number and one of the `units`."""

    name = "duration"

    def __init__(self, units: str, complaint: str, *, number: str = r"\d{1,9}(?:\.\d+)?") -> None:
        self._pattern = re.compile(rf"({number})([{units}])")
        self._complaint = complaint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        match = self._pattern.fullmatch(value.strip())
        if match is None:
            self.fail(self._complaint.format(value=value), param, ctx)
        return float(match[1]) * UNITS[match[2]]


def _take_source(ctx: click.Context, _param: click.Parameter, source: str | None) -> None:
    if source:
        ctx.ensure_object(App).take_source(source)


source_option = click.option(
    "--source",
    help="Source instead of BATCH_SOURCE: s3://bucket/prefix, or a folder.",
    callback=_take_source,
    expose_value=False,
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
pass_app = click.make_pass_decorator(App)
