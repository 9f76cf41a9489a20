"""With no right but the printed ones, each side does all of its work; moto decides as IAM does.

moto knows the resources of S3 only: elsewhere it is asked about actions alone.
"""

from __future__ import annotations

import itertools
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from batchscribe.adapters.aws.account import AwsAccount
from batchscribe.adapters.aws.ec2 import Ec2Compute
from batchscribe.adapters.aws.eventbridge import EventBridgeGuard
from batchscribe.adapters.aws.fleet import FleetCapacity
from batchscribe.adapters.aws.iam import AccountPlace, Folder, Who, make_policy
from batchscribe.adapters.stores.boto3_store import open_fallback
from batchscribe.cli.main import cli
from batchscribe.core import keys
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.cloud_account import MachineType
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.errors import MisconfiguredError, MissingRightError, ObjectNotFoundError
from batchscribe.ledger.kept_state import KEPT, KeptState
from batchscribe.protocols import Store
from batchscribe.testing.guard import ROLE
from batchscribe.wiring.stores import open_store
from support.aws import make_launch_template, make_schedule_group, make_stopped_instance
from support.s3 import REGION, aws_environment, create_bucket, moto_server, s3_client
from support.values import RATE

BUCKET, PREFIX = "rights-audio", "audio-sessions/"
FOLDER = Folder(bucket=BUCKET, prefix=PREFIX)
NUMBERS = itertools.count(1)
Restricted = Callable[..., None]


@dataclass
class Cloud:
    endpoint: str
    instance: str


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with aws_environment(), moto_server() as endpoint:
        create_bucket(endpoint, BUCKET)
        for key in (f"{PREFIX}a/chunk-001.webm", f"{PREFIX}{keys.manifest('run-1', 0)}"):
            s3_client(endpoint).put_object(Bucket=BUCKET, Key=key, Body=b"x")
        make_schedule_group(endpoint)
        yield Cloud(endpoint, make_stopped_instance(endpoint))


def enforced(endpoint: str, after: str) -> None:
    """From now on moto asks IAM, after so many calls."""
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", after.encode(), plain, method="POST")
    urllib.request.urlopen(request).close()


@pytest.fixture
def as_(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restricted]:
    """Puts credentials into the environment that may do what one of the sides may, and nothing else."""

    # moto computes a signature of its own for a query string, and nothing here is about signatures.
    monkeypatch.setattr("moto.iam.access_control.IAMRequestBase.check_signature", lambda _self: None)

    def become(who: Who, template: str = "") -> None:
        enforced(cloud.endpoint, "inf")
        iam: Any = boto3.session.Session().client("iam", region_name=REGION, endpoint_url=cloud.endpoint)
        user = f"{who}-{next(NUMBERS)}"
        iam.create_user(UserName=user)
        place = AccountPlace(
            account="123456789012",
            region=REGION,
            instance=cloud.instance,
            source=FOLDER,
            output=FOLDER,
            state=Folder(bucket=BUCKET, prefix="kept/"),
            live_lock=(BUCKET, "batch-lock.json"),
            guard_role=ROLE,
            types=("g6.xlarge",),
            template=template,
        )
        document = json.dumps(by_action(make_policy(who, place)))
        iam.put_user_policy(UserName=user, PolicyName="printed", PolicyDocument=document)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        # The fallback store asks through boto3's own session, which keeps the credentials it first saw.
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        enforced(cloud.endpoint, "0")

    yield become
    enforced(cloud.endpoint, "inf")


def by_action(document: dict[str, Any]) -> dict[str, Any]:
    kept = [
        each if "s3:" in str(each["Action"]) else each | {"Resource": "*"} for each in document["Statement"]
    ]
    return document | {"Statement": kept}


def stores(cloud: Cloud) -> list[Store]:
    """Both ways to the same store: the usual one, and that for unusual keys."""
    url = f"s3://{BUCKET}/{PREFIX.rstrip('/')}"
    usual = open_store(url, region=REGION, endpoint=cloud.endpoint)
    return [usual, open_fallback(url, BUCKET, PREFIX, region=REGION, endpoint=cloud.endpoint)]


