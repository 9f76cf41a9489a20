"""Names that are no settings: typing errors are refused, names of the original scripts are explained."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchscribe.cli.main import cli
from batchscribe.core.original_settings import ORIGINALS, SUPERSEDED, Fate, take_over
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import KNOWN, load

EXAMPLE = """\
AWS_REGION=us-east-2
AWS_ACCOUNT_ID=your-account-id
COGNITO_S3_BUCKET=recordings
GPU_INSTANCE_ID=i-xxxxxxxxxxxxx     # permanent
GPU_HOST=203.0.113.7
BATCH_SIZE=100
BATCH_MAX_PARALLEL_DOWNLOAD=20
BATCH_DOWNLOAD_TIMEOUT=60
BATCH_THRESHOLD=50
BATCH_LIMIT=0
GPU_SSH_KEY_PATH=/home/ubuntu/.ssh/your-key.pem
MAX_RETRY_ATTEMPTS=5
EDGE_LOG_FILE=/var/log/batch-transcription.log
OTHER_TOOL=1
"""


def in_env(folder: Path, text: str) -> Path:
    (folder / ".env").write_text(text)
    (folder / ".env").chmod(0o600)
    return folder


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BATCH_TRESHOLD", "did you mean BATCH_THRESHOLD?"),
        ("GPU_SSH_KEYPATH", "did you mean GPU_SSH_KEY_PATH?"),
        ("GPU_INSTANCE", "did you mean GPU_INSTANCE_"),
        ("WHISPER_MODLE", "did you mean WHISPER_MODEL?"),
        ("CAPTION_COLOUR", "`batchscribe config` lists the names"),
        ("BATCH_ZZZ", "`batchscribe config` lists the names"),
    ],
)
def test_a_typing_error_under_our_prefixes_is_refused_in_both_places(
    tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(MisconfiguredError, match=name) as in_environment:
        load({name: "1"}, folder=tmp_path)
    with pytest.raises(MisconfiguredError, match=name) as in_file:
        load({}, folder=in_env(tmp_path, f"{name}=1\n"))
    assert meant in str(in_environment.value)
    assert meant in str(in_file.value)


@pytest.mark.parametrize(
    "name", ["SLACK_BOT_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]
)
def test_names_of_other_programs_pass(tmp_path: Path, name: str) -> None:
    assert load({name: "1"}, folder=in_env(tmp_path, f"{name}=1\n")).warnings == ()


def test_variables_of_graphics_drivers_pass_in_the_environment_only(tmp_path: Path) -> None:
    assert load({"GPU_DEVICE_ORDINAL": "0", "GPU_MAX_ALLOC_PERCENT": "9"}, folder=tmp_path).warnings == ()
    with pytest.raises(MisconfiguredError, match="GPU_DEVICE_ORDINAL"):
        load({}, folder=in_env(tmp_path, "GPU_DEVICE_ORDINAL=0\n"))


@pytest.mark.parametrize(
    ("name", "meant"), [("AWS_REGON", "AWS_REGION"), ("SLACK_WEBHOOK", "SLACK_WEBHOOK_URL")]
)
def test_a_near_miss_of_a_shared_prefix_is_a_warning(tmp_path: Path, name: str, meant: str) -> None:
    (warning,) = load({name: "x"}, folder=tmp_path).warnings
    assert warning == f"{name} in the environment has no effect: did you mean {meant}?"


def test_names_of_the_original_scripts_are_explained_and_not_refused(tmp_path: Path) -> None:
    filled = EXAMPLE.replace("i-xxxxxxxxxxxxx", "i-0123456789abcdef0").replace("LIMIT=0", "LIMIT=")
    warnings = load({"GPU_HOST": "h", "COGNITO_DOMAIN": "d"}, folder=in_env(tmp_path, filled)).warnings
    assert [text.split(" in ")[0] for text in warnings[:2]] == ["COGNITO_S3_BUCKET", "MAX_RETRY_ATTEMPTS"]
    assert "use BATCH_SOURCE (as s3://BUCKET/users" in warnings[0]
    assert "use BATCH_MAX_ATTEMPTS" in warnings[1]
    assert "ignored: AWS_ACCOUNT_ID, GPU_HOST, BATCH_SIZE, BATCH_MAX_PARALLEL_DOWNLOAD" in warnings[2]
    # In the environment only names under our prefixes count: others belong to other programs.
    assert warnings[3:] == (
        "the environment has settings of the original scripts, not needed any more and ignored: GPU_HOST",
    )


def test_a_missing_source_names_the_bucket_of_the_original_scripts(tmp_path: Path) -> None:
    settings = load({}, folder=in_env(tmp_path, "COGNITO_S3_BUCKET=recordings\n"))
    with pytest.raises(
        MisconfiguredError, match=r"BATCH_SOURCE is not set: .*COGNITO_S3_BUCKET in the \.env"
    ):
        settings.require("BATCH_SOURCE")


@pytest.mark.parametrize("command", ["config", "tick"])
def test_commands_print_what_has_no_effect(tmp_path: Path, command: str) -> None:
    (tmp_path / "in").mkdir()
    in_env(tmp_path, "BATCH_SOURCE=in\nGPU_PROVIDER=local\nBATCH_ENGINE=pocketsphinx\nBATCH_SIZE=100\n")
    with chdir(tmp_path):
        done = CliRunner().invoke(cli, [command, "--json"])
    assert done.stderr.count("not needed any more and ignored: BATCH_SIZE") == 1
    assert "BATCH_SIZE" not in done.stdout


@pytest.mark.parametrize("name", ["GPU_ZZZ", "WHISPER_MODLE"])
def test_a_typing_error_does_not_stop_the_way_out(tmp_path: Path, name: str) -> None:
    settings = load({name: "1"}, folder=tmp_path, lenient=True)
    assert name in settings.problems[0]


@pytest.mark.parametrize("command", [("watchdog",), ("reconcile",), ("gpu", "stop")])
def test_commands_that_only_stop_things_run_first_and_report_it_at_their_end(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "in").mkdir()
    in_env(tmp_path, "BATCH_SOURCE=in\nGPU_PROVIDER=local\nGPU_SSH_KEYPATH=x\n")
    with chdir(tmp_path), pytest.raises(MisconfiguredError, match="GPU_SSH_KEYPATH"):
        cli.main([*command], standalone_mode=False)
    assert (tmp_path / ".batchscribe").is_dir() or command == ("gpu", "stop")


def test_the_table_of_the_original_scripts_fits_the_settings() -> None:
    kept = {name for name, original in ORIGINALS.items() if original.fate is Fate.KEPT}
    successors = {original.successor for original in ORIGINALS.values()} - {""}
    assert kept | successors <= KNOWN
    assert not SUPERSEDED & KNOWN


def test_an_old_file_is_taken_over_with_a_line_on_each_name() -> None:
    old = dict(line.split("  ")[0].strip().split("=", 1) for line in EXAMPLE.splitlines())
    taken = take_over(old | {"AWS_PROFILE": "work"}, KNOWN)
    assert taken.values == {
        "AWS_REGION": "us-east-2",
        "BATCH_SOURCE": "s3://recordings/users",
        "BATCH_THRESHOLD": "50",
        "BATCH_MAX_ATTEMPTS": "5",
        "AWS_PROFILE": "work",
    }
    assert len(taken.lines) == len(old) + 1
    lines = "\n".join(taken.lines)
    assert "BATCH_THRESHOLD: kept (" in lines
    assert "COGNITO_S3_BUCKET: renamed to BATCH_SOURCE (as s3://BUCKET/users" in lines
    assert "BATCH_SIZE: not needed any more (" in lines
    assert "OTHER_TOOL: unknown (" in lines


def test_the_guide_for_the_original_scripts_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    section = text.partition("## Settings\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*) \|$", section, re.MULTILINE))
    assert rows == {
        name: original.fate
        + (f" to `{original.successor}`" if original.successor else "")
        + f" | {original.note}"
        for name, original in ORIGINALS.items()
    }


def test_a_missing_setting_leads_to_init_only_if_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="`batchscribe init` writes that file"):
        load({}, folder=tmp_path).require("BATCH_SOURCE")
    with pytest.raises(MisconfiguredError) as caught:
        load({}, folder=in_env(tmp_path, "BATCH_LIMIT=1\n")).require("BATCH_SOURCE")
    assert "init" not in str(caught.value)
