"""The image and the launch template of created machines, in an EC2 that moto plays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batchscribe import __version__
from batchscribe.adapters.aws.images import POLL_SECONDS, READY_SECONDS, MachineImages
from batchscribe.core.run.runs import Machine
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError, MissingRightError
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.wiring.gpu import TEMPLATE, open_gpu_tools
from batchscribe.wiring.seams import open_ledger
from support.aws import make_stopped_instance
from support.faults import Refusal, fault_proxy
from support.s3 import REGION, aws_client, aws_environment, moto_server
from support.values import run

NOW = datetime(2026, 11, 30, 2, 46, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def images(endpoint: str) -> MachineImages:
    return MachineImages(region=REGION, endpoint=endpoint)


def make_group(endpoint: str) -> str:
    made = aws_client(endpoint, "ec2").create_security_group(GroupName="hosts", Description="GPU hosts")
    group: str = made["GroupId"]
    return group


def default_version(endpoint: str, template: str) -> dict[str, Any]:
    client = aws_client(endpoint, "ec2")
    answer = client.describe_launch_template_versions(LaunchTemplateName=template, Versions=["$Default"])
    found: dict[str, Any] = answer["LaunchTemplateVersions"][0]
    return found


def test_a_template_is_made_from_the_instance_and_its_image(endpoint: str, images: MachineImages) -> None:
    instance, group = make_stopped_instance(endpoint), make_group(endpoint)
    aws_client(endpoint, "ec2").modify_instance_attribute(InstanceId=instance, Groups=[group])
    asked = images.plan_image(instance, NOW)
    assert asked["Name"] == f"batchscribe-{__version__}-20261130-024600"
    image = images.create_image(asked)
    images.await_image(image, FakeClock())
    request = images.plan_template("own", instance, image)
    assert images.save_template(request, image) == 1
    data = default_version(endpoint, "own")["LaunchTemplateData"]
    assert (data["ImageId"], data["InstanceInitiatedShutdownBehavior"]) == (image, "terminate")
    assert data["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert "InstanceType" not in data
    assert "NetworkInterfaces" not in data
    assert data["SecurityGroupIds"] == [group]
    (disk,) = data["BlockDeviceMappings"]
    assert (disk["Ebs"]["VolumeType"], disk["Ebs"]["DeleteOnTermination"]) == ("gp3", True)


def test_the_next_image_is_a_version_that_machines_are_created_from(
    endpoint: str, images: MachineImages
) -> None:
    instance = make_stopped_instance(endpoint)
    images.save_template(images.plan_template("next", instance, "ami-1"), "ami-1")
    assert images.save_template(images.plan_template("next", instance, "ami-2"), "ami-2") == 2
    found = default_version(endpoint, "next")
    assert (found["VersionNumber"], found["LaunchTemplateData"]["ImageId"]) == (2, "ami-2")
    identity = found["LaunchTemplateId"]
    assert images.save_template(images.plan_template(identity, instance, "ami-3"), "ami-3") == 3
    assert default_version(endpoint, "next")["VersionNumber"] == 3


def test_a_template_id_that_does_not_exist_is_a_setting_to_fix(endpoint: str, images: MachineImages) -> None:
    request = images.plan_template("lt-0123456789abcdef0", make_stopped_instance(endpoint), "ami-1")
    with pytest.raises(MisconfiguredError, match="GPU_LAUNCH_TEMPLATE"):
        images.save_template(request, "ami-1")


def test_a_missing_right_names_the_way_without_it(endpoint: str) -> None:
    with fault_proxy() as proxy:
        proxy.plan("CreateImage", Refusal("UnauthorizedOperation", 403))
        images = MachineImages(region=REGION, endpoint=proxy.endpoint)
        with pytest.raises(MissingRightError, match="gpu image --print"):
            images.create_image(images.plan_image("i-1", NOW))


def test_an_image_that_fails_changes_nothing_else(
    images: MachineImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = ["pending", "pending", "failed"]
    monkeypatch.setattr(images, "_read_state", lambda _image: states.pop(0))
    clock = FakeClock()
    with pytest.raises(MisconfiguredError, match="ami-1 is failed"):
        images.await_image("ami-1", clock)
    assert states == []


def test_the_wait_for_an_image_has_an_end(images: MachineImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_read_state", lambda _image: "pending")
    clock = FakeClock()
    begun = clock.monotonic()
    with pytest.raises(ComputeUnavailableError, match="still pending"):
        images.await_image("ami-1", clock)
    assert READY_SECONDS < clock.monotonic() - begun <= READY_SECONDS + 2 * POLL_SECONDS


@pytest.mark.parametrize(
    "now",
    [
        {"GPU_PROVIDER": "local"},
        {"GPU_PROVIDER": "ec2", "GPU_INSTANCE_ID": "i-0123456789abcdef0"},
    ],
)
def test_manual_control_has_the_machines_of_runs_of_other_settings(
    tmp_path: Path, now: dict[str, str]
) -> None:
    opened = run(machines=(Machine(id="i-0fedcba9876543210"),), provider="ec2", region="us-east-2")
    settings = load({"BATCH_SOURCE": str(tmp_path), "AWS_REGION": "us-east-2"} | now, folder=tmp_path)
    with open_ledger(settings) as ledger:
        ledger.save_run(opened, at=opened.created)
    with open_gpu_tools(settings) as tools:
        others = list(tools.list_others(tools))
    assert [(other.provider, other.instance) for other in others] == [("ec2", "i-0fedcba9876543210")]
    with open_gpu_tools(replace(settings, provider="ec2", instance_id=opened.instance)) as tools:
        assert not list(tools.list_others(tools))


def test_the_commands_of_a_fleet_are_about_the_instance_that_images_are_made_on(tmp_path: Path) -> None:
    environ = {
        "BATCH_SOURCE": "s3://audio",
        "GPU_PROVIDER": "fleet",
        "GPU_INSTANCE_ID": "i-0123456789abcdef0",
    }
    with open_gpu_tools(load(environ, folder=tmp_path)) as tools:
        assert (tools.provider, tools.instance, tools.template) == ("fleet", "i-0123456789abcdef0", TEMPLATE)
    with open_gpu_tools(load(environ | {"GPU_LAUNCH_TEMPLATE": "lt-0123"}, folder=tmp_path)) as tools:
        assert tools.template == "lt-0123"
    del environ["GPU_INSTANCE_ID"]
    with open_gpu_tools(load(environ, folder=tmp_path)) as tools:
        assert tools.instance == ""
