"""Guard outside this machine: EventBridge Scheduler stops or terminates the machine.

It needs the schedule group and the role of the template deploy/guard.yaml or deploy/fleet.yaml. Orders take
effect without this machine and without any process of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.aws.clients import AGAIN, Api, Meaning
from batchscribe.adapters.aws.schedules import GROUP, StopOrder, extract_run, make_order, name_prefix
from batchscribe.core.run.instances import Claim
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient

WAYS_OUT = (
    "create the stack that `batchscribe iam-policy --template` prints and set its role in "
    "BATCH_GUARD_ROLE_ARN, or disable the guard with BATCH_CLOUD_GUARD=off"
)

DESCRIPTION = (
    "EventBridge stops the GPU from 10 min after a run's deadline on, every 5 min until 25 min after it"
)
WITHOUT_ROLE = "EventBridge, but without its role: nothing is started until BATCH_GUARD_ROLE_ARN is set"


class _NoSuchOrderError(MisconfiguredError):
    """There is no such schedule, or no such group."""


class _OrderThereError(MisconfiguredError):
    """A schedule of that name exists already."""


_MEANINGS: dict[str, Meaning] = {
    "ResourceNotFoundException": (
        _NoSuchOrderError,
        f"there is no schedule group {GROUP} in {{region}}, so {{subject}} cannot be guarded: {WAYS_OUT}",
    ),
    "ConflictException": (_OrderThereError, "the order {subject} exists already, or is being changed"),
    "ValidationException": (
        MisconfiguredError,
        f"EventBridge refused the order {{subject}}: {{text}}; if the role is the cause: {WAYS_OUT}",
    ),
    "ServiceQuotaExceededException": (
        MisconfiguredError,
        "EventBridge has no room for {subject} ({code}): request more schedules under Service Quotas",
    ),
}
_EXACT = timedelta(minutes=1)
"""EventBridge's precision."""


class EventBridgeGuard:
    """A protocols.Guard of schedules in the group `batchscribe`, named `<instance>.<run>`.

    An order counts as armed only after it was read back. `attempts` and `bounds` are those of a client: a
    call takes at most `attempts` times the sum of both timeouts, plus the backoff between attempts. `role` is
    the ARN of the role that stops the instance; `endpoint` replaces AWS's address.
    """

    def __init__(
        self,
        *,
        role: str,
        region: str | None,
        endpoint: str | None = None,
        attempts: int = 4,
        **bounds: Any,
    ) -> None:
        self.description = DESCRIPTION if role else WITHOUT_ROLE
        self._role = role
        self._api: Api[EventBridgeSchedulerClient] = Api(
            "scheduler", region, _MEANINGS, endpoint=endpoint, attempts=attempts, **bounds
        )

    def arm(self, claim: Claim) -> None:
        if not self._role:
            raise MisconfiguredError(f"BATCH_GUARD_ROLE_ARN is not set: {WAYS_OUT}")
        order = make_order(claim)
        request: dict[str, Any] = order.request(self._role)
        try:
            with self._api.convert_errors("scheduler:CreateSchedule", order.name):
                self._api.client.create_schedule(**request)
        except _OrderThereError:
            if not self._read_differences(order):
                return
            with self._api.convert_errors("scheduler:UpdateSchedule", order.name, ConflictException=AGAIN):
                self._api.client.update_schedule(**request)
        if different := self._read_differences(order):
            raise ComputeUnavailableError(
                f"the order {order.name} reads back with a different {', '.join(different)}: it does not "
                "count as armed; try again"
            )

    def disarm(self, instance: str, run: str) -> None:
        name = f"{name_prefix(instance)}{run}"
        with (
            suppress(_NoSuchOrderError),
            self._api.convert_errors("scheduler:DeleteSchedule", name, ConflictException=AGAIN),
        ):
            self._api.client.delete_schedule(Name=name, GroupName=GROUP)

    def armed(self, instance: str) -> frozenset[str]:
        """Runs with an enabled order; disabled orders do not count."""
        try:
            with self._api.convert_errors("scheduler:ListSchedules", name_prefix(instance)):
                pages = self._api.client.get_paginator("list_schedules").paginate(
                    GroupName=GROUP, NamePrefix=name_prefix(instance), State="ENABLED"
                )
                return frozenset(
                    extract_run(found["Name"], instance) for page in pages for found in page["Schedules"]
                )
        except _NoSuchOrderError:
            return frozenset()

    def _read_differences(self, order: StopOrder) -> list[str]:
        """Fields of the order that EventBridge stored differently."""
        lost: Meaning = (
            ComputeUnavailableError,
            "the order {subject} was created but cannot be read back: it does not count as armed; try again",
        )
        with self._api.convert_errors("scheduler:GetSchedule", order.name, ResourceNotFoundException=lost):
            found = self._api.client.get_schedule(Name=order.name, GroupName=GROUP)
        return _list_differences(order.request(self._role), found)


def _list_differences(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    fields = ("State", "ScheduleExpression", "StartDate", "EndDate")
    different = [field for field in fields if not _is_same(asked[field], found.get(field))]
    target = found.get("Target", {})
    wrong = [name for name in ("Arn", "RoleArn") if asked["Target"][name] != target.get(name)]
    if _decode_input(asked["Target"]) != _decode_input(target):
        wrong.append("Input")
    return [*different, *wrong]


def _decode_input(target: Mapping[str, Any]) -> object:
    """The target's input decoded from JSON, or its text if undecodable."""
    text = target.get("Input", "")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_same(asked: object, found: object) -> bool:
    if isinstance(asked, datetime) and isinstance(found, datetime):
        return abs(asked - found) < _EXACT
    return asked == found
