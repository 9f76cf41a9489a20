"""One style of JSON for all commands, and the options that all reading commands have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from batchscribe.cli.app import App
from batchscribe.cli.main import COMMANDS, cli, main
from batchscribe.cli.status import config
from batchscribe.controller.commands import overview
from batchscribe.core.figures import encode_json
from batchscribe.errors import BatchscribeError, MissingRightError, StoreUnavailableError
from batchscribe.settings import MASK, load

READING = {
    "init",
    "scan",
    "status",
    "why",
    "redo",
    "export",
    "run",
    "simulate",
    "quarantine list",
    "quarantine release",
}
"""Commands about the source."""
WITHOUT_JSON = {"demo", "init", "install systemd", "install cron", "uninstall", "pause", "resume", "worker"}
WITHOUT_JSON |= {
    "metrics",
    "lane",
    "completion",
    "dashboard",
    "notify",
    "gpu start",
    "gpu stop",
    "gpu ssh",
    "gpu check",
    "gpu image",
    "gpu setup",
}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_reading_commands_take_a_source_and_print_json() -> None:
    found = {
        name: {option for each in command.params for option in each.opts} for name, command in commands(cli)
    }
    assert len(found) > len(COMMANDS)
    assert {name for name, options in found.items() if "--source" in options} == READING
    assert {name for name, options in found.items() if "--json" not in options} == WITHOUT_JSON


def test_settings_are_numbers_texts_and_null(tmp_path: Path) -> None:
    app = App()
    given = {"BATCH_THRESHOLD": "7", "BATCH_MAX_DOLLARS_PER_DAY": "2.5", "SLACK_WEBHOOK_URL": "https://a/b"}
    app.__dict__["settings"] = load(given, folder=tmp_path)
    shown: dict[str, Any] = json.loads(CliRunner().invoke(config, ["--json"], obj=app).stdout)
    values = {name: row["value"] for name, row in shown.items()}
    assert (values["BATCH_THRESHOLD"], values["BATCH_MAX_DOLLARS_PER_DAY"]) == (7, 2.5)
    assert values["BATCH_MAX_WAIT_HOURS"] == 24
    assert values["BATCH_SOURCE"] is None
    assert values["SLACK_WEBHOOK_URL"] == MASK
    lines = CliRunner().invoke(config, [], obj=app).stdout.splitlines()
    rows = {name: value for name, value, *_ in map(str.split, lines)}
    assert (rows["BATCH_MAX_WAIT_HOURS"], rows["BATCH_SOURCE"]) == ("24", "-")


def test_floats_are_rounded() -> None:
    document = {"cost": 0.008672222222222222, "list": [1.5, 2], "text": "0.1234567"}
    assert json.loads(encode_json(document)) == {"cost": 0.008672, "list": [1.5, 2], "text": "0.1234567"}


@pytest.mark.parametrize("command", ["status", "scan", "quarantine list", "redo --stale"])
def test_a_source_replaces_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "rec").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("BATCH_SOURCE", "BATCH_OUTPUT", "GPU_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(cli, [*command.split(), "--source", "./rec", "--json"], standalone_mode=False)
    assert result.exception is None, result.output
    assert isinstance(json.loads(result.stdout), dict)


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("error", [StoreUnavailableError("no answer"), MissingRightError("no answer")])
def test_a_status_without_an_answer_of_the_store_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BatchscribeError, options: list[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overview, "observe", fail)
    done = CliRunner().invoke(cli, ["status", *options], env={"BATCH_SOURCE": str(tmp_path)})
    assert done.exit_code == error.exit_code
    if options:
        assert json.loads(done.stdout)["error"] == "no answer"
    else:
        assert re.search(r"^Error +no answer$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [["scan", "--jsn"], ["sacn"], ["why"]])
def test_wrong_usage_is_a_document_too(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["batchscribe", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    document = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["exit_code"], document["kind"]) == (2, 2, "MisconfiguredError")
    assert document["error"]
