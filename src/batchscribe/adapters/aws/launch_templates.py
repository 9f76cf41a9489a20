"""Reads a fleet's launch template, its subnets, and zones with a type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.aws.clients import Api, Meaning
from batchscribe.core.run.cloud_account import MachineTemplate
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

ID_PREFIX = "lt-"
DEFAULT_VERSION = "$Default"
"""The version that machines are created from: the template's owner chooses it."""
_NO_TEMPLATE: Meaning = (
    ObjectNotFoundError,
    (
        "there is no launch template {subject} in {region}: fix GPU_LAUNCH_TEMPLATE, AWS_REGION or "
        "GPU_FURTHER_REGIONS"
    ),
)
_NO_SUBNET: Meaning = (MisconfiguredError, "GPU_SUBNETS, or those of GPU_FURTHER_REGIONS: {text}")
_MEANINGS: dict[str, Meaning] = {
    "InvalidLaunchTemplateId.Malformed": _NO_TEMPLATE,
    "InvalidLaunchTemplateId.NotFound": _NO_TEMPLATE,
    "InvalidLaunchTemplateName.NotFoundException": _NO_TEMPLATE,
    "InvalidSubnetID.Malformed": _NO_SUBNET,
    "InvalidSubnetID.NotFound": _NO_SUBNET,
}


def name_template(template: str) -> dict[str, Any]:
    """A template's parameter in requests, by its ID or its name."""
    return {"LaunchTemplateId" if template.startswith(ID_PREFIX) else "LaunchTemplateName": template}


class LaunchTemplates:
    """Bounded reads of EC2. Methods raise our errors, also for missing rights."""

    def __init__(self, make_client: Callable[[], EC2Client], *, region: str | None) -> None:
        self._make_client = make_client
        self._region = region
        self._api: Api[EC2Client] = Api("ec2", region, _MEANINGS)

    def describe(self, template: str) -> MachineTemplate:
        """The default version of a template; raises ObjectNotFoundError without one."""
        if not template:
            raise MisconfiguredError("GPU_LAUNCH_TEMPLATE is not set: set it to the ID of a launch template")
        with self._api.convert_errors("ec2:DescribeLaunchTemplateVersions", template):
            answer = self._client.describe_launch_template_versions(
                **name_template(template),
                Versions=[DEFAULT_VERSION],
            )
        (found,) = answer["LaunchTemplateVersions"]
        return to_template(found)

    def choose_subnets(self, subnets: tuple[str, ...]) -> Mapping[str, str]:
        """Zone -> subnet with the most free addresses.

        Of the given subnets, or of all default ones. EC2 refuses a fleet with two pools of one type and zone.
        """
        default = [{"Name": "default-for-az", "Values": ["true"]}]
        asked: Any = {"SubnetIds": list(subnets)} if subnets else {"Filters": default}
        with self._api.convert_errors("ec2:DescribeSubnets", ", ".join(subnets) or "the default subnets"):
            found = self._client.describe_subnets(**asked)["Subnets"]
        if not found:
            raise MisconfiguredError(
                f"this account has no default subnets in {self._region or 'its region'}: set GPU_SUBNETS, or "
                "those of GPU_FURTHER_REGIONS"
            )
        rows = sorted(found, key=itemgetter("AvailableIpAddressCount"))
        return {row["AvailabilityZone"]: row["SubnetId"] for row in rows}

    def zones_with(self, instance_type: str) -> frozenset[str]:
        """Zones of the region that offer a type."""
        with self._api.convert_errors("ec2:DescribeInstanceTypeOfferings", instance_type):
            pages = self._client.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone",
                Filters=[{"Name": "instance-type", "Values": [instance_type]}],
            )
            return frozenset(row["Location"] for page in pages for row in page["InstanceTypeOfferings"])

    @cached_property
    def _client(self) -> EC2Client:
        return self._make_client()


def to_template(found: Any) -> MachineTemplate:
    data = found["LaunchTemplateData"]
    options, cards = data.get("MetadataOptions", {}), data.get("NetworkInterfaces", [])
    profile = data.get("IamInstanceProfile", {})
    return MachineTemplate(
        id=found["LaunchTemplateId"],
        name=found.get("LaunchTemplateName", ""),
        version=found["VersionNumber"],
        image=data.get("ImageId", ""),
        shutdown=data.get("InstanceInitiatedShutdownBehavior", "stop"),
        shows_tags=options.get("InstanceMetadataTags") == "enabled" and _is_served(options),
        requires_tokens=options.get("HttpTokens") == "required",
        has_subnet=any(card.get("SubnetId") for card in cards),
        profile=profile.get("Arn", profile.get("Name", "")),
    )


def _is_served(options: Mapping[str, str]) -> bool:
    return options.get("HttpEndpoint") != "disabled"
