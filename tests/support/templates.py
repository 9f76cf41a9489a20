"""CloudFormation templates, with their parameters put in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "cloudformation"


def read_resources(template: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Properties of each resource, with everything put in that is in `names`."""
    from cfnlint.decode import cfn_yaml  # slow to import

    made: dict[str, Any] = cfn_yaml.load(str(FOLDER / template))["Resources"]
    return {name: fill(resource, names)["Properties"] for name, resource in made.items()}


def fill(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [fill(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"Ref"}:
        return names.get(value["Ref"], value["Ref"])
    if set(value) == {"Fn::GetAtt"}:
        name = ".".join(value["Fn::GetAtt"])
        return names.get(name, name)
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([A-Za-z:.]+)\}", lambda found: names[found[1]], value["Fn::Sub"])
    return {key: fill(each, names) for key, each in value.items()}


def ordered(value: Any) -> Any:
    """The same document with its lists of names in one order."""
    if isinstance(value, list):
        return sorted(value) if all(isinstance(each, str) for each in value) else [ordered(e) for e in value]
    return {key: ordered(each) for key, each in value.items()} if isinstance(value, dict) else value
