"""`iam-policy`: all that we call is allowed, nothing is allowed that we do not call, and AWS knows it all."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.iam import AccountPlace, Folder, Who, make_policy, make_trust
from batchscribe.cli.main import cli
from batchscribe.core import keys
from batchscribe.settings import load
from batchscribe.wiring.rights import make_place
from support.templates import complaints, write_policies

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "batchscribe"
ADAPTERS = SOURCE / "adapters"
TEMPLATE = ROOT / "deploy" / "cloudformation" / "guard.yaml"
INSTANCE = "i-0123456789abcdef0"
ACCOUNT = "123456789012"
PLACE = AccountPlace(
    account=ACCOUNT,
    region="us-east-2",
    instance=INSTANCE,
    source=Folder(bucket="audio", prefix="sessions/"),
    output=Folder(bucket="audio", prefix="sessions/"),
    live_lock=("audio", "batch-lock.json"),
    guard_role=f"arn:aws:iam::{ACCOUNT}:role/guard",
    types=("g4dn.xlarge", "g5.xlarge"),
    prices=True,
)
KEY = f"arn:aws:kms:us-east-2:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
RIGHTS = {"ListObjectsV2": "ListBucket", "HeadObject": "GetObject"}
"""Where S3's operation and the right to it have two names."""
SERVICES = {
    ("aws/ec2", "self._api.client"): "ec2",
    ("aws/eventbridge", "self._api.client"): "scheduler",
    ("aws/account", "self._api('ec2').client"): "ec2",
    ("aws/account", "self._api('service-quotas').client"): "service-quotas",
    ("aws/account", "self._api('scheduler').client"): "scheduler",
    ("aws/account", "self._api('sts').client"): "sts",
    ("aws/price_list", "pricing.client"): "pricing",
    ("aws/price_list", "ec2.client"): "ec2",
    ("stores/boto3_store", "self._client"): "s3",
}
"""By module and the expression of the client."""
OPENER = "aws/clients"
FLEET_SERVICES = {("aws/fleet", "self._api.client"): "ec2", ("aws/launch_templates", "self._client"): "ec2"}
"""The same for machines that runs create: what they call in place of aws/ec2."""
INTERACTIVE = {"aws/images", "aws/stacks"}
"""Used by `init` and `gpu image`, with a user's own rights: they are no part of the printed policies.

Nor are aws/account's calls of S3, which `init` alone makes."""


def statements(who: Who, place: AccountPlace = PLACE) -> list[dict[str, Any]]:
    found: Any = make_policy(who, place)["Statement"]
    return list(found)


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def actions(who: Who, place: AccountPlace = PLACE) -> set[str]:
    return {action for each in statements(who, place) for action in listed(each["Action"])}


