"""CloudFormation templates as values, with their parameters put in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from batchscribe.adapters.aws.iam import AccountPlace, Folder, Who, make_policy, make_trust

FOLDER = Path(__file__).parents[2] / "deploy" / "cloudformation"
ROLE = "arn:aws:iam::123456789012:role/stop"
INSTANCE = "i-0123456789abcdef0"
NAMES = {
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-2",
    "AWS::AccountId": "123456789012",
    "AWS::StackName": "batchscribe",
    "Bucket": "audio",
    "Prefix": "sessions",
    "ControlPrefix": "control",
    "GpuType": "g4dn.xlarge",
    "Package": "batchscribe[aws]",
    "Gpu": INSTANCE,
    "StopRole.Arn": ROLE,
    "SchedulerGroup.GroupId": "sg-scheduler",
    "Key.KeyPairId": "key-0",
}
PLACE = AccountPlace(
    account="123456789012",
    region="us-east-2",
    instance=INSTANCE,
    source=Folder(bucket="audio", prefix="sessions/"),
    output=Folder(bucket="audio", prefix="sessions/"),
    control=Folder(bucket="audio", prefix="control/"),
    live_lock=("audio", "batch-lock.json"),
    guard_role=ROLE,
)


@cache
def loaded(path: Path) -> Any:
    from cfnlint.decode import cfn_yaml  # slow to import

    return cfn_yaml.load(str(path))


def read_resources(template: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Properties of each resource, with everything put in that is in `names`."""
    made: dict[str, Any] = loaded(FOLDER / template)["Resources"]
    return {name: filled(resource, names)["Properties"] for name, resource in made.items()}


def complaints(*paths: Path) -> str:
    """What cfn-lint reports; empty if it is content."""
    command = [sys.executable, "-c", "from cfnlint.runner import main; main()", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def write_policies(path: Path, place: AccountPlace) -> Path:
    """Writes a template whose roles have the printed policies, for cfn-lint."""
    roles = {
        who.title(): {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "AssumeRolePolicyDocument": make_trust(who, place) or make_trust(Who.BOX, place),
                "Policies": [{"PolicyName": who, "PolicyDocument": make_policy(who, place)}],
            },
        }
        for who in Who
    }
    path.write_text(json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": roles}))
    return path


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """The template's value with everything put in that is in `names`."""
    if isinstance(value, list):
        return [filled(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return names.get(value["Ref"], value["Ref"])
    if set(value) == {"Fn::GetAtt"}:
        name = ".".join(value["Fn::GetAtt"])
        return names.get(name, name)
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([A-Za-z:.]+)\}", lambda found: names[found[1]], value["Fn::Sub"])
    return {key: filled(each, names) for key, each in value.items()}


def ordered(value: Any) -> Any:
    """The same document with its lists of names in one order."""
    if isinstance(value, list):
        return sorted(value) if all(isinstance(each, str) for each in value) else [ordered(e) for e in value]
    return {key: ordered(each) for key, each in value.items()} if isinstance(value, dict) else value
