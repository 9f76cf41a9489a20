"""The stop order that is given outside this machine: what it is called, when it stops, what is asked for.

An order belongs to one instance and one run, or to one session by hand, and its name says both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST, GUARD_LAST, Claim

GROUP = "batchscribe"
"""The schedule group that all orders lie in; the template makes it."""
STOP_TARGET = "arn:{partition}:scheduler:::aws-sdk:ec2:stopInstances"
OLDEST_EVENT_SECONDS = 60
"""The least that EventBridge allows: a stop that comes later could hit somebody else's session."""
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Stop `instance` every GUARD_EVERY from `first` on, and not from `end` on."""

    instance: str
    run: str
    first: datetime
    end: datetime

    @property
    def name(self) -> str:
        return f"{prefix(self.instance)}{self.run}"

    @property
    def tries(self) -> tuple[datetime, ...]:
        """When it stops the instance."""
        count = -((self.first - self.end) // GUARD_EVERY)
        return tuple(self.first + each * GUARD_EVERY for each in range(count))

    def request(self, role: str) -> dict[str, object]:
        """The order in CreateSchedule's terms; `role` is the stop role's ARN."""
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


def order_of(claim: Claim) -> Order:
    """The order that stands behind a claim; to whole seconds, as EventBridge keeps them."""
    deadline = claim.deadline.replace(microsecond=0)
    return Order(
        instance=claim.instance, run=claim.run, first=deadline + GUARD_FIRST, end=deadline + GUARD_LAST
    )


def prefix(instance: str) -> str:
    """How the names of all orders for an instance begin."""
    return f"{instance}."


def run_of(name: str, instance: str) -> str:
    """The run in an order's name."""
    return name.removeprefix(prefix(instance))