def test_the_scheduler_needs_no_more_for_instance_and_guard(cloud: Cloud, as_: Restricted) -> None:
    as_(Who.SCHEDULER)
    compute = Ec2Compute(region=REGION, endpoint=cloud.endpoint)
    guard = EventBridgeGuard(role=ROLE, region=REGION, endpoint=cloud.endpoint)
    deadline = datetime(2030, 1, 1, tzinfo=UTC)
    claim = Claim(instance=cloud.instance, run="run-1", deadline=deadline)
    compute.change_type(cloud.instance, "g6.xlarge")
    guard.arm(claim)
    guard.arm(Claim(instance=cloud.instance, run="run-1", deadline=deadline.replace(hour=1)))
    compute.start(claim)
    assert compute.describe(cloud.instance).state is InstanceState.RUNNING
    compute.host_key_fingerprints(cloud.instance)
    compute.shutdown_behaviour(cloud.instance)
    compute.stop(cloud.instance, force=True)
    compute.release(cloud.instance)
    assert guard.armed(cloud.instance) == {"run-1"}
    guard.disarm(cloud.instance, "run-1")


def test_the_scheduler_keeps_its_state_and_the_host_cannot_read_it(
    cloud: Cloud, as_: Restricted, tmp_path: Path
) -> None:
    as_(Who.SCHEDULER)
    state = KeptState(open_store(f"s3://{BUCKET}/kept", region=REGION, endpoint=cloud.endpoint), tmp_path)
    for number in range(KEPT + 2):
        (tmp_path / "prices.json").write_text(str(number))
        state.save()
    state.fetch()
    assert state.files == {"prices.json": str(KEPT + 1).encode()}
    as_(Who.BOX)
    foreign = open_store(f"s3://{BUCKET}/kept", region=REGION, endpoint=cloud.endpoint)
    with pytest.raises(MissingRightError):
        KeptState(foreign, tmp_path).fetch()
    with pytest.raises(MissingRightError):
        foreign.get(f"generations/{KEPT + 2:010}")


def test_the_scheduler_needs_no_more_for_machines_that_it_creates(cloud: Cloud, as_: Restricted) -> None:
    make_launch_template(cloud.endpoint, "with-rights")
    as_(Who.SCHEDULER, "*")
    fleet = FleetCapacity(
        provider="fleet",
        template="with-rights",
        types=("g5.xlarge",),
        markets=(Market.SPOT,),
        rate_of=lambda *_offer: RATE,
        region=REGION,
        endpoint=cloud.endpoint,
    )
    claim = Claim(instance="run-1-0", run="run-1", deadline=datetime(2030, 1, 1, tzinfo=UTC))
    guard = EventBridgeGuard(role=ROLE, region=REGION, endpoint=cloud.endpoint)
    guard.arm(claim)
    (nothing,) = fleet.poll((claim.instance,))
    fleet.acquire(claim, fleet.offers(nothing)[0], nothing)
    fleet.announce(claim.instance, "a" * 64)
    assert [seen.id for seen in fleet.list_created()] == [claim.instance]
    fleet.teardown(claim.instance)
    assert fleet.poll((claim.instance,))[0].state is InstanceState.TERMINATED
    guard.disarm(claim.instance, claim.run)
    with pytest.raises(MissingRightError):
        Ec2Compute(region=REGION, endpoint=cloud.endpoint).stop(cloud.instance)


def test_the_doctor_reads_the_account_with_the_printed_rights(cloud: Cloud, as_: Restricted) -> None:
    as_(Who.SCHEDULER)
    account = AwsAccount(region=REGION, endpoint=cloud.endpoint)
    caller = account.caller()
    assert caller.account == "123456789012"
    assert caller.answered is not None
    assert account.machine_type("g5.xlarge") == MachineType(name="g5.xlarge", vcpus=4, gpus="1 NVIDIA A10G")
    assert account.schedule_group() == "ACTIVE"
    assert account.port_access(cloud.instance, 22).sources == ()
    # moto has no quotas of EC2: the right is there, the quota is not.
    with pytest.raises(ObjectNotFoundError):
        account.quota("g5.xlarge")


