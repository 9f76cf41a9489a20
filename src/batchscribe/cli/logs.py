"""`logs`: the log of a run, as lines for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

import click

from batchscribe.cli.app import App, json_option, pass_app
from batchscribe.cli.terminal.times import show_times
from batchscribe.core.redaction import printable
from batchscribe.wiring.process import find_log, open_clock, parse_line

FOLLOW_SECONDS = 0.5


@click.command()
@click.argument("run", required=False)
@click.option("-f", "--follow", is_flag=True, help="Wait for more lines until interrupted.")
@json_option
@pass_app
def logs(app: App, run: str | None, *, follow: bool, as_json: bool) -> None:
    """Show the log of RUN, by default of the last run.

    RUN is an id, or a part of it.
    """
    path = find_log(app.settings.log_dir, run or "")
    with path.open(encoding="utf-8") as file:
        for line in _read_lines(file, follow=follow):
            click.echo(_as_json(line) if as_json else describe_line(line))


def describe_line(line: str) -> str:
    """Formats a JSON line of a log: time, level, event, fields."""
    found = parse_line(line)
    level = "" if found.level in {"", "info"} else f"{found.level.upper()} "
    at = show_times(f"{found.time.replace('T', ' ')} UTC ") if found.time else ""
    return printable(f"{at}{level}{found.text}")


def _as_json(line: str) -> str:
    """A line of JSON; a line of text becomes an event."""
    return line if line.startswith("{") else json.dumps({"event": line}, ensure_ascii=False)


def _read_lines(file: TextIO, *, follow: bool) -> Iterator[str]:
    while True:
        if line := file.readline():
            yield line.rstrip("\n")
        elif follow:
            open_clock().sleep(FOLLOW_SECONDS)
        else:
            return
