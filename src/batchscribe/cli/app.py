"""Context of the commands: settings, console and JSON output."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import click
import msgspec
from rich.console import Console

from batchscribe import settings as configuration
from batchscribe.adapters.machine import logs
from batchscribe.core.redaction import printable, printable_json
from batchscribe.settings import Settings

WIDTH = 130


class PlainConsole(Console):
    """Console that escapes control characters.

    Object keys and stored records are untrusted. The code that fills a table escapes its cells.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        plain = (printable(each, keep="\n\t") if isinstance(each, str) else each for each in objects)
        super().print(*plain, **options)


class App:
    """Context object of every command; reads settings on first use."""

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        """Settings given as options: they win over the environment and over `.env`."""
        self.lenient = False
        """True for commands that stop a GPU: they raise settings errors at their end."""

    def take_source(self, source: str) -> None:
        """Replaces the configured source.

        Results go beside it, unless the environment sets BATCH_OUTPUT.
        """
        self.flags["BATCH_SOURCE"] = source
        origins = configuration.load(flags=self.flags).origins
        if origins.get("BATCH_OUTPUT") != configuration.ENVIRONMENT:
            self.flags["BATCH_OUTPUT"] = source

    @cached_property
    def settings(self) -> Settings:
        return configured(configuration.load(flags=self.flags, lenient=self.lenient))

    def warn_of_names(self) -> None:
        """Prints on stderr which names of settings have no effect."""
        for text in self.settings.warnings:
            click.echo(printable(f"warning: {text}"), err=True)

    @cached_property
    def console(self) -> Console:
        """Console; unfolded lines if stdout is no terminal."""
        return PlainConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def configured(settings: Settings) -> Settings:
    """Applies the settings to the AWS environment and the log."""
    settings.apply_aws_environment()
    logs.configure(secrets=settings.secrets(), journal_stream=configuration.journal_stream())
    return settings


def print_json(document: Any) -> None:
    """Prints one JSON document: structs become objects, times ISO 8601."""
    text = msgspec.json.format(msgspec.json.encode(document, enc_hook=_plain), indent=2).decode()
    click.echo(printable_json(text))


def _plain(value: object) -> object:
    from batchscribe.core.decide.money import Usd

    if isinstance(value, Usd):
        return value.dollars
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
pass_app = click.make_pass_decorator(App)
