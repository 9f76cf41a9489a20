from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import chdir
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe import aws_environment
from batchscribe.cli.main import cli
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import IfRunning, PolicyName
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import MASK, Settings, load

CANARY = "canary-7f3a91"


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / ".env"
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(folder: Path, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(MisconfiguredError) as caught:
        load(environ or {}, folder=folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    settings = load({}, folder=tmp_path)
    assert (settings.policy, settings.threshold, settings.limit) == (PolicyName.THRESHOLD, 100, None)
    assert settings.max_wait == timedelta(hours=24)
    assert settings.max_runtime == timedelta(hours=2)
    assert settings.check_interval == timedelta(hours=1)
    assert settings.min_age == timedelta(minutes=5)
    assert (settings.launch, settings.cloud_guard, settings.provider) == ("auto", "off", "local")
    assert settings.if_running is IfRunning.HOLD
    assert (settings.task, settings.channels, settings.chunk_overlap_ms) == ("transcribe", "mix", None)
    assert settings.state_dir == tmp_path / ".batchscribe"
    assert settings.reports_dir == tmp_path / "batch-reports"
    assert set(settings.origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("output", "control", "name"),
    [
        ("s3://b/out", "s3://b/audio/control", "BATCH_SOURCE"),
        ("s3://b/out", "s3://b/audio", "BATCH_SOURCE"),
        ("s3://b/out", "s3://b/out/control", "BATCH_OUTPUT"),
        ("", "s3://b/audio/_batchscribe/more", "BATCH_SOURCE"),
    ],
)
def test_control_objects_are_not_put_among_audio_or_results(
    tmp_path: Path, output: str, control: str, name: str
) -> None:
    environ = {"BATCH_SOURCE": "s3://b/audio", "BATCH_OUTPUT": output, "BATCH_CONTROL": control}
    message = refusal(tmp_path, environ)
    assert f"BATCH_CONTROL is inside {name}" in message


@pytest.mark.parametrize(
    "control", ["s3://b/audio-control", "s3://b", "s3://c/audio", "s3://b/audio/_batchscribe"]
)
def test_control_objects_have_a_place_of_their_own_or_the_default_one(tmp_path: Path, control: str) -> None:
    settings = load({"BATCH_SOURCE": "s3://b/audio/", "BATCH_CONTROL": f"{control}/"}, folder=tmp_path)
    assert settings.control == control


def test_flag_beats_environment_beats_dotenv(tmp_path: Path) -> None:
    write(tmp_path, "BATCH_THRESHOLD=10\nBATCH_LIMIT=7\nBATCH_POLICY=now\nWHISPER_MODEL=tiny\n")
    settings = load(
        {"BATCH_THRESHOLD": "50", "BATCH_LIMIT": "8"}, folder=tmp_path, flags={"BATCH_LIMIT": "9"}
    )
    assert (settings.threshold, settings.limit, settings.model) == (50, 9, "tiny")
    wanted = {"BATCH_THRESHOLD": "environment", "BATCH_LIMIT": "flag", "BATCH_POLICY": ".env"}
    assert {name: settings.origins[name] for name in wanted} == wanted


def test_an_empty_value_is_the_default_and_hides_no_lower_layer(tmp_path: Path) -> None:
    write(tmp_path, "BATCH_THRESHOLD=\nBATCH_LIMIT=3\n")
    settings = load({"BATCH_LIMIT": " "}, folder=tmp_path)
    assert (settings.threshold, settings.limit) == (100, 3)


def test_dotenv_is_parsed_and_never_run_or_expanded(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    write(
        tmp_path,
        f'export WHISPER_MODEL="$(touch {mark})"  # a comment\nBATCH_ENGINE=auto\n'
        "BATCH_LIVE_LOCK='${HOME}/x'\n",
    )
    settings = load({}, folder=tmp_path)
    assert settings.model == f"$(touch {mark})"
    assert settings.live_lock == "${HOME}/x"
    assert not mark.exists()


def test_an_unreadable_line_is_named_by_number(tmp_path: Path) -> None:
    write(tmp_path, "BATCH_THRESHOLD=5\n\nthis is not a setting\n")
    assert "line 3" in refusal(tmp_path)


def test_an_unknown_name_points_to_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "BATCH_TRESHOLD=5\nUNRELATED=1\n")
    message = refusal(tmp_path)
    assert "BATCH_TRESHOLD" in message
    assert "BATCH_THRESHOLD?" in message
    assert "BATCH_MAX_RUNTIME_HOURS" in refusal(tmp_path / "none", {"BATCH_MAX_RUNTIME": "2"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BATCH_THRESHOLD", "0"),
        ("BATCH_THRESHOLD", "-5"),
        ("BATCH_THRESHOLD", "1e3"),
        ("BATCH_MAX_RUNTIME_HOURS", "0"),
        ("BATCH_MAX_RUNTIME_HOURS", "inf"),
        ("BATCH_MAX_RUNTIME_HOURS", "nan"),
        ("BATCH_MAX_RUNTIME_HOURS", "2h"),
        ("BATCH_POLICY", "balance"),
        ("BATCH_CLOUD_GUARD", "on"),
        ("BATCH_GUARD_ROLE_ARN", "batchscribe-guard"),
        ("BATCH_GUARD_ROLE_ARN", "arn:aws:iam::123456789012:role/two words"),
        ("BATCH_LAUNCH", "ray"),
        ("BATCH_SOURCE", "http://example.com/x"),
        ("BATCH_SOURCE", "s3:///prefix"),
        ("BATCH_SOURCE", "file://host/path"),
        ("BATCH_SOURCE", "s3://bucket/x?y=1"),
        ("BATCH_MAX_DOLLARS_PER_DAY", "-1"),
        ("GPU_HOURLY_COST", "cheap"),
        ("GPU_HOURLY_COST", "1e10"),
        ("GPU_SSH_PORT", "70000"),
        ("GPU_SSH_HOST", "-oProxyCommand=x"),
        ("GPU_SSH_USER", "-l"),
        ("GPU_INSTANCE_ID", "i-123; rm"),
        ("BATCH_LANGUAGE", "english!"),
        ("BATCH_TASK", "summarise"),
        ("BATCH_CHANNELS", "left"),
        ("BATCH_CHUNK_OVERLAP_MS", "30001"),
        ("BATCH_NOTIFY_EMAIL", "nobody"),
        ("BATCH_NOTIFY_URLS", "no-scheme"),
        ("BATCH_SMTP_URL", "mail.example.com"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_with_what_is_allowed(
    tmp_path: Path, name: str, text: str
) -> None:
    message = refusal(tmp_path, {name: text})
    assert message.startswith(name)
    assert "must be" in message


def test_a_bad_secret_is_refused_without_being_shown(tmp_path: Path) -> None:
    assert CANARY not in refusal(tmp_path, {"BATCH_SMTP_URL": f"ftp://me:{CANARY}@host"})


def test_fractions_dollars_and_lists(tmp_path: Path) -> None:
    settings = load(
        {
            "BATCH_MAX_RUNTIME_HOURS": ".5",
            "BATCH_MIN_AGE_MINUTES": "0",
            "GPU_HOURLY_COST": "0.526",
            "GPU_INSTANCE_TYPES": "g4dn.xlarge, g5.xlarge",
            "BATCH_NOTIFY_URLS": "json://127.0.0.1/a?to=x,y, mailto://h?to=a@b.c",
            "BATCH_CHUNK_OVERLAP_MS": "auto",
            "BATCH_LANGUAGE": "EN",
            "BATCH_TASK": "Translate",
            "BATCH_CHANNELS": "split",
        },
        folder=tmp_path,
    )
    assert settings.max_runtime == timedelta(minutes=30)
    assert settings.min_age == timedelta(0)
    assert settings.hourly_cost == Usd(526_000)
    assert settings.instance_types == ("g4dn.xlarge", "g5.xlarge")
    assert settings.notify_urls == ("json://127.0.0.1/a?to=x,y", "mailto://h?to=a@b.c")
    assert (settings.chunk_overlap_ms, settings.language) == (None, "en")
    assert (settings.task, settings.channels) == ("translate", "split")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("gs://bucket", "gs://bucket"),
        ("file:///a/b/", "file:///a/b"),
        ("/a/b c/", "file:///a/b%20c"),
        ("file:///", "file:///"),
    ],
)
def test_a_source_becomes_one_url(tmp_path: Path, text: str, url: str) -> None:
    settings = load({"BATCH_SOURCE": text}, folder=tmp_path)
    assert (settings.source, settings.output) == (url, url)


def test_relative_paths_start_at_the_folder_of_dotenv(tmp_path: Path) -> None:
    environ = {"BATCH_SOURCE": "./rec", "BATCH_STATE_DIR": "../state", "GPU_SSH_KEY_PATH": "keys/gpu.pem"}
    settings = load(environ, folder=tmp_path)
    assert settings.source == (tmp_path / "rec").as_uri()
    assert settings.state_dir == tmp_path.parent / "state"
    assert settings.ssh_key_path == tmp_path / "keys/gpu.pem"


def test_an_instance_id_means_ec2_unless_said_otherwise(tmp_path: Path) -> None:
    environ = {"GPU_INSTANCE_ID": "i-0123456789abcdef0"}
    assert load(environ, folder=tmp_path).provider == "ec2"
    assert load(environ | {"GPU_PROVIDER": "local"}, folder=tmp_path).provider == "local"


@pytest.mark.parametrize(
    ("provider", "fitting", "other"),
    [
        ("local", "local", "ssh"),
        ("local", "local", "boot"),
        ("ec2", "ssh", "local"),
        ("ec2", "boot", "local"),
    ],
)
def test_a_launch_that_does_not_reach_the_gpu_is_refused(
    tmp_path: Path, provider: str, fitting: str, other: str
) -> None:
    assert load({"GPU_PROVIDER": provider, "BATCH_LAUNCH": fitting}, folder=tmp_path).launch == fitting
    refused = refusal(tmp_path, {"GPU_PROVIDER": provider, "BATCH_LAUNCH": other})
    assert "use auto or" in refused
    assert fitting in refused
    implied = {
        "BATCH_LAUNCH": other,
        **({"GPU_INSTANCE_ID": "i-0123456789abcdef0"} if provider == "ec2" else {}),
    }
    assert "BATCH_LAUNCH" in refusal(tmp_path, implied)


def test_a_gpu_in_the_cloud_is_guarded_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    in_cloud = {"GPU_INSTANCE_ID": "i-0123456789abcdef0"}
    assert load(in_cloud, folder=tmp_path).cloud_guard == "eventbridge"
    assert load(in_cloud | {"BATCH_CLOUD_GUARD": "off"}, folder=tmp_path).cloud_guard == "off"
    assert load({"GPU_PROVIDER": "local"}, folder=tmp_path).cloud_guard == "off"


def test_chunks_that_do_not_overlap_are_told_from_those_that_are_measured(tmp_path: Path) -> None:
    settings = load({"BATCH_CHUNK_OVERLAP_MS": "0"}, folder=tmp_path)
    assert settings.chunk_overlap_ms == 0
    shown = {row.name: row.value for row in settings.list_effective()}
    names = ("BATCH_CHUNK_OVERLAP_MS", "BATCH_TASK", "BATCH_CHANNELS")
    assert [shown[name] for name in names] == [0, "transcribe", "mix"]


def test_where_aws_is_the_environment_says_first() -> None:
    assert aws_environment.find_place({}) == (None, None)
    assert aws_environment.find_place({}, region="us-east-2", endpoint="http://s3") == (
        "us-east-2",
        "http://s3",
    )
    named = {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://own", "AWS_REGION": ""}
    assert aws_environment.find_place(named, region="us-east-2", endpoint="http://s3") == (
        "eu-west-1",
        "http://own",
    )
    named |= {"AWS_REGION": "eu-west-2", "AWS_ENDPOINT_URL_S3": "http://own-s3"}
    assert aws_environment.find_place(named, region="us-east-2", endpoint="http://s3") == (
        "eu-west-2",
        "http://own-s3",
    )


def test_aws_secrets_of_the_environment_are_known() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": CANARY, "AWS_SESSION_TOKEN": "", "AWS_ACCESS_KEY_ID": "public"}
    assert aws_environment.list_secrets(environ) == (CANARY,)


def test_the_live_lock_lies_at_the_bucket_root(tmp_path: Path) -> None:
    def lock(**environ: str) -> tuple[str, str] | None:
        return load(environ, folder=tmp_path).live_lock_key

    assert lock(BATCH_SOURCE="s3://bucket/audio") == ("s3://bucket", "batch-lock.json")
    assert lock(BATCH_SOURCE="/rec") == ("file:///rec", "batch-lock.json")
    assert lock(BATCH_SOURCE="/rec", BATCH_LIVE_LOCK="off") is None
    assert lock() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_dotenv_with_secrets_is_closed_to_others(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, f"SLACK_WEBHOOK_URL=https://hooks.example/{CANARY}\n", mode)
    message = refusal(tmp_path)
    assert f"chmod 600 {path}" in message
    assert CANARY not in message


def test_a_dotenv_without_secrets_may_be_readable(tmp_path: Path) -> None:
    write(tmp_path, "BATCH_THRESHOLD=5\nSLACK_WEBHOOK_URL=\n", 0o644)
    assert load({}, folder=tmp_path).threshold == 5


def test_a_dotenv_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    assert "not a file" in refusal(tmp_path)


def test_a_settings_file_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# comment\n" * 200_000)
    with pytest.raises(MisconfiguredError, match="is larger than 1 MB"):
        load({}, folder=tmp_path)
    assert "larger than 1 MB" in load({}, folder=tmp_path, lenient=True).problems[0]


def test_secrets_are_known_masked_and_not_in_repr(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"SLACK_WEBHOOK_URL=https://hooks.example/services/T0/{CANARY}-slack\n"
        f"BATCH_SMTP_URL=smtps://me:{CANARY}%2Fsmtp@mail.example\n"
        f"BATCH_NOTIFY_URLS=tgram://{CANARY}-bot/1\n"
        f"AWS_SECRET_ACCESS_KEY={CANARY}-aws\nAWS_ACCESS_KEY_ID=AKIAEXAMPLE\n",
    )
    settings = load({}, folder=tmp_path)
    assert CANARY not in repr(settings)
    assert CANARY not in repr(settings.list_effective())
    for part in ("-slack", "/smtp", "%2Fsmtp", "-bot", "-aws"):
        assert CANARY + part in settings.list_secrets()
    shown = {row.name: (row.value, row.origin) for row in settings.list_effective()}
    assert shown["SLACK_WEBHOOK_URL"] == (MASK, ".env")
    assert shown["AWS_SECRET_ACCESS_KEY"] == (MASK, ".env")
    assert shown["BATCH_THRESHOLD"] == (100, "default")


def test_aws_names_of_dotenv_reach_the_environment_without_overwriting(tmp_path: Path) -> None:
    write(tmp_path, "AWS_ACCESS_KEY_ID=A\nAWS_SECRET_ACCESS_KEY=B\nAWS_REGION=us-east-2\n")
    settings = load({}, folder=tmp_path)
    fresh: dict[str, str] = {}
    aws_environment.export_settings(settings.aws, settings.region, fresh)
    assert fresh == {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_REGION": "us-east-2"}
    profiled = {"AWS_PROFILE": "work", "AWS_REGION": "eu-west-1"}
    aws_environment.export_settings(settings.aws, settings.region, profiled)
    assert profiled == {"AWS_PROFILE": "work", "AWS_REGION": "eu-west-1"}


def test_the_old_name_of_the_region_counts(tmp_path: Path) -> None:
    settings = load({"AWS_DEFAULT_REGION": "us-east-1"}, folder=tmp_path)
    assert (settings.region, settings.origins["AWS_REGION"]) == ("us-east-1", "environment")


def test_what_a_command_needs_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"BATCH_SOURCE is not set: put BATCH_SOURCE=… into .*\.env"):
        load({}, folder=tmp_path).require("BATCH_SOURCE")
    assert Settings(source="s3://b").require("BATCH_SOURCE") == "s3://b"


@pytest.mark.parametrize(
    "text", ["${HOME}/.bs", "$HOME/logs", '"${HOME}/.bs"', "%USERPROFILE%/bs", "${XDG:-/x}"]
)
@pytest.mark.parametrize("name", ["BATCH_STATE_DIR", "BATCH_LOG_DIR", "GPU_SSH_KEY_PATH", "BATCH_SOURCE"])
def test_a_variable_in_a_path_is_refused_with_the_way_out(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, f"{name}={text}\n")
    assert "write the full path, or start it with ~" in refusal(tmp_path)
    assert name in refusal(tmp_path)


def test_a_variable_in_a_path_of_the_environment_is_refused_too(tmp_path: Path) -> None:
    assert "is not expanded" in refusal(tmp_path, {"BATCH_STATE_DIR": "$HOME/.bs"})


@pytest.mark.parametrize("text", ["'$HOME'", "cost$5", "100%", "a%20b", "s3://bucket/$x"])
def test_a_name_that_only_holds_such_characters_is_taken(tmp_path: Path, text: str) -> None:
    write(tmp_path, f"BATCH_SOURCE={text}\n")
    assert text.strip("'") in load({}, folder=tmp_path).source.replace("%24", "$").replace("%25", "%")


def test_a_variable_in_a_path_does_not_stop_the_way_out(tmp_path: Path) -> None:
    # A run may be open in the folder of that name, from a version that took it.
    write(tmp_path, "BATCH_STATE_DIR=${HOME}/.bs\n")
    settings = load({}, folder=tmp_path, lenient=True)
    assert settings.state_dir == tmp_path / "${HOME}" / ".bs"
    assert "is not expanded" in settings.problems[0]


@pytest.mark.parametrize("command", [("watchdog",), ("reconcile",), ("gpu", "stop")])
def test_commands_that_only_stop_things_run_with_a_variable_in_a_path_and_report_it_at_their_end(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path, "BATCH_SOURCE=in\nGPU_PROVIDER=local\nBATCH_STATE_DIR=${HOME}/.bs\n")
    with chdir(tmp_path):
        for words in (["tick"], [*command]):
            with pytest.raises(MisconfiguredError, match="is not expanded"):
                cli.main(words, standalone_mode=False)
    assert (tmp_path / "${HOME}" / ".bs").is_dir() or command == ("gpu", "stop")
