"""The guard's stop order: its name, its times, and its EventBridge request.

An order belongs to one machine and one run or manual session; its name contains both. A machine that a run
creates has no ID of EC2 yet when its order is armed: such an order finds it by its tag, and terminates it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST, GUARD_LAST, MACHINE_TAG, Claim

GROUP = "batchscribe"
"""The schedule group of all orders; the template creates it."""
STOP_TARGET = "arn:{partition}:scheduler:::aws-sdk:ec2:stopInstances"
TERMINATE_TARGET = "arn:{partition}:scheduler:::aws-sdk:ssm:startAutomationExecution"
TERMINATE_DOCUMENT = "AWS-TerminateEC2Instance"
"""Runbook of Systems Manager: its parameter InstanceId is filled with the instances that have a tag."""
_EC2_ID = re.compile(r"i-[0-9a-f]+")
OLDEST_EVENT_SECONDS = 60
"""EventBridge's minimum: a later stop could hit another session."""
RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Stops or terminates `instance` every GUARD_EVERY, from `first` until before `end`."""

    instance: str
    run: str
    first: datetime
    end: datetime

    @property
    def name(self) -> str:
        return f"{name_prefix(self.instance)}{self.run}"

    @property
    def terminates(self) -> bool:
        """True if the run creates its machine: its id is a name."""
        return _EC2_ID.fullmatch(self.instance) is None

    @property
    def tries(self) -> tuple[datetime, ...]:
        """Times at which it stops the instance."""
        count = -((self.first - self.end) // GUARD_EVERY)
        return tuple(self.first + number * GUARD_EVERY for number in range(count))

    def request(self, role: str) -> dict[str, object]:
        """The parameters of CreateSchedule; `role` is the stop role's ARN."""
        minutes = GUARD_EVERY // timedelta(minutes=1)
        act = "terminates" if self.terminates else "stops"
        partition = role.split(":")[1] if role.count(":") else "aws"
        target = {
            "Arn": (TERMINATE_TARGET if self.terminates else STOP_TARGET).format(partition=partition),
            "RoleArn": role,
            "Input": json.dumps(self._make_input()),
            "RetryPolicy": {
                "MaximumEventAgeInSeconds": OLDEST_EVENT_SECONDS,
                "MaximumRetryAttempts": RETRIES,
            },
        }
        return {
            "Name": self.name,
            "GroupName": GROUP,
            "Description": f"{act} {self.instance} if run {self.run} left it running",
            "ScheduleExpression": f"rate({minutes} minutes)",
            "ScheduleExpressionTimezone": "UTC",
            "StartDate": self.first,
            "EndDate": self.end,
            "State": "ENABLED",
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "ActionAfterCompletion": "DELETE",
            "Target": target,
        }

    def _make_input(self) -> dict[str, object]:
        if not self.terminates:
            return {"InstanceIds": [self.instance]}
        return {
            "DocumentName": TERMINATE_DOCUMENT,
            "TargetParameterName": "InstanceId",
            "Targets": [{"Key": f"tag:{MACHINE_TAG}", "Values": [self.instance]}],
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
