"""Launch at boot on "AWS": moto for S3, EC2 and the guard, the real agent, and no ssh anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from support.booted import Cloud, booted_cloud
from support.cli import wait_for
from support.s3 import CREDENTIALS

pytestmark = pytest.mark.e2e


@pytest.fixture
def cloud(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with booted_cloud(tmp_path, endpoint) as made:
        yield made


def test_a_host_that_boots_needs_no_ssh(cloud: Cloud) -> None:
    cloud.speech(3)
    report = cloud.desk.json("tick")["runs"][0]
    assert (report["status"], report["transcription"]["done"]) == ("completed", 3)
    performance = report["performance"]
    assert performance["launch"] == "boot"
    assert 0 <= performance["to_running"] <= performance["to_worker"] <= performance["setup"]
    assert {"load", "first_window", "end", "teardown"} <= set(performance["timeline"])
    assert (cloud.state, cloud.orders, cloud.record.claim, cloud.gpu_host.boots) == ("stopped", [], None, 1)
    assert cloud.gpu_host.power.pulled == 0, "its scheduler was there, and stopped it"


def test_a_host_whose_scheduler_is_gone_ends_by_itself_and_the_next_tick_settles(cloud: Cloud) -> None:
    cloud.speech(3)
    cloud.desk.json("tick", "--no-wait")
    # One pass at a time, until the instance is up; then no further pass is made.
    wait_for("transcribing" in cloud.desk.json("watchdog").get("found", "") for _ in repeat(None))
    wait_for(cloud.state == "stopped" for _ in repeat(None))
    assert cloud.gpu_host.power.pulled == 1
    assert cloud.orders != []
    report = cloud.desk.json("tick")["runs"][0]
    assert (report["status"], report["transcription"]["done"]) == ("completed", 3)
    assert (cloud.orders, cloud.record.claim) == ([], None)


def test_a_host_that_a_person_started_is_left_alone(cloud: Cloud) -> None:
    done = cloud.desk.run("gpu", "start")
    assert done.returncode == 0, done.stderr
    wait_for(cloud.gpu_host.boots > 0 for _ in repeat(None))
    cloud.speech(3)
    document = cloud.desk.json("tick")
    assert document["reason"]["code"] == "gpu-in-use"
    assert (cloud.state, cloud.gpu_host.power.pulled) == ("running", 0)
    assert cloud.desk.run("gpu", "stop").returncode == 0


def test_the_rehearsal_of_the_host(cloud: Cloud) -> None:
    (proof,) = cloud.desk.json("rehearse", "--act", "box", "--yes")["proofs"]
    assert proof["proved"] is True
    assert proof["detail"] == "the GPU host powered itself off: work ended"
    assert cloud.gpu_host.power.pulled == 1
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
    assert (cloud.state, cloud.gpu_host.boots) == ("stopped", 0)
