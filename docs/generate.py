"""Writes the parts of the documentation that come from the code.

`python -m docs.generate` rewrites, in every page, each block between `<!-- generated: NAME -->` and
`<!-- end -->`, and puts the schemas of JSON documents into build/docs-extra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import get_type_hints

import click
import msgspec

from batchscribe import errors
from batchscribe.cli.main import COMMANDS, cli
from batchscribe.core import keys
from batchscribe.core.setting_parsers import Name
from batchscribe.dashboard.metrics import METRICS, PREFIX
from batchscribe.settings import Settings
from docs import documents, money
from docs.tables import table

FOLDER = Path(__file__).parent
EXTRA = FOLDER.parent / "build" / "docs-extra"
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """Returns the page with each of its generated blocks written again."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{PARTS[block['name']]()}\n\n{block[3]}", page)


def pages() -> list[Path]:
    return sorted(FOLDER.rglob("*.md"))


def prose(text: str) -> str:
    """Text of the program as Markdown on one line: `<name>` is no tag."""
    return " ".join(text.split()).replace("<", r"\<")


def describe_commands() -> str:
    context = click.Context(cli, info_name="batchscribe")
    commands = [cli.get_command(context, name) for name in COMMANDS]
    return "\n\n".join(
        part for command in commands if command for part in _describe_command(command, context, 2)
    )


def _describe_command(command: click.Command, parent: click.Context, level: int) -> Iterator[str]:
    """Heading, usage, help, options and example of a command, then of the commands below it."""
    context = click.Context(command, info_name=command.name, parent=parent)
    yield f"{'#' * level} {context.command_path.removeprefix('batchscribe ')}"
    yield f"`{context.command_path} {' '.join(command.collect_usage_pieces(context))}`"
    yield "\n\n".join(map(prose, (command.help or "").split("\n\n")))
    records = [param.get_help_record(context) for param in command.params]
    rows = [(f"`{names}`", prose(text)) for names, text in filter(None, records)]
    if rows:
        yield table(("option", "meaning"), rows)
    if command.epilog:
        label, _, example = command.epilog.partition(": ")
        yield f"{label}: `{example}`"
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from _describe_command(each, context, level + 1)


def describe_settings() -> str:
    hints = get_type_hints(Settings, include_extras=True)
    rows = [
        _describe_setting(hints[each.name].__metadata__[0], each.default)
        for each in fields(Settings)
        if hasattr(hints[each.name], "__metadata__")
    ]
    return table(("name", "default", "allowed"), rows)


def _describe_setting(declared: Name, default: object) -> tuple[str, str, str]:
    other = f" or `{declared.other}`" if declared.other else ""
    secret = "; masked in all output" if declared.secret else ""
    return f"`{declared.name}`{other}", _describe_default(default), f"{prose(declared.allowed)}{secret}"


def _describe_default(value: object) -> str:
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, (int, str, Path)) and value != "":
        return f"`{value.value if isinstance(value, Enum) else value}`"
    return ""


def describe_keys() -> str:
    run, worker, some = "<run>", 0, "KEY"
    machine = f"{run}-<n>"
    rows = (
        (keys.intent(run), "scheduler", "the run as it was opened, before anything is started"),
        (keys.manifest(run, worker), "scheduler", "the work of one worker"),
        (keys.cancel(run, worker), "scheduler", "the request to end a worker"),
        (keys.progress(run, worker), "GPU host", "the worker's progress, replaced every few seconds"),
        (keys.exit_record(run, worker), "GPU host", "how the worker ended"),
        (keys.boot(run), "GPU host", "the boot that accepted the run's claim"),
        (keys.later_boot(run, "<boot>"), "GPU host", "another boot during the run"),
        (keys.host_end(run), "GPU host", "the reason of the power-off"),
        (keys.boot(run, machine), "GPU host", "the same of a machine that the run created"),
        (keys.host_end(run, machine), "GPU host", "the same of a machine that the run created"),
        (keys.settlement(run), "scheduler", "the run with its result and its cost, written once"),
        (keys.single(f"<digest>/<etag>/{run}"), "both", "one failed attempt at one chunk"),
        (keys.compacted("<sha256>"), "scheduler", "many failed attempts, merged"),
        (keys.forgotten("<sha256>"), "scheduler", "attempts that no longer count"),
        (keys.quarantine(some), "scheduler", "a chunk that failed for good"),
        (keys.superseded("<transcript>", "<time>"), "scheduler", "an old transcript that `redo` moved aside"),
        (keys.instance("<instance>"), "scheduler", "an instance that was set up, and the claim on it"),
        (f"{keys.REHEARSALS}<name>/", "scheduler", "all keys of one rehearsal"),
    )
    shown = ((f"`{key.replace(keys.digest(some), '<digest>')}`", who, what) for key, who, what in rows)
    return table(("key", "written by", "content"), shown)


def describe_errors() -> str:
    """The error kinds in the order of the tree, each with its exit code."""
    rows = [
        (f"`{kind.__name__}`", str(kind.exit_code), (kind.__doc__ or "").splitlines()[0])
        for kind in _subclasses(errors.BatchscribeError)
    ]
    return table(("kind", "exit code", "meaning"), rows)


def _subclasses(kind: type[errors.BatchscribeError]) -> Iterator[type[errors.BatchscribeError]]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each
            yield from _subclasses(each)


def describe_metrics() -> str:
    """Each metric with its kind, its labels and its meaning; the last word of its name is the unit."""
    rows = [
        (f"`{PREFIX}{each.name}`", each.kind, ", ".join(f"`{name}`" for name in each.labels), each.meaning)
        for each in METRICS
    ]
    return table(("metric", "kind", "labels", "meaning"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "commands": describe_commands,
    "settings": describe_settings,
    "keys": describe_keys,
    "errors": describe_errors,
    "fixed": money.describe_fixed,
    "function": money.describe_function,
    "prices": money.describe_prices,
    "thresholds": money.describe_thresholds,
    "designs": money.describe_designs,
    "break-even": money.describe_break_even,
    "hosted": money.describe_hosted,
    "original": money.describe_original,
    "documents": documents.describe,
    "metrics": describe_metrics,
}


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
    (EXTRA / "schemas").mkdir(parents=True, exist_ok=True)
    for name, schema in documents.schemas():
        data = msgspec.json.format(msgspec.json.encode(schema), indent=2)
        (EXTRA / "schemas" / f"{name}.json").write_bytes(data + b"\n")


if __name__ == "__main__":
    main()
