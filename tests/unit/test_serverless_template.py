"""The template of the function: `iam-policy`'s rights, one pass at a time, settings that load."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchscribe.adapters.aws.iam import Folder, Who, make_policy
from batchscribe.core.decide.fixed import MONTH_HOURS
from batchscribe.deploy.lambda_function import PASSES
from batchscribe.settings import load
from docs import money
from support import templates
from support.templates import INSTANCE, PLACE, ROLE, filled, loaded, ordered

TEMPLATE = Path(__file__).parents[2] / "deploy" / "cloudformation" / "serverless.yaml"
NAMES = templates.NAMES | {
    "StopRole": ROLE,
    "State": "state",
    "State.Arn": "arn:aws:s3:::state",
    "CheckHours": "1",
    "AWS::NoValue": "",
}


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    made: dict[str, Any] = loaded(TEMPLATE)["Resources"]
    return {name: filled(resource, NAMES)["Properties"] for name, resource in made.items()}


def test_the_function_has_the_rights_that_iam_policy_prints_and_its_log(resources: dict[str, Any]) -> None:
    printed, log = (each["PolicyDocument"] for each in resources["Role"]["Policies"])
    place = replace(PLACE, state=Folder(bucket="state"))
    assert ordered(printed) == ordered(make_policy(Who.SCHEDULER, place))
    (statement,) = log["Statement"]
    assert statement["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]
    assert statement["Resource"] == "Log.Arn"


def test_its_state_is_in_a_bucket_that_is_kept_closed_and_encrypted(resources: dict[str, Any]) -> None:
    assert loaded(TEMPLATE)["Resources"]["State"]["DeletionPolicy"] == "Retain"
    assert all(resources["State"]["PublicAccessBlockConfiguration"].values())
    assert "BucketEncryption" in resources["State"]


def test_one_pass_at_a_time_and_none_is_repeated_by_aws(resources: dict[str, Any]) -> None:
    assert resources["Function"]["ReservedConcurrentExecutions"] == 1
    assert resources["Events"]["MaximumRetryAttempts"] == 0


@pytest.mark.parametrize(("schedule", "made"), [("Tick", "tick"), ("Watchdog", "watchdog")])
def test_the_schedules_invoke_passes_that_the_function_knows(
    resources: dict[str, Any], schedule: str, made: str
) -> None:
    target = resources[schedule]["Target"]
    assert json.loads(target["Input"]) == {"pass": made}
    assert made in PASSES
    assert target["Arn"] == "Function.Arn"


def test_the_handler_is_there(resources: dict[str, Any]) -> None:
    module, _, name = resources["Function"]["Handler"].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_function_gets_settings_that_load(resources: dict[str, Any], tmp_path: Path) -> None:
    variables = resources["Function"]["Environment"]["Variables"]
    names = {name: value for name, value in variables.items() if isinstance(value, str)}
    settings = load(names | {"AWS_REGION": "us-east-2", "AWS_LAMBDA_FUNCTION_NAME": "f"}, folder=tmp_path)
    assert (settings.source, settings.control) == ("s3://audio/sessions", "s3://audio/control")
    assert (settings.state_url, settings.instance_id) == ("s3://state", INSTANCE)
    assert (settings.guard_role_arn, settings.launch) == (ROLE, "boot")
    assert settings.warnings == ()
    assert settings.host_hourly_cost is not None
    hourly = money._function_month().per(MONTH_HOURS)
    assert hourly is not None
    assert settings.host_hourly_cost.text(4) == hourly.text(4), "the price on its page"
