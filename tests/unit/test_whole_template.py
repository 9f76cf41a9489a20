"""The template of the whole: rights as `iam-policy` prints them, one open port, settings that load."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from batchscribe.adapters.aws.iam import Who, make_policy, make_trust
from batchscribe.settings import load
from support.templates import (
    FOLDER,
    INSTANCE,
    NAMES,
    PLACE,
    ROLE,
    loaded,
    ordered,
    read_resources,
)

TEMPLATE = FOLDER / "batchscribe.yaml"


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return read_resources(TEMPLATE.name, NAMES)


def script_of(resources: dict[str, Any]) -> str:
    text = resources["Scheduler"]["UserData"]["Fn::Base64"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("role", "who"), [("StopRole", Who.STOP), ("GpuRole", Who.BOX), ("SchedulerRole", Who.SCHEDULER)]
)
def test_each_role_has_the_rights_that_iam_policy_prints(
    resources: dict[str, Any], role: str, who: Who
) -> None:
    made = resources[role]
    assert ordered(made["Policies"][0]["PolicyDocument"]) == ordered(make_policy(who, PLACE))
    assert made["AssumeRolePolicyDocument"] == (make_trust(who, PLACE) or make_trust(Who.BOX, PLACE))


def test_only_the_scheduler_has_more_and_that_is_its_login_and_one_key(resources: dict[str, Any]) -> None:
    assert [len(resources[role]["Policies"]) for role in ("StopRole", "GpuRole", "SchedulerRole")] == [
        1,
        1,
        2,
    ]
    key, login = resources["SchedulerRole"]["Policies"][1]["PolicyDocument"]["Statement"]
    assert key["Resource"].endswith("parameter/ec2/keypair/key-0")
    assert all(action.startswith(("ssm:Update", "ssmmessages:")) for action in login["Action"])


def test_no_port_is_open_but_ssh_for_the_scheduler(resources: dict[str, Any]) -> None:
    assert "SecurityGroupIngress" not in resources["SchedulerGroup"]
    (rule,) = resources["GpuGroup"]["SecurityGroupIngress"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert rule["SourceSecurityGroupId"] == "sg-scheduler"
    assert not {"CidrIp", "CidrIpv6"} & set(rule)


@pytest.mark.parametrize("host", ["Gpu", "Scheduler"])
def test_hosts_are_encrypted_and_answer_imdsv2_with_tags(resources: dict[str, Any], host: str) -> None:
    (volume,) = resources[host]["BlockDeviceMappings"]
    assert volume["Ebs"]["Encrypted"] is True
    assert resources[host]["LaunchTemplate"]["LaunchTemplateId"] == "Metadata"
    options = resources["Metadata"]["LaunchTemplateData"]["MetadataOptions"]
    assert options == {"HttpTokens": "required", "InstanceMetadataTags": "enabled"}


def test_the_gpu_stops_at_its_own_power_off_and_after_its_first_boot(resources: dict[str, Any]) -> None:
    assert resources["Gpu"]["InstanceInitiatedShutdownBehavior"] == "stop"
    assert "mode: poweroff" in resources["Gpu"]["UserData"]["Fn::Base64"]


def test_the_scheduler_host_gets_settings_that_load(resources: dict[str, Any], tmp_path: Path) -> None:
    script = script_of(resources)
    (written,) = re.findall(r"cat > \.env <<'END'\n(.*?)END\n", script, re.DOTALL)
    (tmp_path / ".env").write_text(written)
    settings = load({}, folder=tmp_path)
    assert (settings.source, settings.control) == ("s3://audio/sessions", "s3://audio/control")
    assert (settings.instance_id, settings.guard_role_arn, settings.provider) == (INSTANCE, ROLE, "ec2")
    assert (settings.region, settings.cloud_guard, settings.ssh_host) == (
        "us-east-2",
        "eventbridge",
        "private",
    )
    assert settings.ssh_key_path == tmp_path / "gpu.pem"


def test_the_scripts_of_the_scheduler_host_can_be_parsed(resources: dict[str, Any]) -> None:
    script = script_of(resources)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (embedded,) = re.findall(r"gpu\.pem <<'END'\n(.*?)END\n", script, re.DOTALL)
    compile(embedded, "user data", "exec")
    assert script.rstrip().endswith("batchscribe install systemd")


def test_what_is_put_into_the_script_cannot_leave_its_quotes() -> None:
    parameters = loaded(TEMPLATE)["Parameters"]
    for name in ("Bucket", "Prefix", "ControlPrefix", "Package"):
        pattern = parameters[name]["AllowedPattern"]
        assert re.fullmatch(pattern, NAMES[name])
        for harmful in ("a'b", "a\nEND", "a$(b)", "a`b`", "a;b"):
            assert not re.fullmatch(pattern, harmful)
