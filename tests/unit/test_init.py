"""`batchscribe init`: what it asks, what it refuses, what it writes; the account is played."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from batchscribe.adapters.aws.stacks import MadeStack
from batchscribe.cli import init as command
from batchscribe.cli import init_ec2
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.run.cloud_account import Caller, FoundInstance, MachineType, Quota
from batchscribe.env_file import read_env_file
from batchscribe.errors import CredentialsError, MisconfiguredError
from batchscribe.testing.clock import FakeClock
from batchscribe.wiring import init as wiring
from batchscribe.wiring.init import Account

INSTANCE = "i-0123456789abcdef0"
ROLE = "arn:aws:iam::123456789012:role/stop"
BOX = FoundInstance(INSTANCE, "g5.xlarge", "stopped", "gpu", "gpu-key")


@dataclass
class PlayedAccount:
    """Reads and stacks of an account, in one."""

    found_buckets: tuple[str, ...] = ("recordings",)
    instances: tuple[FoundInstance, ...] = (BOX,)
    made: list[MadeStack] = field(default_factory=list)
    outcome: str = "CREATE_COMPLETE"
    group: bool = False
    allowed: int = 8
    created: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def caller(self) -> Caller:
        return Caller(account="123456789012", arn="arn:aws:iam::123456789012:user/me")

    def buckets(self) -> tuple[str, ...]:
        return self.found_buckets

    def bucket_region(self, bucket: str) -> str:
        return "eu-west-1"

    def gpu_instances(self) -> tuple[FoundInstance, ...]:
        return self.instances

    def instance(self, instance: str) -> FoundInstance:
        for each in self.instances:
            if each.id == instance:
                return each
        raise MisconfiguredError(f"there is no {instance} in us-east-2")

    def machine_type(self, name: str) -> MachineType:
        return MachineType(name=name, vcpus=4)

    def quota(self, instance_type: str) -> Quota:
        return Quota(code="L-1", vcpus=self.allowed)

    def schedule_group(self) -> str:
        return "ACTIVE" if self.group else ""

    def list(self) -> tuple[MadeStack, ...]:
        return tuple(self.made)

    def create(self, name: str, template: str, parameters: Mapping[str, str]) -> None:
        assert template.startswith("AWSTemplateFormatVersion")
        self.created[name] = parameters
        outputs = {"RoleArn": ROLE, "InstanceId": INSTANCE, "SchedulerId": "i-0fedcba9876543210"}
        for status in ("CREATE_IN_PROGRESS", self.outcome):
            self.made.insert(0, MadeStack(name, status, parameters, outputs))

    def describe(self, name: str) -> MadeStack:
        return self.made.pop(1) if len(self.made) > 1 else self.made[0]

    def failure(self, name: str) -> str:
        return "Gpu: no quota"


@dataclass
class Desk:
    home: Path
    account: PlayedAccount | None

    def init(self, *words: str, answers: str = "") -> Result:
        with chdir(self.home):
            return CliRunner().invoke(command.init, words, input=answers)

    @property
    def written(self) -> dict[str, str]:
        return read_env_file(self.home / ".env")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "BATCH_", "GPU_"))]:
        monkeypatch.delenv(name)
    made = Desk(tmp_path / "project", PlayedAccount())
    made.home.mkdir()
    ssh = tmp_path / "ssh"
    ssh.mkdir()
    for name in ("gpu-key.pem", "other.pem"):
        (ssh / name).write_text("-----BEGIN RSA PRIVATE KEY-----\n")
        (ssh / name).chmod(0o600)

    def open_account(region: str) -> Account:
        if made.account is None:
            raise CredentialsError("no credentials")
        played: Any = made.account
        return Account(
            region=region or "us-east-2", reads=played, stacks=played, clock=cast(Any, FakeClock())
        )

    monkeypatch.setattr(wiring, "open_account", open_account)
    monkeypatch.setattr(init_ec2, "find_default_region", lambda: "us-east-2")
    monkeypatch.setattr(wiring, "list_key_files", lambda: tuple(sorted(ssh.iterdir())))
    monkeypatch.setattr(wiring, "find_first_object", lambda _values: cast(ObjectInfo, object()))
    before = dict(os.environ)
    yield made
    os.environ.clear()
    os.environ.update(before)


def test_with_one_of_each_the_defaults_are_enough(desk: Desk, tmp_path: Path) -> None:
    assert desk.account
    desk.account.made = [
        MadeStack("batchscribe-guard", "CREATE_COMPLETE", {"InstanceId": INSTANCE}, {"RoleArn": ROLE})
    ]
    done = desk.init("--yes", "--source", "s3://recordings/audio")
    assert done.exit_code == 0, done.output
    assert desk.written == {
        "BATCH_SOURCE": "s3://recordings/audio",
        "BATCH_CONTROL": "s3://recordings/batchscribe-control",
        "GPU_PROVIDER": "ec2",
        "AWS_REGION": "us-east-2",
        "GPU_INSTANCE_ID": INSTANCE,
        "GPU_SSH_KEY_PATH": str(tmp_path / "ssh" / "gpu-key.pem"),
        "BATCH_GUARD_ROLE_ARN": ROLE,
    }
    assert f"1  {INSTANCE}  g5.xlarge  stopped  gpu  $1.006/h" in done.output
    assert "batchscribe gpu setup --start" in done.output
    assert not desk.account.created


def test_a_whole_bucket_keeps_its_control_objects_inside(desk: Desk) -> None:
    desk.init("--yes")
    assert desk.written["BATCH_SOURCE"] == "s3://recordings"
    assert "BATCH_CONTROL" not in desk.written


def test_answers_are_checked_at_once_and_asked_for_again(desk: Desk) -> None:
    answers = [
        "s3:///nothing",
        "s3://recordings/audio",
        "s3://recordings/audio/control",
        "",
        "",
        "us-esat-2",
        "us-east-2",
        "i-0fedcba9876543210",
        "2",
        "1",
        "/none.pem",
        "",
        "n",
    ]
    done = desk.init(answers="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert "must be s3://bucket/prefix" in done.output
    assert "BATCH_CONTROL is inside BATCH_SOURCE" in done.output
    assert "us-esat-2 is not a region of EC2: did you mean us-west-2 or us-east-2?" in done.output
    assert "there is no i-0fedcba9876543210" in done.output
    assert "is '2': must be an ID, e.g. i-0123456789abcdef0, or 1 to 1 for a row of the list" in done.output
    assert "/none.pem cannot be used (No such file or directory)" in done.output
    assert desk.written["GPU_INSTANCE_ID"] == INSTANCE


def test_the_guard_s_stack_is_made_only_after_a_yes(desk: Desk) -> None:
    assert desk.account
    desk.account.group = True
    done = desk.init("--source", "s3://recordings/a", "--instance", INSTANCE, answers="\n\n\ny\n")
    assert done.exit_code == 0, done.output
    assert desk.account.created == {"batchscribe-guard": {"InstanceId": INSTANCE, "MakeGroup": "no"}}
    assert desk.written["BATCH_GUARD_ROLE_ARN"] == ROLE
    assert "batchscribe-guard: CREATE_IN_PROGRESS" in done.output
    assert "--stack-name batchscribe-guard --template-file" in done.output


def test_a_declined_guard_is_the_first_thing_left_to_do(desk: Desk) -> None:
    assert desk.account
    done = desk.init("--yes", "--source", "s3://recordings/a")
    assert isinstance(done.exception, MisconfiguredError)
    assert "was written without BATCH_GUARD_ROLE_ARN: no GPU is started until" in str(done.exception)
    assert not desk.account.created
    assert "BATCH_GUARD_ROLE_ARN" not in desk.written
    assert "Next:\n  create the guard's stack" in done.output


def test_where_there_is_no_gpu_the_whole_stack_is_offered(desk: Desk) -> None:
    assert desk.account
    desk.account.instances = ()
    wheel = "batchscribe[aws] @ https://example.com/batchscribe-0.2.0-py3-none-any.whl"
    done = desk.init("--source", "s3://recordings/a/b", answers=f"\n\n\n{wheel}\ny\n")
    assert done.exit_code == 0, done.output
    assert "quota: 8 vCPUs may run on-demand, 1 x g4dn.xlarge have 4\n" in done.output
    assert desk.account.created == {
        "batchscribe": {
            "Bucket": "recordings",
            "Prefix": "a/b",
            "ControlPrefix": "batchscribe-control",
            "Package": wheel,
            "MakeGroup": "yes",
        }
    }
    assert (desk.written["GPU_INSTANCE_ID"], desk.written["BATCH_GUARD_ROLE_ARN"]) == (INSTANCE, ROLE)
    assert "aws ssm start-session --region us-east-2 --target i-0fedcba9876543210" in done.output


def test_a_small_quota_is_reported_before_the_offer(desk: Desk) -> None:
    assert desk.account
    desk.account.instances, desk.account.allowed = (), 0
    done = desk.init("--yes", "--source", "s3://recordings/a")
    request = "aws --region us-east-2 service-quotas request-service-quota-increase --service-code ec2"
    words = re.sub(r"\s+", " ", done.output)
    assert f"0 vCPUs may run on-demand, 1 x g4dn.xlarge have 4; before you start: {request}" in words


def test_a_stack_that_fails_is_explained_and_nothing_is_written(desk: Desk) -> None:
    assert desk.account
    desk.account.outcome = "ROLLBACK_COMPLETE"
    done = desk.init("--source", "s3://recordings/a", "--instance", INSTANCE, answers="\n\n\ny\n")
    assert isinstance(done.exception, MisconfiguredError)
    assert "is ROLLBACK_COMPLETE (Gpu: no quota)" in str(done.exception)
    assert not (desk.home / ".env").exists()


def test_yes_refuses_with_a_list_of_what_is_missing(desk: Desk) -> None:
    assert desk.account
    desk.account.found_buckets, desk.account.instances = ("a", "b"), (BOX, BOX)
    done = desk.init("--yes", "--region", "us-east-2")
    assert isinstance(done.exception, MisconfiguredError)
    assert done.exception.exit_code == 2
    assert "missing: BATCH_SOURCE: Where is the audio?" in done.stderr
    done = desk.init("--yes", "--source", "s3://a/b")
    assert "missing: GPU_INSTANCE_ID: GPU instance" in done.stderr
    assert not (desk.home / ".env").exists()


def test_a_given_answer_that_is_wrong_is_refused(desk: Desk) -> None:
    done = desk.init("--yes", "--source", "s3://recordings/a", "--instance", "i-0fedcba9876543210")
    assert "there is no i-0fedcba9876543210" in str(done.exception)
    assert "nothing was written" in str(done.exception)


def test_an_open_key_is_closed_only_after_a_yes(desk: Desk, tmp_path: Path) -> None:
    key = tmp_path / "ssh" / "gpu-key.pem"
    key.chmod(0o644)
    words = ("--source", "s3://recordings/a", "--instance", INSTANCE, "--region", "us-east-2")
    assert "chmod 600" in str(desk.init("--yes", *words).exception)
    assert key.stat().st_mode & 0o777 == 0o644
    done = desk.init(*words, answers="\n\ny\nn\n")
    assert done.exit_code == 0, done.output
    assert key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("source", ["", "rec"])
def test_without_aws_it_sets_up_this_machine(desk: Desk, source: str) -> None:
    (desk.home / "rec").mkdir()
    desk.account = None
    done = desk.init(*(["--yes", "--source", source] if source else []), answers="rec\n")
    assert done.exit_code == 0, done.output
    assert desk.written == {"BATCH_SOURCE": str(desk.home / "rec"), "GPU_PROVIDER": "local"}
    assert ("AWS is not used: no credentials" in done.output) is not bool(source)
    assert "batchscribe run" in done.output


def test_an_engine_that_cannot_run_here_is_reported_with_the_fetch(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ("small.en", ("the model is missing",))
    monkeypatch.setattr(wiring, "list_engine_problems", lambda _values: missing)
    done = desk.init("--yes", "--source", str(desk.home))
    assert "The engine cannot run here yet: the model is missing" in done.output
    assert "batchscribe engines --fetch small.en" in done.output


def test_a_file_of_the_original_scripts_is_taken_over(desk: Desk, tmp_path: Path) -> None:
    old = tmp_path / "old.env"
    old.write_text(
        f"COGNITO_S3_BUCKET=recordings\nAWS_REGION=us-west-2\nGPU_INSTANCE_ID={INSTANCE}\n"
        "BATCH_THRESHOLD=50 # chunks\nBATCH_SIZE=100\nGPU_HOST=x\nRIVA_PORT=1\n"
    )
    done = desk.init("--yes", "--from", str(old))
    assert "COGNITO_S3_BUCKET: renamed to BATCH_SOURCE" in done.output
    assert "BATCH_SIZE: not needed any more" in done.output
    assert "RIVA_PORT: unknown" in done.output
    assert desk.written["BATCH_SOURCE"] == "s3://recordings/users"
    assert desk.written["AWS_REGION"] == "us-west-2"
    assert desk.written["BATCH_THRESHOLD"] == "50"
    assert not {"BATCH_SIZE", "GPU_HOST", "RIVA_PORT"} & desk.written.keys()


def test_an_existing_file_stops_it_before_the_first_question(desk: Desk) -> None:
    (desk.home / ".env").write_text("BATCH_TRESHOLD=1\n")
    done = desk.init("--yes")
    assert "exists, nothing was changed" in str(done.exception)
    desk.init("--yes", "--force")
    assert (desk.home / ".env.old").read_text() == "BATCH_TRESHOLD=1\n"


def test_a_value_that_cannot_be_taken_over_is_named(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "old.env").write_text("BATCH_THRESHOLD=many\n")
    done = desk.init("--yes", "--from", str(tmp_path / "old.env"))
    assert "BATCH_THRESHOLD from the .env file is 'many': must be" in str(done.exception)


def test_the_rights_that_it_can_use_are_documented() -> None:
    root = Path(__file__).parents[2]
    adapters = root / "src" / "batchscribe" / "adapters" / "aws"
    text = "".join((adapters / f"{name}.py").read_text() for name in ("account", "stacks"))
    used = set(re.findall(r'"([a-z0-9]+:[A-Z][A-Za-z]+)"', text))
    assert len(used) > 8
    assert {right for right in used if f"`{right}`" not in (root / "docs" / "aws.md").read_text()} == set()
