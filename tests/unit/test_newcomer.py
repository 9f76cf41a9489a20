"""Mistakes of a new user at the command line, and what the commands print about them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from botocore.exceptions import EndpointConnectionError, NoRegionError
from click.testing import CliRunner, Result

from batchscribe.adapters.aws.clients import Api
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.adapters.stores.obstore_store import ObstoreStore
from batchscribe.adapters.stores.rules import Action
from batchscribe.cli.main import cli
from batchscribe.controller.run_message import run_message
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.policy import Hold, decide
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, MisconfiguredError
from batchscribe.settings import load
from batchscribe.wiring.init import make_absolute
from batchscribe.wiring.stores import open_store
from support import values
from support.cli import app_of

AUDIO = b"12345" * 1000
SPOKEN = b'{"text": "hello", "segments": [{"text": "hello", "start": 1.0, "end": 2.0}]}'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("calls/chunk-001.mp3", "calls/chunk-002.mp3", "calls/notes.txt", "one.mp3"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(AUDIO)
    return tmp_path / "data"


def invoke(source: Path, *words: str, **names: str) -> Result:
    """A command as in a folder with these settings; errors of ours are in `exception`."""
    app = app_of(source, **names)
    command: click.Command = cli
    context = click.Context(cli)
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest.pop(0))
        assert found
        command = found
    return CliRunner().invoke(command, rest, obj=app)


def code_of(done: Result) -> int:
    return done.exception.exit_code if isinstance(done.exception, BatchscribeError) else done.exit_code


def test_there_is_nothing_to_redo_before_the_first_transcript(source: Path) -> None:
    assert invoke(source, "redo", "calls", "--yes").output == (
        "There is nothing to redo: 2 chunks not transcribed yet, which the next run takes. "
        "Nothing was changed.\n"
    )
    assert not (source / "_batchscribe").exists()
    (source / "calls" / "transcription-chunk-001.json").write_bytes(b"{}")
    redone = invoke(source, "redo", "calls", "--yes").output
    assert "1 chunk pending again; old transcripts in " in redone
    assert "`batchscribe run` transcribes now" in " ".join(redone.split())


def test_an_incomplete_export_names_what_is_missing_and_why(source: Path) -> None:
    (source / "calls" / "transcription-chunk-001.json").write_bytes(SPOKEN)
    (source / "calls" / "chunk-003.dss").write_bytes(AUDIO)
    done = invoke(source, "export", "calls")
    assert (done.exit_code, done.stdout.split("\n\n")) == (0, ["hello", "[missing: chunk-002.mp3]", ""])
    assert done.stderr == (
        "warning: session 'calls' is incomplete: 2 of 3 chunks missing (1 pending, 1 in an unsupported "
        "format), the rest is in its transcript; see `batchscribe why calls/chunk-002.mp3`\n"
    )
    parts = json.loads(invoke(source, "export", "calls", "--json").stdout)["parts"]
    assert [part["flags"] for part in parts] == [[], ["missing"]]


def test_a_pause_holds_a_run_by_hand_and_its_help_says_so(source: Path) -> None:
    assert "A pause and the day's budget hold it, too" in invoke(source, "run", "--help").output
    seen = values.observation(paused_until=values.NOW + timedelta(hours=1))
    held = decide(seen, Policy(manual=True))
    assert isinstance(held, Hold)
    assert "`batchscribe resume` ends it; a pause holds `run`, too" in held.reason.sentence


def test_the_release_of_a_quarantine_names_what_follows(source: Path) -> None:
    assert invoke(source, "quarantine", "release", "--all").output == (
        "nothing is quarantined: nothing was released\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        "why nosuch",
        "why nosuch.mp3",
        "why nosuch.dss",
        "export nosuch",
        "redo nosuch --yes",
        "run nosuch",
        "quarantine release nosuch.mp3",
        "logs nosuch",
        "reconcile --forget nosuch",
        "reconcile --adopt nosuch",
    ],
)
def test_an_unknown_key_session_or_run_has_one_exit_code(source: Path, command: str) -> None:
    done = invoke(source, *command.split())
    assert (code_of(done), "nosuch" in str(done.exception)) == (1, True), done.output


@pytest.mark.parametrize(
    ("text", "meant"),
    [("s3:/x/y", "s3://x/y"), ("S3:x", "s3://x"), ("file:/data", "file:///data"), ("gs:/b", "gs://b")],
)
def test_a_mistyped_url_is_no_folder(tmp_path: Path, text: str, meant: str) -> None:
    with pytest.raises(MisconfiguredError, match=f"did you mean {meant}\\?"):
        load({"BATCH_SOURCE": text}, folder=tmp_path)
    assert make_absolute(text, tmp_path) == text
    assert load({"BATCH_SOURCE": f"./{text}"}, folder=tmp_path).source.startswith("file:///")


def test_a_missing_region_is_named_with_its_setting() -> None:
    api = Api[Any]("ec2", None, {})
    missing = pytest.raises(MisconfiguredError, match="no AWS region is set for EC2: put AWS_REGION")
    with missing, api.convert_errors("ec2:DescribeInstances", "i-1"):
        raise NoRegionError


def test_a_region_that_boto3_does_not_know_is_named_with_what_did_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = "us-east-9 is not a region of EC2: did you mean us-east-"

    def message(region: str, address: str = "https://ec2.us-east-9.amazonaws.com/") -> str:
        api = Api[Any]("ec2", region, {})
        with (
            pytest.raises(ComputeUnavailableError) as caught,
            api.convert_errors("ec2:DescribeInstances", "i-1"),
        ):
            raise EndpointConnectionError(endpoint_url=address)
        return str(caught.value)

    assert unknown in message("us-east-9")
    assert "did you mean" not in message("us-east-9", "http://127.0.0.1:1/")
    assert "did you mean" not in message("us-gov-west-1", "https://ec2.us-gov-west-1.amazonaws.com/")

    def listing(region: str) -> str:
        store = open_store("s3://my-bucket/x", region=region)
        assert isinstance(store, ObstoreStore)
        return str(store._to_own_error(OSError("no address"), Action.LIST, ""))

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert unknown in listing("us-east-9")
    assert "check the network" in listing("us-east-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert "did you mean" not in listing("us-east-9")


def test_a_folder_that_cannot_be_read_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> NoReturn:
        raise PermissionError(13, "denied")

    store = DirectoryStore(source)
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(MisconfiguredError, match=f"^{source}: Permission denied; grant the user"):
        list(store.list())
    with pytest.raises(MisconfiguredError, match=r"^'calls/' in .*: Permission denied; grant the user"):
        list(store.list("calls/"))


def test_config_shows_values_that_follow_from_others(source: Path) -> None:
    rows = [line.split() for line in invoke(source, "config").output.splitlines()]
    values = {row[0]: row[1] for row in rows}
    assert values["BATCH_CONTROL"] == f"{source.as_uri()}/_batchscribe"
    assert (values["BATCH_POLL_SECONDS"], values["BATCH_LANGUAGE"]) == ("0.25", "auto")
    assert values["BATCH_LIMIT"] == "-"
    assert json.loads(invoke(source, "config", "--json").stdout)["BATCH_LANGUAGE"]["value"] is None


def test_an_error_is_printed_once(source: Path) -> None:
    done = invoke(source / "nosuch", "run")
    assert "there is no folder" in str(done.exception)
    assert done.output == ""


def test_a_message_has_two_digits_of_dollars() -> None:
    run = values.run(cost=Usd.parse("0.2630"), audio_seconds=90.0, chunks_done=1)
    assert "1 of 1 chunk done" in (body := run_message(run, left=[], quarantined=[], passed_over={}).body)
    assert "1.5 min of audio, at most $0.26 on" in body
