"""The example in each command's help."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from batchscribe.cli.main import cli
from batchscribe.cli.terminal.examples import EXAMPLES


def names(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from names(command, (*prefix, name))
        else:
            yield (*prefix, name)


@pytest.mark.parametrize("words", list(names(cli)), ids=" ".join)
def test_each_help_has_an_example_that_is_valid(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    assert "Example" in shown
    if example := EXAMPLES.get(" ".join(words)):
        assert f"Example: batchscribe {example}" in shown
        assert CliRunner().invoke(cli, [*shlex.split(example), "--help"]).exit_code == 0
