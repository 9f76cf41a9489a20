"""Discovery and stacks against moto: what `init` finds in an account, and what it creates there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.account import AwsAccount
from batchscribe.adapters.aws.regions import default_region, list_regions
from batchscribe.adapters.aws.stacks import Stacks
from batchscribe.cli.main import cli
from batchscribe.core.run.cloud_account import FoundInstance
from batchscribe.env_file import read_env_file
from batchscribe.errors import CredentialsError, MisconfiguredError, ObjectNotFoundError
from batchscribe.settings import load
from batchscribe.wiring import init as wiring
from support.aws import make_stopped_instance
from support.s3 import REGION, aws_client, aws_environment, create_bucket, moto_server

ABSENT = "i-0fedcba9876543210"


@dataclass(frozen=True)
class Cloud:
    endpoint: str
    ec2: Any

    def make_instance(self) -> str:
        """The only instance with a GPU, stopped."""
        for each in AwsAccount(region=REGION).gpu_instances():
            self.ec2.terminate_instances(InstanceIds=[each.id])
        instance = make_stopped_instance(self.endpoint)
        self.ec2.create_tags(Resources=[instance], Tags=[{"Key": "Name", "Value": "my gpu"}])
        return instance


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    from support.stacks import complete_moto  # moto's models are slow to import

    with moto_server() as endpoint, aws_environment(endpoint):
        create_bucket(endpoint, "recordings")
        complete_moto()
        yield Cloud(endpoint, aws_client(endpoint, "ec2"))


def test_an_account_shows_its_buckets_and_gpu_instances(cloud: Cloud) -> None:
    make_stopped_instance(cloud.endpoint, instance_type="t3.micro")
    instance = cloud.make_instance()
    inventory = AwsAccount(region=REGION)
    assert inventory.caller().arn.startswith("arn:aws:")
    assert "recordings" in inventory.buckets()
    assert inventory.bucket_region("recordings") == REGION
    found = FoundInstance(instance, "g5.xlarge", "stopped", "my gpu", "")
    assert inventory.gpu_instances() == (found,)
    assert inventory.instance(instance) == found


def test_what_is_not_there_is_named(cloud: Cloud) -> None:
    with pytest.raises(ObjectNotFoundError, match=f"EC2 has no {ABSENT} in {REGION}"):
        AwsAccount(region=REGION).instance(ABSENT)
    with pytest.raises(ObjectNotFoundError, match="there is no bucket absent"):
        AwsAccount(region=REGION).bucket_region("absent")


def test_without_credentials_the_identity_is_an_error(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CredentialsError):
        AwsAccount(region=REGION).caller()


def test_a_profile_that_is_not_there_is_an_error_of_the_identity_alone(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    assert (default_region(), list_regions()) == ("", ())
    assert wiring.describe_region_problem("us-east-2") == ""
    with pytest.raises(MisconfiguredError, match="absent"):
        wiring.open_account("").reads.caller()


def test_a_quota_that_cannot_be_read_is_not_checked(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AwsAccount, "quota", lambda *_: AwsAccount(region=REGION).instance(ABSENT))
    assert wiring.open_account(REGION).describe_quota("g4dn.xlarge").startswith("quota not checked: ")


def init(home: Path, *words: str, answers: str) -> str:
    with chdir(home):
        done = CliRunner(env={"HOME": str(home)}).invoke(cli, ["init", *words], input=answers)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_init_finds_the_instance_and_makes_its_guard(cloud: Cloud, tmp_path: Path) -> None:
    from support.stacks import template

    """Enter for control prefix, provider, region, instance and key; yes to the stack."""
    instance = cloud.make_instance()
    shown = init(tmp_path, "--source", "s3://recordings/audio", answers="\n\n\n\n\ny\n")
    settings = load({}, folder=tmp_path)
    assert (settings.instance_id, settings.region, settings.provider) == (instance, REGION, "ec2")
    assert f"{instance}  g5.xlarge  stopped  my gpu  $1.006/h" in shown
    stacks, account = Stacks(REGION), wiring.open_account(REGION)
    made = stacks.describe("batchscribe-guard")
    assert (made.usable, made.under_way) == (True, False)
    assert made in stacks.list()
    assert account.find_guard_role(instance) == settings.guard_role_arn == made.outputs["RoleArn"]
    assert account.find_guard_role(ABSENT) == ""
    assert account.plan_guard(ABSENT).parameters["MakeGroup"] == "no"
    with pytest.raises(MisconfiguredError, match="the stack batchscribe-guard exists already"):
        stacks.create("batchscribe-guard", template("guard.yaml"), {"InstanceId": instance})
    again = init(tmp_path, "--yes", "--force", "--source", "s3://recordings/audio", answers="")
    assert f"Guard: EventBridge stops the instance with {settings.guard_role_arn}" in again


def test_init_makes_the_machine_too_if_there_is_none(cloud: Cloud, tmp_path: Path) -> None:
    cloud.ec2.terminate_instances(InstanceIds=[cloud.make_instance()])
    shown = init(tmp_path, "--source", "s3://recordings/audio", answers="\n\n\n\ny\n")
    (made,) = AwsAccount(region=REGION).gpu_instances()
    assert read_env_file(tmp_path / ".env")["GPU_INSTANCE_ID"] == made.id
    assert (made.name, made.key_name, made.state) == ("batchscribe-gpu", "batchscribe-gpu", "running")
    assert "aws cloudformation deploy --region us-east-1 --stack-name batchscribe --template-file" in shown
