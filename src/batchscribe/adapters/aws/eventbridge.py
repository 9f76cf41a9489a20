"""The guard outside this machine: EventBridge Scheduler stops the instance through EC2's own API.

It needs the schedule group and the role that the template deploy/guard.yaml makes, and nothing of ours
that runs: what it does when an order comes due, it does whether this machine is there or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3

from batchscribe.adapters.aws.clients import AGAIN, Api, Meaning, let_ours_through, patience
from batchscribe.adapters.aws.schedules import GROUP, Order, order_of, prefix, run_of
from batchscribe.core.run.instances import Claim
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient

WAYS_OUT = (
    "create the stack that `batchscribe iam-policy --template` prints and put its role into "
    "BATCH_GUARD_ROLE_ARN, or go without a guard with BATCH_CLOUD_GUARD=off"
)

DESCRIPTION = (
    "EventBridge stops the GPU from 10 min after a run's deadline on, every 5 min until 25 min after it"
)
WITHOUT_ROLE = "EventBridge, but without its role: nothing is started until BATCH_GUARD_ROLE_ARN is set"


class _NoSuchOrderError(MisconfiguredError):
    """There is no such schedule, or no such group."""


class _OrderThereError(MisconfiguredError):
    """There is one of that name already."""


_MEANINGS: dict[str, Meaning] = {
    "ResourceNotFoundException": (
        _NoSuchOrderError,
        f"there is no schedule group {GROUP} in {{region}}, so {{subject}} cannot be guarded: {WAYS_OUT}",
    ),
    "ConflictException": (_OrderThereError, "the order {subject} is there already, or being changed"),
    "ValidationException": (
        MisconfiguredError,
        f"EventBridge refused the order {{subject}}: {{text}}; where that is about the role: {WAYS_OUT}",
    ),
    "ServiceQuotaExceededException": (
        MisconfiguredError,
        "EventBridge has no room for {subject} ({code}): ask for more schedules under Service Quotas",
    ),
}
_EXACT = timedelta(minutes=1)
"""EventBridge's own precision."""


class EventBridgeGuard:
    """A protocols.Guard of schedules in the group `batchscribe`, named `<instance>.<run>`.

    An order counts as given only after it was read back. One call takes at most `attempts` times the sum
    of both timeouts (seconds), and the waits between them. `role` is the ARN of the role that the schedule
    stops the instance with; `endpoint` replaces AWS's address.
    """

    def __init__(
        self,
        *,
        role: str,
        region: str | None,
        endpoint: str | None = None,
        attempts: int = 4,
        connect_timeout: float = 3.0,
        read_timeout: float = 10.0,
    ) -> None:
        self.description = DESCRIPTION if role else WITHOUT_ROLE
        self._role = role
        self._region = region
        self._endpoint = endpoint
        self._config = patience(attempts, connect_timeout, read_timeout)
        self._api = Api(service="EventBridge Scheduler", region=region, meanings=_MEANINGS)

    def arm(self, claim: Claim) -> None:
        if not self._role:
            raise MisconfiguredError(f"BATCH_GUARD_ROLE_ARN is not set: {WAYS_OUT}")
        order = order_of(claim)
        request: dict[str, Any] = order.request(self._role)
        try:
            with self._api.asked("scheduler:CreateSchedule", order.name):
                self._client.create_schedule(**request)
        except _OrderThereError:
            if not self._differences(order):
                return
            with self._api.asked("scheduler:UpdateSchedule", order.name, ConflictException=AGAIN):
                self._client.update_schedule(**request)
        if different := self._differences(order):
            raise ComputeUnavailableError(
                f"the order {order.name} reads back with another {', '.join(different)}: it does not "
                "count as armed"
            )

    def disarm(self, instance: str, run: str) -> None:
        name = f"{prefix(instance)}{run}"
        try:
            with self._api.asked("scheduler:DeleteSchedule", name, ConflictException=AGAIN):
                self._client.delete_schedule(Name=name, GroupName=GROUP)
        except _NoSuchOrderError:
            return

    def armed(self, instance: str) -> frozenset[str]:
        """A disabled order stops nothing, and does not count."""
        try:
            with self._api.asked("scheduler:ListSchedules", prefix(instance)):
                return frozenset(run_of(name, instance) for name in self._names(instance))
        except _NoSuchOrderError:
            return frozenset()

    def _names(self, instance: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_schedules")
        for page in pages.paginate(GroupName=GROUP, NamePrefix=prefix(instance), State="ENABLED"):
            yield from (found["Name"] for found in page["Schedules"])

    def _differences(self, order: Order) -> list[str]:
        """What of the order EventBridge keeps otherwise than it was asked to."""
        lost: Meaning = (
            ComputeUnavailableError,
            "the order {subject} was given and cannot be read back: it does not count as armed; look again",
        )
        with self._api.asked("scheduler:GetSchedule", order.name, ResourceNotFoundException=lost):
            found = self._client.get_schedule(Name=order.name, GroupName=GROUP)
        return _differences(order.request(self._role), found)

    @cached_property
    def _client(self) -> EventBridgeSchedulerClient:
        client = boto3.session.Session().client(
            "scheduler", region_name=self._region, endpoint_url=self._endpoint, config=self._config
        )
        client.meta.events.register_first("needs-retry.scheduler", let_ours_through)
        return client


def _differences(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    fields = ("State", "ScheduleExpression", "StartDate", "EndDate")
    different = [field for field in fields if not _same(asked[field], found.get(field))]
    target = found.get("Target", {})
    wrong = [each for each in ("Arn", "RoleArn") if asked["Target"][each] != target.get(each)]
    if _input(asked["Target"]) != _input(target):
        wrong.append("Input")
    return [*different, *wrong]


def _input(target: Mapping[str, Any]) -> object:
    """What the target is called with; a text of its own where that is no JSON."""
    text = target.get("Input", "")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _same(asked: object, found: object) -> bool:
    if isinstance(asked, datetime) and isinstance(found, datetime):
        return abs(asked - found) < _EXACT
    return asked == found
