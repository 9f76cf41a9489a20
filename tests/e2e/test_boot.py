"""Launch at boot on "AWS": moto for S3, EC2 and the guard, the real agent as the box, and no ssh anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from batchscribe import __version__
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core import keys
from batchscribe.core.run.host import HostPlace, InstanceRecord
from batchscribe.core.run.instances import MANIFEST_TAG
from batchscribe.core.run.manifest import decode
from batchscribe.core.text.transcripts import encode
from batchscribe.protocols import Store
from batchscribe.testing.guard import ROLE
from batchscribe.wiring.stores import open_store
from support.aws import make_stopped_instance
from support.cli import SPEECH, Desk, wait_for
from support.forked import ENGINES
from support.played_box import WAITS, PlayedBox, Power, played_box
from support.s3 import CREDENTIALS, REGION, aws_client, create_bucket

pytestmark = pytest.mark.e2e


@dataclass
class Cloud:
    endpoint: str
    home: Store
    instance: str
    desk: Desk
    box: PlayedBox

    @property
    def state(self) -> str:
        return state(self.endpoint, self.instance)

    @property
    def orders(self) -> list[Any]:
        client = aws_client(self.endpoint, "scheduler")
        found: list[Any] = client.list_schedules(GroupName=GROUP, NamePrefix=self.instance)["Schedules"]
        return found

    @property
    def record(self) -> InstanceRecord:
        return decode(self.home.get(keys.instance(self.instance)).data, InstanceRecord)

    def speech(self, count: int) -> None:
        data = (SPEECH / "morning-walk" / "chunk-002.ogg").read_bytes()
        for number in range(1, count + 1):
            self.home.create(f"walk/chunk-{number:03}.ogg", data)


def ec2(endpoint: str) -> Any:
    return aws_client(endpoint, "ec2")


def state(endpoint: str, instance: str) -> str:
    found = ec2(endpoint).describe_instances(InstanceIds=[instance])
    name: str = found["Reservations"][0]["Instances"][0]["State"]["Name"]
    return name


def tags(endpoint: str, instance: str) -> dict[str, str]:
    found = ec2(endpoint).describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    return {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}


@pytest.fixture
def cloud(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = f"audio-{os.urandom(4).hex()}"
    create_bucket(endpoint, bucket)
    url = f"s3://{bucket}/spoken"
    instance = make_stopped_instance(endpoint, instance_type="g4dn.xlarge")
    desk = Desk(tmp_path / "desk")
    desk.home.mkdir()
    desk.configure(
        **CREDENTIALS,
        AWS_ENDPOINT_URL=endpoint,
        BATCH_SOURCE=url,
        BATCH_ENGINE="scripted",
        BATCH_MIN_AGE_MINUTES="0",
        BATCH_POLL_SECONDS="0.3",
        BATCH_THRESHOLD="2",
        BATCH_GUARD_ROLE_ARN=ROLE,
        GPU_INSTANCE_ID=instance,
    )

    def stores(where: str) -> Store:
        return open_store(where, region=REGION, endpoint=endpoint)

    home = stores(url)
    record = InstanceRecord(
        instance=instance, release=__version__, at=datetime.now(UTC), boots=True, shows_tags=True
    )
    home.replace(keys.instance(instance), encode(record))
    box = PlayedBox(
        home=tmp_path / "box",
        place=HostPlace(instance=instance, home=url, region=REGION, endpoint=endpoint, waits=WAITS),
        stores=stores,
        running=lambda: state(endpoint, instance) == "running",
        announced=lambda: tags(endpoint, instance).get(MANIFEST_TAG),
        power=Power(lambda: ec2(endpoint).stop_instances(InstanceIds=[instance])),
    )
    names = {name: value for name, value in CREDENTIALS.items() if name != "AWS_DEFAULT_REGION"}
    with played_box(box, {"PYTHONPATH": ENGINES} | names):
        yield Cloud(endpoint, home, instance, desk, box)


def test_a_box_that_boots_needs_no_ssh(cloud: Cloud) -> None:
    cloud.speech(3)
    report = cloud.desk.json("tick")["runs"][0]
    assert (report["status"], report["transcription"]["done"]) == ("completed", 3)
    performance = report["performance"]
    assert performance["launch"] == "boot"
    assert 0 <= performance["to_running"] <= performance["to_worker"] <= performance["setup"]
    assert {"load", "first_window", "end", "teardown"} <= set(performance["timeline"])
    assert (cloud.state, cloud.orders, cloud.record.claim, cloud.box.boots) == ("stopped", [], None, 1)
    assert cloud.box.power.pulled == 0, "its scheduler was there, and stopped it"


def test_a_box_whose_scheduler_is_gone_ends_by_itself_and_the_next_tick_settles(cloud: Cloud) -> None:
    cloud.speech(3)
    cloud.desk.json("tick", "--no-wait")
    # One pass at a time, until the instance is up; then no further pass is made.
    wait_for("transcribing" in cloud.desk.json("watchdog").get("found", "") for _ in repeat(None))
    wait_for(cloud.state == "stopped" for _ in repeat(None))
    assert cloud.box.power.pulled == 1
    assert cloud.orders != []
    report = cloud.desk.json("tick")["runs"][0]
    assert (report["status"], report["transcription"]["done"]) == ("completed", 3)
    assert (cloud.orders, cloud.record.claim) == ([], None)


def test_a_box_that_a_person_started_is_left_alone(cloud: Cloud) -> None:
    done = cloud.desk.run("gpu", "start")
    assert done.returncode == 0, done.stderr
    wait_for(cloud.box.boots > 0 for _ in repeat(None))
    cloud.speech(3)
    document = cloud.desk.json("tick")
    assert document["reason"]["code"] == "gpu-in-use"
    assert (cloud.state, cloud.box.power.pulled) == ("running", 0)
    assert cloud.desk.run("gpu", "stop").returncode == 0


def test_the_rehearsal_of_the_box(cloud: Cloud) -> None:
    (proof,) = cloud.desk.json("rehearse", "--act", "box", "--yes")["proofs"]
    assert proof["proved"] is True
    assert proof["detail"] == "the GPU host powered itself off: work ended"
    assert cloud.box.power.pulled == 1
    assert (cloud.state, cloud.orders, cloud.record.claim) == ("stopped", [], None)
    assert list(cloud.home.list("_batchscribe/rehearsal/")) == []
    status = cloud.desk.run("status").stdout
    assert "Proved" in status
    assert "the GPU host powered itself off" in status
    (listed,) = cloud.desk.json_of("report", "--last", "24h", "--format", "json")["runs"]
    assert listed["run"] == proof["run"]


def test_a_rehearsal_is_not_begun_without_a_yes(cloud: Cloud) -> None:
    done = cloud.desk.run("rehearse", "--act", "box")
    assert done.returncode == 1
    assert "Continue?" in done.stderr
    assert (cloud.state, cloud.box.boots) == ("stopped", 0)
