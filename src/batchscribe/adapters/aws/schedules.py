"""The guard's stop order: its name, its times, and its EventBridge request.

An order belongs to one instance and one run or manual session; its name contains both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST, GUARD_LAST, Claim

GROUP = "batchscribe"
"""The schedule group of all orders; the template creates it."""
STOP_TARGET = "arn:{partition}:scheduler:::aws-sdk:ec2:stopInstances"
OLDEST_EVENT_SECONDS = 60
"""EventBridge's minimum: a later stop could hit another session."""
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Stops `instance` every GUARD_EVERY from `first` until before `end`."""

    instance: str
    run: str
    first: datetime
    end: datetime

    @property
    def name(self) -> str:
        return f"{name_prefix(self.instance)}{self.run}"

    @property
    def tries(self) -> tuple[datetime, ...]:
        """Times at which it stops the instance."""
        count = -((self.first - self.end) // GUARD_EVERY)
        return tuple(self.first + number * GUARD_EVERY for number in range(count))

    def request(self, role: str) -> dict[str, object]:
        """The parameters of CreateSchedule; `role` is the stop role's ARN."""
        minutes = GUARD_EVERY // timedelta(minutes=1)
        target = {
            "Arn": STOP_TARGET.format(partition=role.split(":")[1] if role.count(":") else "aws"),
            "RoleArn": role,
            "Input": json.dumps({"InstanceIds": [self.instance]}),
            "RetryPolicy": {
                "MaximumEventAgeInSeconds": OLDEST_EVENT_SECONDS,
                "MaximumRetryAttempts": RETRIES,
            },
        }
        return {
            "Name": self.name,
            "GroupName": GROUP,
            "Description": f"stops {self.instance} if run {self.run} left it running",
            "ScheduleExpression": f"rate({minutes} minutes)",
            "ScheduleExpressionTimezone": "UTC",
            "StartDate": self.first,
            "EndDate": self.end,
            "State": "ENABLED",
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "ActionAfterCompletion": "DELETE",
            "Target": target,
        }


def make_order(claim: Claim) -> StopOrder:
    """The order of a claim, in whole seconds as EventBridge stores them."""
    deadline = claim.deadline.replace(microsecond=0)
    return StopOrder(
        instance=claim.instance, run=claim.run, first=deadline + GUARD_FIRST, end=deadline + GUARD_LAST
    )


def name_prefix(instance: str) -> str:
    """Common prefix of the names of an instance's orders."""
    return f"{instance}."


def extract_run(name: str, instance: str) -> str:
    """The run in an order's name."""
    return name.removeprefix(name_prefix(instance))
