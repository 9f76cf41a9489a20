"""The main job on "AWS": moto's server over HTTP for S3 and EC2, a real sshd on loopback as the GPU host."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchscribe import __version__
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.text.transcripts import encode
from batchscribe.testing.guard import ROLE
from support.aws import make_stopped_instance
from support.cli import Desk, finish_by_timer, spoken, wait_for
from support.forked import ENGINES, FORKED_PROGRAM, nursery
from support.receivers import http_receiver, smtp_receiver
from support.s3 import CREDENTIALS, aws_client, create_bucket, put_object, s3_client
from support.sshd import Sshd, sshd

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

pytestmark = pytest.mark.e2e
PREFIX = "audio-sessions"


@dataclass
class Cloud:
    """One bucket, one stopped instance, one host behind ssh, and a scheduler's desk in front of it."""

    endpoint: str
    bucket: str
    instance: str
    host: Sshd
    desk: Desk

    @property
    def ec2(self) -> EC2Client:
        client: EC2Client = aws_client(self.endpoint, "ec2")
        return client

    def described(self) -> dict[str, Any]:
        found: Any = self.ec2.describe_instances(InstanceIds=[self.instance])
        instance: dict[str, Any] = found["Reservations"][0]["Instances"][0]
        return instance

    @property
    def state(self) -> str:
        name: str = self.described()["State"]["Name"]
        return name

    @property
    def tags(self) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in self.described().get("Tags", [])}

    def orders(self) -> list[dict[str, Any]]:
        """The stop orders that stand for the instance, as EventBridge has them."""
        client = aws_client(self.endpoint, "scheduler")
        found: list[dict[str, Any]] = client.list_schedules(GroupName=GROUP, NamePrefix=self.instance)[
            "Schedules"
        ]
        return found

    def put(self, key: str, data: bytes) -> None:
        put_object(self.bucket, f"{PREFIX}/{key}", data)

    def objects(self, part: str = "") -> dict[str, str]:
        """ETags by key of everything whose key has `part` in it."""
        pages = s3_client(self.endpoint).get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {
            found["Key"]: found["ETag"]
            for page in pages
            for found in page.get("Contents", [])
            if part in found["Key"]
        }

    def speech(self, count: int, session: str = "user/session_1") -> None:
        for number in range(1, count + 1):
            self.put(f"{session}/chunk-{number:03}.wav", spoken())

    def transcribed(self) -> Iterator[bool]:
        while True:
            time.sleep(0.25)  # moto's listings would take the core from the worker
            yield bool(self.objects("transcription-chunk-"))


def install_worker(host: Sshd) -> None:
    """What `gpu setup` leaves on a host: a Python with batchscribe, and the workers' environment.

    Its processes are forks; test_connections starts interpreters. Credentials as a role would give them:
    where AWS is, each run passes it to the host.
    """
    python = host.home / ".batchscribe" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    program = f"{sys.executable} -IS {FORKED_PROGRAM} {nursery().address.hex()}"
    python.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    python.chmod(0o700)
    names = {"PYTHONPATH": ENGINES} | CREDENTIALS
    lines = [f"{name}={value}\n" for name, value in names.items() if name != "AWS_DEFAULT_REGION"]
    environment = host.home / ".batchscribe" / "env"
    environment.write_text("".join(lines))
    environment.chmod(0o600)