def allowed(who: Who, action: str, resource: str, place: AccountPlace = PLACE) -> bool:
    """As IAM decides, without the conditions."""
    return any(
        action in listed(each["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(each["Resource"]))
        for each in statements(who, place)
    )


def called(module: str, held: str, service: str) -> set[str]:
    """The rights to all that an adapter's client is asked for, read from its source."""
    session: Any = boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="x")
    client = session.client(service, region_name="us-east-1")
    found = set()
    for node in ast.walk(ast.parse((ADAPTERS / f"{module}.py").read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) == held:
            paged = node.func.attr == "get_paginator"
            name = ast.literal_eval(node.args[0]) if paged else node.func.attr
            operation = client.meta.method_to_api_mapping[name]
            found.add(f"{service.replace('-', '')}:{RIGHTS.get(operation, operation)}")
    return found


def test_all_that_the_adapters_call_is_allowed_and_nothing_else() -> None:
    wanted = {
        right for (module, held), service in SERVICES.items() for right in called(module, held, service)
    }
    assert {right for right in wanted if right.startswith("ec2:")} >= {"ec2:StartInstances", "ec2:CreateTags"}
    assert actions(Who.SCHEDULER) - {"iam:PassRole"} == wanted


def test_all_that_a_fleet_calls_is_allowed_and_nothing_else() -> None:
    place = replace(PLACE, template="lt-0123456789abcdef0", instance="*")
    services = {key: name for key, name in SERVICES.items() if key[0] != "aws/ec2"} | FLEET_SERVICES
    wanted = {
        right for (module, held), service in services.items() for right in called(module, held, service)
    }
    # EC2 checks the right to the launch beside that to the fleet; no host is reached over ssh.
    assert actions(Who.SCHEDULER, place) - {"iam:PassRole", "ec2:RunInstances"} == wanted - {
        "ec2:DescribeSecurityGroups"
    }


def test_every_adapter_of_aws_is_looked_at() -> None:
    users = {
        path.relative_to(ADAPTERS).with_suffix("").as_posix()
        for path in ADAPTERS.rglob("*.py")
        if re.search(r"\b(boto3\.client|Api)\b", path.read_text())
    }
    called = {module for module, _ in SERVICES | FLEET_SERVICES}
    assert users - INTERACTIVE - {OPENER} == called


def test_the_host_reads_and_writes_the_store_and_touches_no_instance() -> None:
    assert actions(Who.BOX) == {"s3:ListBucket", "s3:GetObject", "s3:PutObject"}
    assert actions(Who.STOP) == {"ec2:StopInstances"}


def audio(key: str, folder: str = "sessions/") -> str:
    return f"arn:aws:s3:::audio/{folder}{key}"


BOX_WRITES = {
    "attempt": keys.attempt("a", "etag", "run-1"),
    "boot": keys.boot("run-1"),
    "host_end": keys.host_end("run-1"),
    "exit_record": keys.exit_record("run-1", 0),
    "later_boot": keys.later_boot("run-1", "0b9c6f2e-5a1d-4c3e-9f70-6f1f2b1d7a11"),
    "progress": keys.progress("run-1", 0),
    "superseded": keys.superseded("a/transcription-chunk-001.json", "run-1"),
}
"""By the name of their function: whatever else the host names, it only reads."""
BOX_READS = {"cancel", "instance", "intent", "manifest", "manifests", "settlement"}
OF_A_CREATED_MACHINE = (keys.boot("run-1", "run-1-0"), keys.host_end("run-1", "run-1-0"))


def test_every_control_object_that_the_host_names_is_known_here() -> None:
    folders = (SOURCE / "agent", SOURCE / "worker")
    files = [SOURCE / "wiring" / "worker.py", *(file for folder in folders for file in folder.glob("*.py"))]
    named = {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "keys" and node.attr.islower()
    }
    assert named == BOX_WRITES.keys() | BOX_READS


@pytest.mark.parametrize(
    ("who", "action", "key"),
    [
        (Who.BOX, "s3:GetObject", "a/chunk-001.webm"),
        (Who.BOX, "s3:GetObject", keys.instance(INSTANCE)),
        (Who.BOX, "s3:PutObject", "a/b/transcription-chunk-001.json"),
        (Who.BOX, "s3:PutObject", "transcription-x.wav.json"),
        *((Who.BOX, "s3:PutObject", key) for key in (*BOX_WRITES.values(), *OF_A_CREATED_MACHINE)),
        *((Who.BOX, "s3:PutObject", f"{keys.REHEARSALS}R/{key}") for key in BOX_WRITES.values()),
        (Who.SCHEDULER, "s3:PutObject", keys.intent("run-1")),
        (Who.SCHEDULER, "s3:PutObject", keys.quarantine("a")),
        (Who.SCHEDULER, "s3:PutObject", keys.instance(INSTANCE)),
        (Who.SCHEDULER, "s3:PutObject", "a/transcript.srt"),
        (Who.SCHEDULER, "s3:DeleteObject", "a/transcription-chunk-001.json"),
        (Who.SCHEDULER, "s3:DeleteObject", "a/layers/layer-0-raw-transcription/chunk-001.json"),
        (Who.SCHEDULER, "s3:DeleteObject", keys.superseded("a/transcript.json", "now")),
    ],
)
def test_what_each_writes_is_allowed_to_it(who: Who, action: str, key: str) -> None:
    assert allowed(who, action, audio(key))
    assert not allowed(who, action, audio(key, "elsewhere/")), "and only below the prefix"


APART = replace(PLACE, control=Folder(bucket="control", prefix="c/"))


@pytest.mark.parametrize(
    "key", [*BOX_WRITES.values(), *(f"{keys.REHEARSALS}R/{key}" for key in BOX_WRITES.values())]
)
def test_what_the_host_writes_of_control_objects_it_writes_into_their_own_store(key: str) -> None:
    apart = f"arn:aws:s3:::control/c/{key.removeprefix(keys.CONTROL)}"
    assert allowed(Who.BOX, "s3:PutObject", apart, APART)
    assert "transcription-" in key or not allowed(Who.BOX, "s3:PutObject", audio(key), APART)
    assert not allowed(Who.BOX, "s3:PutObject", apart)


def test_a_rehearsal_s_transcripts_are_written_into_the_control_store() -> None:
    key = "arn:aws:s3:::control/c/rehearsal/R/a/transcription-chunk-001.json"
    assert allowed(Who.BOX, "s3:PutObject", key, APART)
    assert not allowed(Who.BOX, "s3:PutObject", "arn:aws:s3:::control/c/instances/i.json", APART)


def test_the_scheduler_writes_control_objects_into_their_own_store_only() -> None:
    for key in (keys.intent("r"), keys.manifest("r", 0), keys.instance(INSTANCE), keys.quarantine("a")):
        apart = f"arn:aws:s3:::control/c/{key.removeprefix(keys.CONTROL)}"
        assert allowed(Who.SCHEDULER, "s3:PutObject", apart, APART)
        assert allowed(Who.SCHEDULER, "s3:DeleteObject", apart, APART)
    assert not allowed(Who.SCHEDULER, "s3:PutObject", audio(keys.compacted("0")), APART)
    assert allowed(Who.SCHEDULER, "s3:DeleteObject", audio(keys.attempt("a", "e", "r")), APART)
    for who in (Who.SCHEDULER, Who.BOX):
        assert allowed(who, "s3:GetObject", "arn:aws:s3:::control/c/runs/r/intent.json", APART)
        assert allowed(who, "s3:ListBucket", "arn:aws:s3:::control", APART)


@pytest.mark.parametrize(
    ("who", "action", "key"),
    [
        (Who.BOX, "s3:PutObject", "a/chunk-001.webm"),
        (Who.BOX, "s3:PutObject", keys.instance(INSTANCE)),
        (Who.BOX, "s3:PutObject", keys.quarantine("a")),
        (Who.BOX, "s3:PutObject", f"{keys.REHEARSALS}R/rehearsal/chunk-001.ogg"),
        (Who.SCHEDULER, "s3:PutObject", "a/chunk-001.webm"),
        (Who.SCHEDULER, "s3:DeleteObject", "a/chunk-001.webm"),
    ],
)
def test_no_side_can_change_the_audio_or_what_is_the_others(who: Who, action: str, key: str) -> None:
    assert not allowed(who, action, audio(key))


def test_another_instance_cannot_be_touched() -> None:
    other = f"arn:aws:ec2:us-east-2:{ACCOUNT}:instance/i-0fedcba9876543210"
    for who in Who:
        for action in ("ec2:StartInstances", "ec2:StopInstances", "ec2:CreateTags"):
            assert not allowed(who, action, other)
    order = f"arn:aws:scheduler:us-east-2:{ACCOUNT}:schedule/batchscribe/{INSTANCE}.run-1"
    assert allowed(Who.SCHEDULER, "scheduler:CreateSchedule", order)
    assert not allowed(Who.SCHEDULER, "scheduler:CreateSchedule", order.replace(INSTANCE, "i-0fed"))


def test_a_wildcard_in_a_prefix_is_a_character() -> None:
    place = AccountPlace(output=Folder(bucket="b", prefix="what?*/"))
    assert "arn:aws:s3:::b/what${?}${*}/*.json" in json.dumps(make_policy(Who.SCHEDULER, place))


def test_what_is_not_used_is_not_asked_for() -> None:
    bare = actions(Who.SCHEDULER, AccountPlace(instance=INSTANCE))
    assert {action.partition(":")[0] for action in bare} == {"ec2", "servicequotas", "sts"}
    assert "ec2:ModifyInstanceAttribute" not in bare


def reference() -> dict[str, Any]:
    text = (files("cfnlint") / "data" / "AdditionalSpecs" / "Policies.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_action_exists_and_names_a_resource_where_it_can() -> None:
    known = reference()
    for who in Who:
        for statement in statements(who, replace(PLACE, kms_keys=(KEY,))):
            for action in listed(statement["Action"]):
                service, _, name = action.partition(":")
                takes = known[service]["Actions"][name.lower()].get("Resources", [])
                assert bool(takes) == (statement["Resource"] != "*"), action


def test_the_templates_and_the_policies_are_clean(tmp_path: Path) -> None:
    """At once: cfn-lint takes longer to start than for a template."""
    control = Folder(bucket="audio", prefix="control/")
    fleet = replace(PLACE, instance="*", control=control, template="lt-0123456789abcdef0")
    printed = [
        write_policies(tmp_path / f"{place.template or 'guard'}.json", place) for place in (PLACE, fleet)
    ]
    assert complaints(*TEMPLATE.parent.glob("*.yaml"), *printed) == ""


def filled(value: Any) -> Any:
    """The template's value with its parameters and pseudo parameters put in."""
    names = {
        "AWS::Partition": "aws",
        "AWS::Region": PLACE.region,
        "AWS::AccountId": ACCOUNT,
        "GroupName": "batchscribe",
        "InstanceId": INSTANCE,
    }
    if isinstance(value, dict):
        if set(value) == {"Ref"}:
            return names[value["Ref"]]
        if set(value) == {"Fn::Sub"}:
            text = value["Fn::Sub"]
            for name, filling in names.items():
                text = text.replace(f"${{{name}}}", filling)
            return text
        return {key: filled(each) for key, each in value.items()}
    return [filled(each) for each in value] if isinstance(value, list) else value


def test_the_template_makes_the_role_and_the_group_that_the_guard_needs() -> None:
    from cfnlint.decode import cfn_yaml

    template: Any = cfn_yaml.load(str(TEMPLATE))
    role = filled(template["Resources"]["StopRole"]["Properties"])
    assert role["AssumeRolePolicyDocument"] == make_trust(Who.STOP, PLACE)
    assert role["Policies"][0]["PolicyDocument"] == make_policy(Who.STOP, PLACE)
    assert filled(template["Resources"]["Orders"]["Properties"]["Name"]) == "batchscribe"
    assert template["Parameters"]["GroupName"]["Default"] == "batchscribe"


def test_the_template_is_printed_from_the_installed_package(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["iam-policy", "--template"]).stdout == TEMPLATE.read_text()


NAMED = {
    "BATCH_SOURCE": "s3://audio/sessions",
    "GPU_INSTANCE_ID": INSTANCE,
    "AWS_REGION": "us-gov-west-1",
    "BATCH_GUARD_ROLE_ARN": f"arn:aws-us-gov:iam::{ACCOUNT}:role/guard",
    "GPU_INSTANCE_TYPES": "g5.xlarge",
    "GPU_INSTANCE_TYPE": "g4dn.xlarge",
}


def test_the_settings_fill_it_in(tmp_path: Path) -> None:
    place = make_place(load(NAMED, folder=tmp_path))
    assert (place.partition, place.account, place.region) == ("aws-us-gov", ACCOUNT, "us-gov-west-1")
    assert place.source == place.output == Folder(bucket="audio", prefix="sessions/")
    assert place.live_lock == ("audio", "batch-lock.json")
    assert place.types == ("g4dn.xlarge", "g5.xlarge")
    assert (place.guard_role, place.missing) == (NAMED["BATCH_GUARD_ROLE_ARN"], ())


def test_the_state_in_a_store_is_for_the_scheduler_alone(tmp_path: Path) -> None:
    kept = Folder(bucket="kept", prefix="s/")
    assert make_place(load(NAMED | {"BATCH_STATE_DIR": "s3://kept/s"}, folder=tmp_path)).state == kept
    place = replace(PLACE, state=kept)
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert allowed(Who.SCHEDULER, action, "arn:aws:s3:::kept/s/generations/0000000001", place)
        assert not allowed(Who.BOX, action, "arn:aws:s3:::kept/s/generations/0000000001", place)
    assert not allowed(Who.BOX, "s3:ListBucket", "arn:aws:s3:::kept", place)
    assert make_place(load(NAMED, folder=tmp_path)).state is None


def test_control_objects_of_their_own_place_get_rights_there(tmp_path: Path) -> None:
    place = make_place(load(NAMED | {"BATCH_CONTROL": "s3://control/c"}, folder=tmp_path))
    assert place.control == Folder(bucket="control", prefix="c/")
    assert make_place(load(NAMED, folder=tmp_path)).control is None


def test_the_rights_for_a_refresh_of_prices_are_optional() -> None:
    wanted = {"pricing:GetProducts", "ec2:DescribeSpotPriceHistory"}
    assert actions(Who.SCHEDULER) - actions(Who.SCHEDULER, replace(PLACE, prices=False)) == wanted
    printed = CliRunner().invoke(cli, ["iam-policy", "--role", "scheduler", "--prices", "--json"], env=NAMED)
    sids = {each["Sid"]: each["Action"] for each in json.loads(printed.stdout)["policy"]["Statement"]}
    assert set(sids["ReadPrices"]) == wanted


@pytest.mark.parametrize("who", [Who.SCHEDULER, Who.BOX])
def test_the_key_of_a_bucket_can_be_used_through_s3_alone(who: Who) -> None:
    printed = CliRunner().invoke(
        cli, ["iam-policy", "--role", who.value, "--kms-key", KEY, "--json"], env=NAMED
    )
    (found,) = [each for each in json.loads(printed.stdout)["policy"]["Statement"] if "Keys" in each["Sid"]]
    assert found["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]
    assert found["Resource"] == [KEY]
    assert found["Condition"] == {"StringLike": {"kms:ViaService": "s3.*"}}
    assert not [action for action in actions(who) if action.startswith("kms:")], "only if it is asked for"


@pytest.mark.parametrize("name", ["alias/audio", KEY.replace("key/", "alias/"), "*"])
def test_a_policy_names_no_alias_of_a_key(name: str) -> None:
    refused = CliRunner().invoke(cli, ["iam-policy", "--kms-key", name], env=NAMED)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "aws kms describe-key" in refused.stderr


def test_without_a_guard_no_right_to_one(tmp_path: Path) -> None:
    place = make_place(load(NAMED | {"BATCH_CLOUD_GUARD": "off"}, folder=tmp_path))
    assert not [action for action in actions(Who.SCHEDULER, place) if action.startswith("scheduler:")]


def test_what_is_not_on_s3_needs_no_right_there(tmp_path: Path) -> None:
    place = make_place(load(NAMED | {"BATCH_SOURCE": str(tmp_path)}, folder=tmp_path))
    assert not [action for action in actions(Who.SCHEDULER, place) if action.startswith("s3:")]


def test_the_command_prints_one_document_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*NAMED, "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    whole = CliRunner().invoke(cli, ["iam-policy", "--json"])
    assert set(json.loads(whole.stdout)) == {"scheduler", "stop", "box"}
    for name in ("ACCOUNT_ID", "REGION", "INSTANCE_ID", "GUARD_ROLE", "BUCKET"):
        assert f"{name} is unknown and stays" in whole.stderr
    one = CliRunner().invoke(cli, ["iam-policy", "--role", "stop", "--json"], env=NAMED)
    assert json.loads(one.stdout) == {
        "policy": make_policy(Who.STOP, make_place(load(NAMED, folder=tmp_path))),
        "trust": make_trust(Who.STOP, make_place(load(NAMED, folder=tmp_path))),
    }
    assert one.stderr == ""
    unnamed = CliRunner().invoke(cli, ["iam-policy"], env=NAMED | {"GPU_INSTANCE_TYPE": ""})
    assert "OWN_TYPE is unknown and stays" in unnamed.stderr
    shown = CliRunner().invoke(cli, ["iam-policy"], env=NAMED).stdout
    assert "# box: for the instance's own role" in shown
