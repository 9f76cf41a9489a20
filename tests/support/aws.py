"""Instances in EC2 as moto plays it."""

from __future__ import annotations

from batchscribe.adapters.aws.schedules import GROUP
from support.s3 import aws_client

AMAZON_IMAGE = "ami-03cf127a"
"""One that moto has; a list of all takes a second."""


def make_stopped_instance(endpoint: str, *, instance_type: str = "g5.xlarge") -> str:
    """The id of a new instance of this type, stopped."""
    client = aws_client(endpoint, "ec2")
    made = client.run_instances(ImageId=AMAZON_IMAGE, InstanceType=instance_type, MinCount=1, MaxCount=1)
    instance: str = made["Instances"][0]["InstanceId"]
    client.stop_instances(InstanceIds=[instance])
    return instance


def make_schedule_group(endpoint: str) -> None:
    """The schedule group that the template would make."""
    aws_client(endpoint, "scheduler").create_schedule_group(Name=GROUP)
