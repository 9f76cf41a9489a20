"""Validation of CreateSchedule and UpdateSchedule requests, as EventBridge Scheduler does it.

The rules are those of the service's model (lengths, patterns, ranges) and its answers to dates and
expressions, and those of EC2 and Systems Manager for the order's input, which they would refuse only at the
stop. Emulators do not
validate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from batchscribe.adapters.aws.schedules import GROUP

_NAME = re.compile(r"[0-9a-zA-Z_.-]{1,64}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")
_UNIVERSAL = re.compile(r"arn:aws[a-z-]*:scheduler:::aws-sdk:[a-z0-9]+:[a-z][A-Za-z0-9]+")
_RATE = re.compile(r"rate\(([1-9]\d*) (minute|minutes|hour|hours|day|days)\)")
_INSTANCE = re.compile(r"i-[0-9a-f]{8}(?:[0-9a-f]{9})?")
_PAST = timedelta(minutes=5)
_LONGEST_DESCRIPTION = 512
Request = Mapping[str, Any]


def refusals(request: Request, now: datetime, *, groups: frozenset[str] = frozenset({GROUP})) -> list[str]:
    """Reasons for a ValidationException or a ResourceNotFoundException; empty if valid."""
    found = [*_check_names(request, groups), *_check_times(request, now), *_check_modes(request)]
    return found + list(_check_target(request.get("Target", {})))


def _check_names(request: Request, groups: frozenset[str]) -> Iterator[str]:
    for field in ("Name", "GroupName"):
        if not _NAME.fullmatch(str(request.get(field, ""))):
            yield f"{field} {request.get(field)!r} is not 1 to 64 letters, digits, '-', '_' or '.'"
    if request.get("GroupName") not in groups:
        yield f"Schedule Group {request.get('GroupName')} does not exist."
    if len(request.get("Description", "")) > _LONGEST_DESCRIPTION:
        yield "Description is longer than 512 characters"


def _check_times(request: Request, now: datetime) -> Iterator[str]:
    start, end = request.get("StartDate"), request.get("EndDate")
    if not _RATE.fullmatch(str(request.get("ScheduleExpression", ""))):
        yield f"Invalid Schedule Expression {request.get('ScheduleExpression')}."
    if not isinstance(start, datetime) or not isinstance(end, datetime) or None in {start.tzinfo, end.tzinfo}:
        yield "StartDate and EndDate must be times with a zone"
        return
    if start < now - _PAST:
        yield "The StartDate you specify cannot be earlier than 5 minutes ago."
    if end <= start:
        yield "The StartDate must come before the EndDate."
    if end <= now:
        yield "The EndDate you specify cannot be in the past."


def _check_modes(request: Request) -> Iterator[str]:
    window = request.get("FlexibleTimeWindow", {})
    mode = window.get("Mode")
    if mode not in {"OFF", "FLEXIBLE"}:
        yield f"FlexibleTimeWindow.Mode {mode!r} is neither OFF nor FLEXIBLE"
    if mode == "OFF" and "MaximumWindowInMinutes" in window:
        yield "MaximumWindowInMinutes cannot be set if FlexibleTimeWindow is OFF"
    for field, allowed in (
        ("State", {"ENABLED", "DISABLED"}),
        ("ActionAfterCompletion", {"NONE", "DELETE"}),
    ):
        if request.get(field, min(allowed)) not in allowed:
            yield f"{field} {request.get(field)!r} is none of {', '.join(sorted(allowed))}"


def _check_target(target: Request) -> Iterator[str]:
    if not _UNIVERSAL.fullmatch(str(target.get("Arn", ""))):
        yield f"Provided Arn {target.get('Arn')!r} is not the ARN of a universal target"
    if not _ROLE.fullmatch(str(target.get("RoleArn", ""))):
        yield f"RoleArn {target.get('RoleArn')!r} is not the ARN of a role"
    retry = target.get("RetryPolicy", {})
    if not 60 <= retry.get("MaximumEventAgeInSeconds", 86_400) <= 86_400:
        yield "MaximumEventAgeInSeconds must be from 60 to 86400"
    if not 0 <= retry.get("MaximumRetryAttempts", 185) <= 185:
        yield "MaximumRetryAttempts must be from 0 to 185"
    if _find_targets(target) == []:
        yield "Input is neither a StopInstances request with IDs, nor a termination of one tag, in JSON"


def _find_targets(target: Request) -> list[str]:
    """IDs of instances, or the tag of machines; empty if refused."""
    try:
        asked = json.loads(target.get("Input", ""))
        if str(target.get("Arn", "")).endswith(":ssm:startAutomationExecution"):
            return _find_tag(asked)
        instances = [str(each) for each in asked["InstanceIds"]]
    except (ValueError, TypeError, KeyError):
        return []
    return instances if all(_INSTANCE.fullmatch(each) for each in instances) else []


def _find_tag(asked: Request) -> list[str]:
    """Automation takes one tag, and a parameter that the document has."""
    ((only,), fields) = asked["Targets"], set(asked)
    known = {"DocumentName", "TargetParameterName", "Targets", "MaxConcurrency", "MaxErrors", "Parameters"}
    document = (asked["DocumentName"], asked["TargetParameterName"]) == (
        "AWS-TerminateEC2Instance",
        "InstanceId",
    )
    named = re.fullmatch(r"tag:.{1,128}", only["Key"]) and len(only["Values"]) == 1
    return [str(only["Values"][0])] if document and named and fields <= known else []