@pytest.fixture
def cloud(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = f"audio-{os.urandom(4).hex()}"
    create_bucket(endpoint, bucket)
    instance = make_stopped_instance(endpoint, instance_type="g4dn.xlarge")
    desk = Desk(tmp_path / "desk")
    state = desk.home / ".batchscribe"
    state.mkdir(parents=True)
    with sshd(tmp_path / "box") as host:
        install_worker(host)
        options = host.options(state / "known_hosts", trusted=instance)
        desk.configure(
            **CREDENTIALS,
            AWS_ENDPOINT_URL=endpoint,
            BATCH_SOURCE=f"s3://{bucket}/{PREFIX}",
            BATCH_ENGINE="scripted",
            BATCH_MIN_AGE_MINUTES="0",
            BATCH_POLL_SECONDS="1",
            BATCH_GUARD_ROLE_ARN=ROLE,
            GPU_INSTANCE_ID=instance,
            GPU_SSH_HOST="127.0.0.1",
            GPU_SSH_PORT=str(host.port),
            GPU_SSH_USER=options.user,
            GPU_SSH_KEY_PATH=str(options.key),
        )
        made = Cloud(endpoint, bucket, instance, host, desk)
        record = InstanceRecord(instance=instance, release=__version__, at=datetime.now(UTC))
        made.put(keys.instance(instance), encode(record))
        yield made


def test_the_main_job(cloud: Cloud) -> None:
    cloud.speech(120)
    with smtp_receiver() as mailbox, http_receiver() as hook:
        report = cloud.desk.json(
            "tick",
            BATCH_NOTIFY_EMAIL="engineer@example.com",
            BATCH_SMTP_URL=f"smtp://127.0.0.1:{mailbox.port}",
            BATCH_NOTIFY_URLS=hook.url.replace("http://", "json://"),
        )["runs"][0]
    assert report["status"] == "completed"
    assert report["reason"] == "120 chunks pending, threshold 100 reached"
    assert report["transcription"]["done"] == 120
    assert report["gpu"]["type"] == "g4dn.xlarge"
    assert report["gpu"]["started_by_us"] is True
    assert report["gpu"]["cost"] > 0
    assert cloud.state == "stopped"
    assert not cloud.tags.get("batchscribe:run")
    assert cloud.orders() == []
    assert len(cloud.objects("transcription-chunk-")) == 120
    assert len(cloud.objects("/transcript.")) == 4
    (mail,) = mailbox.mails
    assert "completed" in str(mail["Subject"])
    assert "120 of 120 chunks done" in mail.as_string()
    ((_path, posted),) = hook.posts
    assert "completed" in json.loads(posted)["title"]
    (written,) = (cloud.desk.home / "batch-reports").glob("batch-*.json")
    assert json.loads(written.read_text())["run"] == report["run"]
    (listed,) = cloud.desk.json_of("report", "--last", "24h", "--format", "json")["runs"]
    assert listed["run"] == report["run"]


def test_the_cpu_lane_clears_a_backlog_while_the_gpu_stays_off(cloud: Cloud) -> None:
    cloud.speech(3)
    assert cloud.desk.json("tick", BATCH_CPU_LANE="auto")["decision"] == "hold", "its self-test comes first"
    wait_for(passed_self_test(cloud.desk))
    assert "CPU lane" in cloud.desk.run("status", BATCH_CPU_LANE="auto").stdout
    document = cloud.desk.json("tick", BATCH_CPU_LANE="auto")
    (report,) = document["runs"]
    assert document["reason"]["code"] == "done-on-this-machine"
    assert (report["status"], report["transcription"]["done"]) == ("completed", 3)
    gpu = report["gpu"]
    assert (gpu["provider"], gpu["type"], gpu["cost"], gpu["seconds"]) == ("local", "cpu", 0, 0)
    assert (cloud.state, cloud.tags, cloud.orders()) == ("stopped", {}, [])
    assert len(cloud.objects("transcription-chunk-")) == 3


def passed_self_test(desk: Desk) -> Iterator[bool]:
    result = desk.home / ".batchscribe" / "lane" / "test.json"
    while True:
        yield result.exists() and json.loads(result.read_text())["error"] == ""


def test_below_the_threshold_nothing_is_started(cloud: Cloud) -> None:
    cloud.speech(99)
    document = cloud.desk.json("tick")
    assert document["decision"] == "hold"
    assert (document["reason"]["code"], cloud.state, cloud.tags) == ("below-threshold", "stopped", {})


def test_a_corrupt_chunk_among_good_ones(cloud: Cloud) -> None:
    cloud.speech(6)
    cloud.put("user/session_1/chunk-003.wav", b"RIFF" + os.urandom(3000))
    report = cloud.desk.json("tick", code=1, BATCH_THRESHOLD="6")["runs"][0]
    assert report["status"] == "incomplete"
    assert len(cloud.objects("transcription-chunk-")) == 5
    assert cloud.state == "stopped"
    assert cloud.desk.json("tick", BATCH_POLICY="now")["reason"]["code"] == "only-troubled"


def test_kill_9_in_the_middle_then_the_next_tick_finishes(cloud: Cloud) -> None:
    cloud.speech(80)
    process = cloud.desk.start("tick", BATCH_THRESHOLD="40")
    wait_for(cloud.transcribed())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = cloud.objects("transcription-chunk-")
    assert len(finished) < 80
    assert cloud.state == "running"
    report = cloud.desk.json("tick")["runs"][0]
    assert report["status"] == "completed"
    done = cloud.objects("transcription-chunk-")
    assert len(done) == 80
    assert finished.items() <= done.items(), "what was published stays as it is"
    assert cloud.state == "stopped"
    assert len(cloud.objects("manifest.json")) == 1, "the worker lived on: nothing was dispatched twice"


def test_a_second_concurrent_tick_follows_the_same_run(cloud: Cloud) -> None:
    cloud.speech(30)
    process = cloud.desk.start("tick", BATCH_THRESHOLD="20")
    wait_for(cloud.transcribed())
    second = cloud.desk.json("tick")
    # The first one may have settled the run before the second one begins.
    assert {run["status"] for run in second["runs"]} <= {"completed"}
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert len(cloud.objects("intent.json")) == len(cloud.objects("manifest.json")) == 1
    assert cloud.state == "stopped"


def test_the_timer_completes_a_run_that_one_pass_began(cloud: Cloud) -> None:
    cloud.speech(6)
    (begun,) = cloud.desk.json("tick", "--no-wait", BATCH_THRESHOLD="6")["runs"]
    assert len(cloud.objects("manifest.json")) == 1, "the work is stored before the start"
    assert "no timer advances this run" in " ".join(cloud.desk.run("status").stdout.split())
    assert finish_by_timer(cloud.desk) == {"run": begun["run"], "outcome": "completed"}
    assert len(cloud.objects("transcription-chunk-")) == 6
    assert (cloud.state, cloud.tags.get("batchscribe:run"), cloud.orders()) == ("stopped", "", [])


def test_a_gpu_that_somebody_started_is_left_alone_or_used(cloud: Cloud) -> None:
    cloud.speech(3)
    cloud.ec2.start_instances(InstanceIds=[cloud.instance])
    held = cloud.desk.json("tick", BATCH_THRESHOLD="3")
    assert held["reason"]["code"] == "gpu-in-use"
    used = cloud.desk.json("tick", BATCH_THRESHOLD="3", GPU_IF_RUNNING="use")
    assert used["runs"][0]["gpu"]["was_running"] is True
    assert used["runs"][0]["status"] == "completed"
    assert cloud.state == "running"


def test_sigterm_while_the_host_says_nothing(cloud: Cloud) -> None:
    cloud.speech(3)
    cloud.host.freeze()
    process = cloud.desk.start("tick", "--json", BATCH_THRESHOLD="3")

    def running() -> Iterator[bool]:
        while True:
            yield cloud.state == "running"

    wait_for(running())
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["runs"][0]["status"] == "interrupted"
    assert cloud.state == "stopped"


def test_a_host_that_was_never_set_up_is_refused_before_it_is_paid_for(cloud: Cloud) -> None:
    cloud.speech(3)
    s3_client(cloud.endpoint).delete_object(
        Bucket=cloud.bucket, Key=f"{PREFIX}/{keys.instance(cloud.instance)}"
    )
    done = cloud.desk.run("tick", BATCH_THRESHOLD="3")
    assert done.returncode == 2
    assert "gpu setup" in done.stderr
    assert (cloud.state, cloud.tags) == ("stopped", {})


def test_without_a_role_for_the_guard_nothing_is_started(cloud: Cloud) -> None:
    cloud.speech(3)
    settings = cloud.desk.home / ".env"
    lines = settings.read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if "GUARD" not in line))
    done = cloud.desk.run("tick", BATCH_THRESHOLD="3")
    assert done.returncode == 2
    assert "iam-policy --template" in done.stderr
    assert "BATCH_CLOUD_GUARD=off" in done.stderr
    assert (cloud.state, cloud.tags) == ("stopped", {})
    refused = cloud.desk.run("gpu", "start", "--for", "1h")
    assert (refused.returncode, cloud.state) == (2, "stopped")


