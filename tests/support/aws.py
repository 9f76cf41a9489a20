"""Instances in EC2 as moto plays it."""

from __future__ import annotations

from functools import cache
from typing import Any

import boto3

from batchscribe.adapters.aws.schedules import GROUP
from support.s3 import REGION


def make_stopped_instance(endpoint: str, *, instance_type: str = "g5.xlarge") -> str:
    """The id of a new instance of this type, stopped."""
    client, image = _maker(endpoint)
    made = client.run_instances(ImageId=image, InstanceType=instance_type, MinCount=1, MaxCount=1)
    instance: str = made["Instances"][0]["InstanceId"]
    client.stop_instances(InstanceIds=[instance])
    return instance


def amazon_image(endpoint: str) -> str:
    return _maker(endpoint)[1]


@cache
def _maker(endpoint: str) -> tuple[Any, str]:
    """A client and an image: both take a second to find, and every test needs them."""
    client: Any = boto3.session.Session().client("ec2", region_name=REGION, endpoint_url=endpoint)
    return client, client.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]


def make_schedule_group(endpoint: str) -> None:
    """The schedule group that the template would make."""
    client: Any = boto3.session.Session().client("scheduler", region_name=REGION, endpoint_url=endpoint)
    client.create_schedule_group(Name=GROUP)
