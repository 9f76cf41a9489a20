"""CloudFormation as moto plays it, with the resource types and public parameters that moto lacks."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from moto.cloudformation.parsing import get_model_list, get_model_map, get_name_type_map
from moto.core.common_models import CloudFormationModel
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.scheduler.models import scheduler_backends
from moto.ssm.models import ssm_backends

from support.aws import AMAZON_IMAGE
from support.s3 import REGION

IMAGES = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id",
)


class _Made(CloudFormationModel):  # type: ignore[misc]
    """What both have in common; moto takes only classes that derive from its own directly."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.physical_resource_id = name
        self.attributes = attributes

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return ""

    def get_cfn_attribute(self, name: str) -> str:
        return self.attributes[name]

    def is_created(self) -> bool:
        return True


class PlayedGroup(_Made, CloudFormationModel):  # type: ignore[misc]
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::Scheduler::ScheduleGroup"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> PlayedGroup:
        name = cloudformation_json["Properties"]["Name"]
        scheduler_backends[account_id][region_name].create_schedule_group(name, [])
        return cls(name, {})


class PlayedKey(_Made, CloudFormationModel):  # type: ignore[misc]
    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::EC2::KeyPair"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> PlayedKey:
        asked = cloudformation_json["Properties"]
        made = ec2_backends[account_id][region_name].create_key_pair(asked["KeyName"], asked["KeyType"], {})
        return cls(made.key_name, {"KeyPairId": made.id})


def complete_moto() -> None:
    """Teaches this process's moto both resource types and the public parameters of the images."""
    backend = ssm_backends[DEFAULT_ACCOUNT_ID][REGION]
    for number, name in enumerate(IMAGES):
        own = f"/image/{number}"
        backend.put_parameter(own, "", AMAZON_IMAGE, "String", "", "", True, [], "text", None, None)
        backend._parameters[name] = backend._parameters[own]
    for cached in (get_model_list, get_model_map, get_name_type_map):
        cached.cache_clear()


def template(name: str) -> str:
    return (files("batchscribe.deploy") / name).read_text(encoding="utf-8")
