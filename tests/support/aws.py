"""Instances in EC2 as moto plays it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from batchscribe.adapters.aws.schedules import GROUP
from support.s3 import REGION, aws_client

AMAZON_IMAGE = "ami-03cf127a"
"""One that moto has; a list of all takes a second."""


def make_stopped_instance(endpoint: str, *, instance_type: str = "g5.xlarge") -> str:
    """The id of a new instance of this type, stopped."""
    client = aws_client(endpoint, "ec2")
    made = client.run_instances(ImageId=AMAZON_IMAGE, InstanceType=instance_type, MinCount=1, MaxCount=1)
    instance: str = made["Instances"][0]["InstanceId"]
    client.stop_instances(InstanceIds=[instance])
    return instance


def make_schedule_group(endpoint: str, region: str = REGION) -> None:
    """The schedule group that the template would make."""
    aws_client(endpoint, "scheduler", region).create_schedule_group(Name=GROUP)


def make_launch_template(endpoint: str, name: str = "gpu", *, region: str = REGION, **data: object) -> str:
    """The id of a launch template as deploy/fleet.yaml makes one, with other `data`."""
    wanted: dict[str, Any] = {
        "ImageId": AMAZON_IMAGE,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
        "IamInstanceProfile": {"Name": "gpu"},
    }
    made = aws_client(endpoint, "ec2", region).create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData=wanted | data
    )
    template: str = made["LaunchTemplate"]["LaunchTemplateId"]
    return template


def fire_order(endpoint: str, target: Mapping[str, str]) -> list[str]:
    """Does what EventBridge would do with a schedule's target; the ids of the instances that it ended."""
    asked, client = json.loads(target["Input"]), aws_client(endpoint, "ec2")
    if target["Arn"].endswith(":ec2:stopInstances"):
        client.stop_instances(**asked)
        return list(asked["InstanceIds"])
    assert target["Arn"].endswith(":ssm:startAutomationExecution")
    filters = [{"Name": each["Key"], "Values": each["Values"]} for each in asked["Targets"]]
    found = client.describe_instances(Filters=filters)["Reservations"]
    ids = [row["InstanceId"] for group in found for row in group["Instances"]]
    client.terminate_instances(InstanceIds=ids)
    return ids
