"""The controller is killed at every seam while the cloud misbehaves; after a tick or two all is well.

Real processes with real files, in front of moto's server, with a proxy between them that does to single
calls what clouds do. The worker is played, and outlives its controller as a real one does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.box import InstanceRecord, read
from batchscribe.core.transcripts import encode
from batchscribe.ledger import Ledger
from support.aws import make_stopped_instance
from support.crashing import Ended, Nursery, nursery
from support.faults import Drop, Fault, FaultProxy, Hang, Refusal, fault_proxy
from support.s3 import CREDENTIALS, REGION, aws_environment, moto_server

pytestmark = pytest.mark.e2e

POINTS = (
    "ledger.save_run:planned:after",
    "store.create:intent:after",
    "guard.arm:after",
    "store.replace:instance:after",
    "ledger.save_run:provisioning:after",
    "compute.start:after",
    "store.create:manifest:after",
    "launcher.launch:before",
    "launcher.launch:after",
    "compute.stop:before",
    "compute.stop:after",
    "guard.disarm:after",
    "compute.release:after",
    "store.create:settlement:after",
)
LOST_WITH_THE_DISK = (
    "store.create:intent:after",
    "compute.start:after",
    "launcher.launch:after",
    "compute.stop:after",
    "store.create:settlement:after",
)
PATIENT_TICKS = 3
LOOKS = ("GET ", "HEAD ", "Describe", "GetSchedule", "ListSchedules")
CHANGES = ("CreateTags", "StartInstances", "StopInstances", "CreateSchedule", "DeleteSchedule")
CONTROL = ("PUT intent.json", "PUT manifest.json", "PUT exit.json", "PUT settlement.json")
PUBLISHED = ("PUT transcription-chunk-001.json", "PUT transcription-chunk-002.json")
MODES: Mapping[str, Mapping[str, tuple[Fault, ...]]] = {
    "nothing": {},
    "refused": dict.fromkeys(CHANGES, (Refusal("InternalError", 500), Refusal("RequestLimitExceeded", 503)))
    | {"DescribeInstances": (None, Refusal("RequestLimitExceeded", 503)) * 3},
    "replies-lost": dict.fromkeys((*CHANGES, *CONTROL, *PUBLISHED), (Drop.AFTER,)),
    "silence": dict.fromkeys(("StartInstances", "StopInstances", "CreateSchedule"), (Hang(done=True),)),
    "expired": dict.fromkeys(("StopInstances", "DeleteSchedule"), (Refusal("ExpiredToken", 403),) * 3),
    "no-capacity": {"StartInstances": (Refusal("InsufficientInstanceCapacity", 500),)},
}
"""What the first calls of each name meet, whoever makes them: the tick that dies, or the one after it."""


@dataclass(frozen=True)
class Aws:
    """All that the cases share."""

    endpoint: str
    proxy: FaultProxy
    nursery: Nursery
    s3: Any
    ec2: Any
    scheduler: Any


@dataclass(frozen=True)
class Case:
    """A bucket with two chunks, one stopped instance, and a scheduler's desk, all new."""

    aws: Aws
    home: Path
    bucket: str
    instance: str

    def tick(self, crash: str = "", **names: str) -> Ended:
        environment = CREDENTIALS | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "AWS_ENDPOINT_URL": self.aws.proxy.endpoint,
            "BATCH_SOURCE": f"s3://{self.bucket}",
            "BATCH_POLICY": "now",
            "BATCH_ENGINE": "pocketsphinx",
            "BATCH_MIN_AGE_MINUTES": "0",
            "BATCH_POLL_SECONDS": "0.05",
            "BATCH_LAUNCH": "ssh",
            "BATCH_GUARD_ROLE_ARN": "arn:aws:iam::123456789012:role/batchscribe-guard",
            "GPU_INSTANCE_ID": self.instance,
        }
        return self.aws.nursery.run(self.home, "tick", "--json", environment=environment | names, crash=crash)

    def killed_at(self, point: str) -> None:
        """Ticks until one is killed there: faults lead the first ones another way."""
        told: list[Ended] = []
        while not (told and told[-1].killed):
            assert len(told) < PATIENT_TICKS, told
            told.append(self.tick(crash=point))

    def put(self, key: str, data: bytes) -> None:
        self.aws.s3.put_object(Bucket=self.bucket, Key=key, Body=data)

    def objects(self) -> list[str]:
        listed = self.aws.s3.list_objects_v2(Bucket=self.bucket)
        return [found["Key"] for found in listed.get("Contents", [])]

    @property
    def intents(self) -> list[str]:
        return [key for key in self.objects() if key.endswith("/intent.json")]

    @property
    def paid(self) -> list[str]:
        """The runs that ever had the GPU."""
        with Ledger(self.home / ".batchscribe" / "ledger.sqlite") as ledger:
            return [run.id for run in ledger.runs(datetime.min.replace(tzinfo=UTC)) if run.seen_up]

    def described(self) -> dict[str, Any]:
        answer = self.aws.ec2.describe_instances(InstanceIds=[self.instance])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    @property
    def orders(self) -> list[str]:
        """The names of the stop orders that stand for this instance."""
        listed = self.aws.scheduler.list_schedules()["Schedules"]
        return [found["Name"] for found in listed if found["Name"].startswith(self.instance)]

    def problems(self) -> list[str]:
        """Everything that is not as it should be when all is done."""
        return [*self._of_the_cloud(), *self._of_the_store(), *self._of_the_ledger()]

    def _of_the_cloud(self) -> Iterator[str]:
        seen = self.described()
        if (state := seen["State"]["Name"]) != "stopped":
            yield f"the instance is {state}"
        for tag in seen.get("Tags", []):
            if tag["Value"]:
                yield f"tag {tag['Key']} is {tag['Value']}"
        for name in self.orders:
            yield f"order {name} stands"

    def _of_the_store(self) -> Iterator[str]:
        found = self.objects()
        for key in ("s/transcription-chunk-001.json", "s/transcription-chunk-002.json"):
            times = self.aws.proxy.written[f"/{self.bucket}/{key}"]
            if times != 1 or key not in found:
                yield f"{key} was published {times} times"
        for key in self.intents:
            if key.replace("intent", "settlement") not in found:
                yield f"{key} is not settled"
        if "s/transcript.json" not in found:
            yield "the session was not written"
        record = self.aws.s3.get_object(Bucket=self.bucket, Key=keys.instance(self.instance))["Body"].read()
        if claim := read(record, InstanceRecord).claim:
            yield f"the box is still claimed by {claim.run}"

    def _of_the_ledger(self) -> Iterator[str]:
        with Ledger(self.home / ".batchscribe" / "ledger.sqlite") as ledger:
            for run in ledger.open_runs():
                yield f"run {run.id} is {run.state}"


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with aws_environment(), moto_server() as endpoint, fault_proxy(endpoint) as proxy, nursery() as made:
        session = boto3.session.Session(region_name=REGION)
        clients: dict[str, Any] = {
            name: session.client(name, endpoint_url=endpoint) for name in ("s3", "ec2", "scheduler")
        }
        clients["scheduler"].create_schedule_group(Name="batchscribe")
        yield Aws(endpoint=endpoint, proxy=proxy, nursery=made, **clients)