COMMANDS = (
    "scan",
    "doctor",
    "status",
    "why a/chunk-001.webm",
    "redo a/chunk-001.webm --dry-run",
    "quarantine list",
    "report",
    "tick --dry-run",
    "tick --no-wait",
    "pause",
    "resume",
    "gpu start --for 1h",
    "gpu status",
    "gpu stop",
    "reconcile",
    "watchdog",
)
"""Commands that reach AWS, in an order that leaves the instance stopped."""


def test_each_command_works_with_the_printed_rights(
    cloud: Cloud, as_: Restricted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "AWS_ENDPOINT_URL": cloud.endpoint,
        "AWS_REGION": REGION,
        "BATCH_SOURCE": f"s3://{BUCKET}/{PREFIX.rstrip('/')}",
        "BATCH_ENGINE": "pocketsphinx",
        "BATCH_GUARD_ROLE_ARN": ROLE,
        "GPU_INSTANCE_ID": cloud.instance,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    as_(Who.SCHEDULER)
    refused = {words: list_refusals(words) for words in COMMANDS}
    assert {words: lines for words, lines in refused.items() if lines} == {}
    as_(Who.STOP)
    assert list_refusals("scan"), "what is refused is recognized"
    assert list_refusals("gpu start")


def list_refusals(words: str) -> list[str]:
    """The lines of a command that name a missing right."""
    done = CliRunner().invoke(cli, words.split())
    lines = [*done.output.splitlines(), str(done.exception or "")]
    return [
        line for line in lines if re.search(r"access denied|the right \w+:|not (allowed|authorized)", line)
    ]


def test_without_rights_each_read_of_the_doctor_says_so(cloud: Cloud, as_: Restricted) -> None:
    as_(Who.BOX)
    account = AwsAccount(region=REGION, endpoint=cloud.endpoint)
    with pytest.raises(MissingRightError):
        account.machine_type("g5.xlarge")
    with pytest.raises(MissingRightError):
        account.port_access(cloud.instance, 22)
    # moto answers these two services in the format of another one.
    with pytest.raises(MisconfiguredError, match="not authorized"):
        account.quota("g5.xlarge")
    with pytest.raises(MisconfiguredError, match="not authorized"):
        account.schedule_group()


def test_the_scheduler_needs_no_more_for_the_store(cloud: Cloud, as_: Restricted) -> None:
    as_(Who.SCHEDULER)
    for number, store in enumerate(stores(cloud)):
        intent = keys.intent(f"run-{number}")
        assert store.create(intent, b"{}")
        store.replace(intent, b"{}")
        store.replace("a/transcript.srt", b"1")
        store.delete(intent)
        listed = [each.key for each in store.list("a/", after="a/chunk-001.webm")]
        assert listed == ["a/transcript.srt"]
        with pytest.raises(MisconfiguredError):
            store.replace("a/chunk-001.webm", b"other audio")
        with pytest.raises(MisconfiguredError):
            store.delete("a/chunk-001.webm")


def test_the_host_needs_no_more(cloud: Cloud, as_: Restricted) -> None:
    as_(Who.BOX)
    for number, store in enumerate(stores(cloud)):
        assert store.get(keys.manifest("run-1", 0)).data == b"x"
        assert store.get("a/chunk-001.webm").data == b"x"
        assert next(iter(store.list())).key
        assert store.create(f"a/transcription-chunk-00{number}.json", b"{}")
        store.replace(keys.progress("run-1", number), b"{}")
        for place in ("", f"{keys.REHEARSALS}R/"):
            assert store.create(f"{place}{keys.boot(f'run-{number}')}", b"{}")
            assert store.create(f"{place}{keys.attempt('a', 'etag', f'run-{number}')}", b"{}")
        with pytest.raises(MisconfiguredError):
            store.delete("a/chunk-001.webm")
        with pytest.raises(MisconfiguredError):
            store.replace(keys.instance(cloud.instance), b"{}")
        with pytest.raises(MisconfiguredError):
            store.create(keys.compacted("forged"), b"{}")
    with pytest.raises(MisconfiguredError):
        Ec2Compute(region=REGION, endpoint=cloud.endpoint).stop(cloud.instance)
