"""IAM statements for machines that runs create.

Each machine is named by its tag, since it has no ID before its creation.
"""

from __future__ import annotations

from batchscribe.adapters.aws.schedules import TERMINATE_DOCUMENT
from batchscribe.core.run.instances import DEADLINE_TAG, MACHINE_TAG, MANIFEST_TAG, RUN_TAG

Statement = dict[str, object]
_OURS = {"StringLike": {f"aws:ResourceTag/{MACHINE_TAG}": "*"}}
"""An instance with our tag, which only a creation may write."""
_SHARED = (
    "image",
    "key-pair",
    "network-interface",
    "security-group",
    "snapshot",
    "spot-instances-request",
    "subnet",
    "volume",
)
"""Kinds of resources that a launch uses or makes, beside the instance and the template."""
_PUBLIC = ("image", "snapshot")
"""Kinds whose ARN has no account."""


def allow_creation(
    ec2: str, *, types: tuple[str, ...], template: str, host_role: str, region: str
) -> list[Statement]:
    """Statements to create tagged machines from the template, and to terminate them.

    `ec2` is the ARN up to the kind of resource, such as `arn:aws:ec2:us-east-2:123456789012:`. `region` is
    empty if it is unknown.
    """
    reads = ("Instances", "InstanceTypeOfferings", "LaunchTemplateVersions", "SpotPriceHistory", "Subnets")
    see: Statement = {
        "Sid": "SeeMachinesAndTemplate",
        "Effect": "Allow",
        "Action": [f"ec2:Describe{what}" for what in reads],
        "Resource": "*",
    }
    if region:
        see["Condition"] = {"StringEquals": {"aws:RequestedRegion": region}}
    machines = f"{ec2}instance/*"
    without_account = f"{ec2.rsplit(':', 2)[0]}::"
    used = [f"{without_account if kind in _PUBLIC else ec2}{kind}/*" for kind in _SHARED]
    created = {
        "StringEquals": {"ec2:InstanceType": list(types)},
        "StringLike": {f"aws:RequestTag/{MACHINE_TAG}": "*"},
    }
    tags = [RUN_TAG, DEADLINE_TAG, MANIFEST_TAG, MACHINE_TAG]
    return [
        see,
        allow("RequestMachines", "ec2:CreateFleet", [f"{ec2}fleet/*", f"{ec2}launch-template/{template}"]),
        allow("UseTemplate", "ec2:RunInstances", [f"{ec2}launch-template/{template}", *used]),
        allow("CreateTaggedMachines", "ec2:RunInstances", machines, created),
        allow(
            "TagMachinesAtCreation",
            "ec2:CreateTags",
            machines,
            {
                "StringEquals": {"ec2:CreateAction": ["CreateFleet", "RunInstances"]},
                "ForAllValues:StringEquals": {"aws:TagKeys": tags},
            },
        ),
        allow(
            "AnnounceManifests",
            "ec2:CreateTags",
            machines,
            _OURS | {"ForAllValues:StringEquals": {"aws:TagKeys": [MANIFEST_TAG]}},
        ),
        allow("TerminateOurMachines", "ec2:TerminateInstances", machines, _OURS),
        allow(
            "GiveTheHostRole",
            "iam:PassRole",
            host_role,
            {"StringLike": {"iam:PassedToService": "ec2.amazonaws.com*"}},
        ),
    ]


def allow_termination(ec2: str) -> list[Statement]:
    """Statements to run the runbook that terminates machines with our tag.

    The runbook runs with the same role. It finds the machines through tags, and polls them.
    """
    ssm = ec2.replace(":ec2:", ":ssm:")
    service = ":".join([*ssm.split(":")[:4], "*", ""])
    return [
        allow(
            "StartTermination",
            "ssm:StartAutomationExecution",
            [
                f"{service}automation-definition/{TERMINATE_DOCUMENT}:*",
                f"{service}document/{TERMINATE_DOCUMENT}",
                f"{ssm}automation-execution/*",
            ],
        ),
        allow("FollowTermination", "ssm:GetAutomationExecution", f"{ssm}automation-execution/*"),
        allow(
            "FindMachines", ["ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "tag:GetResources"], "*"
        ),
        allow("TerminateOurMachines", "ec2:TerminateInstances", f"{ec2}instance/*", _OURS),
    ]


def allow(
    sid: str, action: str | list[str], resource: str | list[str], condition: object = None
) -> Statement:
    """One statement of a policy."""
    made: Statement = {"Sid": sid, "Effect": "Allow", "Action": action, "Resource": resource}
    return made | ({"Condition": condition} if condition else {})