@pytest.fixture
def case(aws: Aws, tmp_path: Path) -> Case:
    aws.proxy.forget()
    bucket = f"audio-{os.urandom(4).hex()}"
    aws.s3.create_bucket(Bucket=bucket)
    made = Case(aws, tmp_path, bucket, make_stopped_instance(aws.endpoint, instance_type="g4dn.xlarge"))
    for number in (1, 2):
        made.put(f"s/chunk-{number:03}.wav", b"played, not heard")
    record = InstanceRecord(instance=made.instance, release=__version__, at=datetime.now(UTC), boots=True)
    made.put(keys.instance(made.instance), encode(record))
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_seam_the_next_ticks_make_it_good(case: Case, point: str, mode: str) -> None:
    for name, faults in MODES[mode].items():
        case.aws.proxy.plan(name, *faults)
    case.killed_at(point)
    told = [case.tick()]
    if case.problems():
        case.aws.proxy.plans.clear()
        told.append(case.tick())
    assert not case.problems(), told
    assert len(case.paid) == 1, "a crash is a pause, not another start"


@pytest.mark.parametrize("point", LOST_WITH_THE_DISK)
def test_the_ledger_is_lost_with_its_host_and_the_store_knows_it_all(case: Case, point: str) -> None:
    case.killed_at(point)
    shutil.rmtree(case.home / ".batchscribe")
    told = [case.tick()]
    if case.problems():
        told.append(case.tick())
    assert not case.problems(), told


@pytest.mark.parametrize("point", ["guard.arm:after", "compute.stop:after", "store.create:settlement:after"])
def test_when_all_is_good_ticks_are_quiet(case: Case, point: str) -> None:
    case.killed_at(point)
    case.tick()
    before = case.objects()
    case.aws.proxy.calls.clear()
    after = case.tick()
    assert after.document["decision"] == "hold", after
    assert not [name for name in case.aws.proxy.calls if not name.startswith(LOOKS)]
    assert case.objects() == before
