"""Makes image and launch template from an instance that was set up.

Runs create their machines from them.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batchscribe import __version__
from batchscribe.adapters.aws.clients import Api, Meaning
from batchscribe.adapters.aws.launch_templates import ID_PREFIX, name_template
from batchscribe.errors import (
    ComputeUnavailableError,
    MisconfiguredError,
    MissingRightError,
    ObjectNotFoundError,
)
from batchscribe.protocols import Clock

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

POLL_SECONDS = 15.0
READY_SECONDS = 3600.0
"""For the snapshot of the disk: minutes for the first one, less for the next ones."""
_MISSING: Meaning = (ObjectNotFoundError, "there is no launch template {subject} in {region}")
_DENIED: Meaning = (
    MissingRightError,
    "the right {right} on {subject} is missing: use credentials with it, or `batchscribe gpu image --print`",
)
_MEANINGS: dict[str, Meaning] = {
    "UnauthorizedOperation": _DENIED,
    "InvalidLaunchTemplateId.NotFound": _MISSING,
    "InvalidLaunchTemplateName.NotFoundException": _MISSING,
}
Request = dict[str, Any]
"""Parameters of one request, as in the command line's --cli-input-json."""


class MachineImages:
    """Images and launch templates of EC2, with our errors."""

    def __init__(self, *, region: str | None, endpoint: str | None = None) -> None:
        self._api: Api[EC2Client] = Api("ec2", region, _MEANINGS, endpoint=endpoint)

    def plan_image(self, instance: str, now: datetime) -> Request:
        """Request for an image.

        EC2 reboots a running instance first, so that its file system is complete.
        """
        name = f"batchscribe-{__version__.replace('+', '-')}-{now:%Y%m%d-%H%M%S}"
        return {"InstanceId": instance, "Name": name, "Description": f"batchscribe {__version__}, GPU host"}

    def plan_template(self, template: str, instance: str, image: str) -> Request:
        """Request for a launch template with the instance's role, groups and key.

        No type and no subnet: each run chooses them. The disk is gp3, which costs nothing beyond its size.
        """
        with self._api.convert_errors("ec2:DescribeInstances", instance):
            answer = self._api.client.describe_instances(InstanceIds=[instance])
        seen = answer["Reservations"][0]["Instances"][0]
        disk = {"VolumeType": "gp3", "DeleteOnTermination": True}
        data: Request = {
            **_require(image),
            "BlockDeviceMappings": [{"DeviceName": seen["RootDeviceName"], "Ebs": disk}],
            "SecurityGroupIds": [group["GroupId"] for group in seen.get("SecurityGroups", [])],
        }
        if profile := seen.get("IamInstanceProfile", {}).get("Arn"):
            data["IamInstanceProfile"] = {"Arn": profile}
        if key := seen.get("KeyName"):
            data["KeyName"] = key
        return {"LaunchTemplateName": template, "LaunchTemplateData": data}

    def create_image(self, request: Request) -> str:
        """Starts to make an image; returns its ID."""
        with self._api.convert_errors("ec2:CreateImage", request["InstanceId"]):
            return self._api.client.create_image(**request)["ImageId"]

    def await_image(self, image: str, clock: Clock) -> None:
        """Waits until the image is available. Raises MisconfiguredError if it failed."""
        begun = clock.monotonic()
        while (state := self._read_state(image)) != "available":
            if state != "pending":
                raise MisconfiguredError(f"{image} is {state}: nothing else was changed; make another image")
            if clock.monotonic() - begun > READY_SECONDS:
                raise ComputeUnavailableError(
                    f"{image} is still pending after {READY_SECONDS / 60:.0f} min: nothing else was changed"
                )
            clock.sleep(POLL_SECONDS)

    def save_template(self, request: Request, image: str) -> int:
        """Creates the template or its next version; returns the new default version.

        A next version keeps what the one before has, except for the image and what every machine requires.
        """
        template = request["LaunchTemplateName"]
        named = name_template(template)
        with (
            suppress(ObjectNotFoundError),
            self._api.convert_errors("ec2:CreateLaunchTemplateVersion", template),
        ):
            made = self._api.client.create_launch_template_version(
                **named,
                SourceVersion="$Latest",
                LaunchTemplateData=_require(image),  # type: ignore[arg-type]
            )
            version = made["LaunchTemplateVersion"]["VersionNumber"]
            with self._api.convert_errors("ec2:ModifyLaunchTemplate", template):
                self._api.client.modify_launch_template(**named, DefaultVersion=str(version))
            return version
        if template.startswith(ID_PREFIX):
            raise MisconfiguredError(f"there is no launch template {template}: fix GPU_LAUNCH_TEMPLATE")
        with self._api.convert_errors("ec2:CreateLaunchTemplate", template):
            return self._api.client.create_launch_template(**request)["LaunchTemplate"]["LatestVersionNumber"]

    def _read_state(self, image: str) -> str:
        with self._api.convert_errors("ec2:DescribeImages", image):
            found = self._api.client.describe_images(ImageIds=[image])["Images"]
        return found[0]["State"] if found else "pending"


def _require(image: str) -> Request:
    """Required fields of a created machine: name in metadata, end at power-off."""
    return {
        "ImageId": image,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
    }
