"""Rights and template of machines that runs create: as `iam-policy` prints them, and as doctor wants."""

from __future__ import annotations

import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.iam import AccountPlace, Folder, Who, make_policy, make_trust
from batchscribe.adapters.aws.launch_templates import to_template
from batchscribe.cli.main import cli
from batchscribe.settings import load
from batchscribe.wiring.rights import make_place
from support.templates import ordered, read_resources

ACCOUNT, REGION = "123456789012", "us-east-2"
FOLDERS = Folder(bucket="audio", prefix="sessions/")
PLACE = AccountPlace(
    account=ACCOUNT,
    region=REGION,
    instance="*",
    source=FOLDERS,
    output=FOLDERS,
    control=Folder(bucket="audio", prefix="control/"),
    live_lock=("audio", "batch-lock.json"),
    guard_role=f"arn:aws:iam::{ACCOUNT}:role/guard",
    types=("g5.xlarge", "g6.xlarge"),
    template="lt-0123456789abcdef0",
)
MACHINE = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0123456789abcdef0"
SETTINGS = {
    "GPU_PROVIDER": "fleet",
    "GPU_LAUNCH_TEMPLATE": "lt-0123456789abcdef0",
    "GPU_INSTANCE_TYPES": "g5.xlarge g6.xlarge",
    "BATCH_SOURCE": "s3://audio/sessions",
    "AWS_REGION": REGION,
}
NAMES = {
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "Bucket": "audio",
    "Prefix": "sessions",
    "ControlPrefix": "control",
    "Image": "ami-0123456789abcdef0",
    "Volume": "60",
}


def statements(who: Who, action: str) -> list[dict[str, Any]]:
    found: Any = make_policy(who, PLACE)["Statement"]
    return [each for each in found if action in listed(each["Action"])]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return read_resources("fleet.yaml", NAMES)


@pytest.mark.parametrize(("role", "who"), [("StopRole", Who.STOP), ("GpuRole", Who.BOX)])
def test_each_role_has_the_rights_that_iam_policy_prints(
    resources: dict[str, Any], role: str, who: Who
) -> None:
    made = resources[role]
    assert ordered(made["Policies"][0]["PolicyDocument"]) == ordered(make_policy(who, PLACE))
    assert made["AssumeRolePolicyDocument"] == make_trust(who, PLACE)


def test_a_machine_ends_at_its_own_power_off_and_can_read_its_tags(resources: dict[str, Any]) -> None:
    data = resources["Machine"]["LaunchTemplateData"]
    found = to_template({"LaunchTemplateId": "lt-1", "VersionNumber": 1, "LaunchTemplateData": data})
    assert (found.shutdown, found.shows_tags, found.requires_tokens) == ("terminate", True, True)
    assert (found.image, found.has_subnet, bool(found.profile)) == ("ami-0123456789abcdef0", False, True)
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"]["DeleteOnTermination"] is True
    assert "SecurityGroupIngress" not in resources["GpuGroup"]


@pytest.mark.parametrize("who", [Who.SCHEDULER, Who.STOP])
def test_only_machines_with_our_tag_can_be_terminated(who: Who) -> None:
    (found,) = statements(who, "ec2:TerminateInstances")
    assert found["Condition"] == {"StringLike": {"aws:ResourceTag/batchscribe:machine": "*"}}


def test_a_machine_is_created_with_a_listed_type_and_our_tag() -> None:
    found = [
        each
        for each in statements(Who.SCHEDULER, "ec2:RunInstances")
        if any(fnmatch.fnmatchcase(MACHINE, arn) for arn in listed(each["Resource"]))
    ]
    (only,) = found
    assert only["Condition"]["StringEquals"] == {"ec2:InstanceType": ["g5.xlarge", "g6.xlarge"]}
    assert only["Condition"]["StringLike"] == {"aws:RequestTag/batchscribe:machine": "*"}


def test_no_running_instance_gets_the_tag_of_our_machines() -> None:
    for each in statements(Who.SCHEDULER, "ec2:CreateTags"):
        keys = each["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]
        created = "ec2:CreateAction" in each["Condition"].get("StringEquals", {})
        assert created == ("batchscribe:machine" in keys)


def test_existing_instances_can_neither_be_started_nor_stopped() -> None:
    for action in ("ec2:StartInstances", "ec2:StopInstances", "ec2:ModifyInstanceAttribute"):
        assert statements(Who.SCHEDULER, action) == statements(Who.STOP, action) == []


def test_the_settings_fill_the_policies_in(tmp_path: Path) -> None:
    place = make_place(load(SETTINGS, folder=tmp_path))
    assert (place.template, place.types) == ("lt-0123456789abcdef0", ("g5.xlarge", "g6.xlarge"))
    assert place.missing == ("ACCOUNT_ID", "GUARD_ROLE", "HOST_ROLE")
    named = make_place(load(SETTINGS | {"GPU_LAUNCH_TEMPLATE": "gpu"}, folder=tmp_path))
    assert named.template == "*", "an ARN has the ID of a template, not its name"


def test_the_template_of_the_provider_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["iam-policy", "--template"], env=SETTINGS)
    assert done.stdout == (files("batchscribe.deploy") / "fleet.yaml").read_text()