def test_a_run_is_guarded_while_it_lasts_and_status_says_so(cloud: Cloud) -> None:
    cloud.speech(3)
    cloud.host.freeze()
    process = cloud.desk.start("tick", "--json", BATCH_THRESHOLD="3")
    wait_for(iter(lambda: cloud.state == "running", None))
    (order,) = cloud.orders()
    run = cloud.tags["batchscribe:run"]
    assert (order["Name"], order["State"]) == (f"{cloud.instance}.{run}", "ENABLED")
    assert f"active stop orders: {run}" in cloud.desk.run("status").stdout
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert (cloud.state, cloud.orders()) == ("stopped", [])


def test_without_the_guard_by_name_the_run_goes_on_and_status_says_so(cloud: Cloud) -> None:
    cloud.speech(2)
    report = cloud.desk.json("tick", BATCH_THRESHOLD="2", BATCH_CLOUD_GUARD="off")
    assert report["runs"][0]["status"] == "completed"
    shown = cloud.desk.run("status", BATCH_CLOUD_GUARD="off").stdout
    assert "nothing outside this machine would stop the GPU" in " ".join(shown.split())


def test_the_gpu_by_hand(cloud: Cloud) -> None:
    checked = cloud.desk.run("gpu", "check", "--start", BATCH_ENGINE="pocketsphinx")
    assert "ok    worker" in checked.stdout, checked.stdout + checked.stderr
    assert "ok    store" in checked.stdout, checked.stdout
    assert cloud.state == "stopped"
    session = cloud.desk.run("gpu", "start", "--for", "1s", "--wait")
    assert (session.returncode, cloud.state, cloud.orders()) == (0, "stopped", []), session.stderr
    session = cloud.desk.run("gpu", "start", "--for", "2h")
    assert (session.returncode, cloud.state) == (0, "running"), session.stderr
    (order,) = cloud.orders()
    assert order["State"] == "ENABLED", "it stops the instance, and no process of ours does"
    assert cloud.desk.run("gpu", "stop").returncode == 0
    assert (cloud.state, cloud.orders()) == ("stopped", [])
    assert cloud.desk.run("gpu", "start").returncode == 0
    assert cloud.state == "running"
    assert cloud.desk.run("reconcile").returncode == 0
    assert cloud.state == "running", "a person's GPU is no business of the scheduler's"
    assert cloud.desk.run("gpu", "stop").returncode == 0
    assert cloud.state == "stopped"


