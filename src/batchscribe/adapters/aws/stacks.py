"""Creates CloudFormation stacks, and reads what they made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchscribe.adapters.aws.clients import Api, Meaning
from batchscribe.errors import MisconfiguredError

_MEANINGS: dict[str, Meaning] = {
    "AlreadyExistsException": (
        MisconfiguredError,
        "the stack {subject} exists already in {region}: delete it, or set its outputs by hand",
    ),
    "InsufficientCapabilitiesException": (MisconfiguredError, "CloudFormation refused {subject}: {text}"),
}
_UNDER_WAY = "_IN_PROGRESS"
_DONE = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})


@dataclass(frozen=True, slots=True)
class MadeStack:
    """A stack as CloudFormation reports it."""

    name: str
    status: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def under_way(self) -> bool:
        return self.status.endswith(_UNDER_WAY)

    @property
    def usable(self) -> bool:
        return self.status in _DONE


class Stacks:
    """CloudFormation in one region, with our errors."""

    def __init__(self, region: str) -> None:
        self._api: Api[Any] = Api("cloudformation", region, _MEANINGS)

    def list(self) -> tuple[MadeStack, ...]:
        with self._api.convert_errors("cloudformation:DescribeStacks", "this account"):
            pages = self._api.client.get_paginator("describe_stacks").paginate()
            return tuple(_to_stack(row) for page in pages for row in page["Stacks"])

    def create(self, name: str, template: str, parameters: Mapping[str, str]) -> None:
        """Requests the stack; `failure` and `describe` show the result."""
        rows = [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
        with self._api.convert_errors("cloudformation:CreateStack", name):
            self._api.client.create_stack(
                StackName=name, TemplateBody=template, Parameters=rows, Capabilities=["CAPABILITY_IAM"]
            )

    def describe(self, name: str) -> MadeStack:
        with self._api.convert_errors("cloudformation:DescribeStacks", name):
            (found,) = self._api.client.describe_stacks(StackName=name)["Stacks"]
        return _to_stack(found)

    def failure(self, name: str) -> str:
        """The first error in the stack's events; empty if there is none."""
        with self._api.convert_errors("cloudformation:DescribeStackEvents", name):
            events = self._api.client.describe_stack_events(StackName=name)["StackEvents"]
        failed = [row for row in events if row.get("ResourceStatus", "").endswith("_FAILED")]
        return (
            f"{failed[-1]['LogicalResourceId']}: {failed[-1].get('ResourceStatusReason', '')}"
            if failed
            else ""
        )


def _to_stack(row: Mapping[str, Any]) -> MadeStack:
    return MadeStack(
        name=row["StackName"],
        status=row["StackStatus"],
        parameters={
            each["ParameterKey"]: each.get("ParameterValue", "") for each in row.get("Parameters", [])
        },
        outputs={each["OutputKey"]: each["OutputValue"] for each in row.get("Outputs", [])},
    )