def test_the_doctor_starts_the_host_for_its_price_and_stops_it_again(cloud: Cloud) -> None:
    checked = cloud.desk.run("doctor", "--start", BATCH_ENGINE="pocketsphinx")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    before, price, after = checked.stdout.partition(f"Starting {cloud.instance} at $0.526/h")
    assert "at least $0.0088, billed until it is stopped." in after, checked.stdout
    assert (price != "", "  ok    create-only" in before, "FAIL" in before + after) == (True, True, False)
    assert "  ok    ssh " in after
    assert "  ok    worker " in after
    assert (cloud.state, cloud.orders()) == ("stopped", [])


def test_a_bucket_that_cannot_be_listed_starts_nothing(cloud: Cloud) -> None:
    done = cloud.desk.run("tick", BATCH_SOURCE="s3://no-such-bucket-at-all")
    assert done.returncode == 2
    assert "no-such-bucket-at-all" in done.stderr
    assert cloud.state == "stopped"


def test_no_credential_reaches_any_log_or_report(cloud: Cloud) -> None:
    secret = "canary-9f8e7d6c5b4a"
    for number in (1, 2):
        cloud.put(f"user/session_1/chunk-00{number}.wav", spoken(3.0))
    hook = f"http://127.0.0.1:9/services/{secret}"
    done = cloud.desk.run("tick", BATCH_THRESHOLD="2", SLACK_WEBHOOK_URL=hook)
    assert done.returncode == 0, done.stderr
    assert "w0 w1" in cloud.desk.run("export", "user/session_1", "--format", "txt").stdout
    written = [path for path in cloud.desk.home.rglob("*") if path.is_file() and path.name != ".env"]
    for text in (done.stdout, done.stderr, *(path.read_bytes().decode(errors="replace") for path in written)):
        assert secret not in text
        assert "w0 w1" not in text, "what was said stays in the transcripts"
