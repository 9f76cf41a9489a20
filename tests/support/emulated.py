"""A scheduler's desk in front of an emulated AWS that misbehaves when it is told to.

Command lines come from a nursery, workers are played, and a proxy stands between them and moto.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import decode
from batchscribe.core.text.transcripts import encode
from batchscribe.ledger import Ledger
from support.aws import make_stopped_instance
from support.crashing import MESSAGES, Ended
from support.faults import FaultProxy, fault_proxy
from support.forked import nursery
from support.s3 import CREDENTIALS, aws_client, aws_environment, moto_server
from support.set_up_hosts import pin_host_key

PATIENT_TICKS = 3
PATIENT_PASSES = 400


@dataclass(frozen=True)
class Aws:
    """All that the cases share."""

    endpoint: str
    proxy: FaultProxy
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

    @property
    def provider(self) -> dict[str, str]:
        """Settings of the GPU."""
        return {"BATCH_LAUNCH": "ssh", "GPU_INSTANCE_ID": self.instance}

    def tick(self, crash: str = "", lands: float | None = None, **names: str) -> Ended:
        return self.command("tick", crash=crash, lands=lands, **names)

    def watch(self, **names: str) -> list[Ended]:
        """Passes of the watchdog until no run is open, made as by its timer, without the minutes between."""
        ended: list[Ended] = []
        while not ended or self.open_runs:
            assert len(ended) < PATIENT_PASSES, ended[-1]
            ended.append(self.command("watchdog", crash="", lands=None, host="", **names))
            time.sleep(0.5)
        return ended

    def command(
        self, *words: str, crash: str = "", lands: float | None = None, host: str = "", **names: str
    ) -> Ended:
        environment = CREDENTIALS | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "AWS_ENDPOINT_URL": self.aws.proxy.endpoint,
            "BATCH_SOURCE": f"s3://{self.bucket}",
            "BATCH_POLICY": "now",
            "BATCH_ENGINE": "pocketsphinx",
            "BATCH_MIN_AGE_MINUTES": "0",
            "BATCH_POLL_SECONDS": "0.2",
            "BATCH_GUARD_ROLE_ARN": "arn:aws:iam::123456789012:role/batchscribe-guard",
            **self.provider,
        }
        process = nursery().start(
            self.home,
            *words,
            "--json",
            environment=environment | names,
            arm={"crash": crash, "lands": lands, "host": host},
        )
        output, errors = process.communicate()
        return Ended(process.wait(), output, errors)

    def killed_at(self, point: str, **names: str) -> None:
        """Ticks until one is killed there: faults lead the first ones another way."""
        told: list[Ended] = []
        while not (told and told[-1].killed):
            assert len(told) < PATIENT_TICKS, told
            told.append(self.tick(point, None, **names))

    @property
    def transcripts(self) -> list[str]:
        return [f"s/transcription-chunk-{number:03}.json" for number in (1, 2)]

    @property
    def messages(self) -> list[dict[str, str]]:
        """What people were told so far."""
        path = self.home / MESSAGES
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

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
        with Ledger(self.ledger) as ledger:
            runs = ledger.runs(datetime.min.replace(tzinfo=UTC))
            return [run.id for run in runs if any(machine.meter.ran for machine in run.machines)]

    @property
    def open_runs(self) -> list[str]:
        with Ledger(self.ledger) as ledger:
            return [run.id for run in ledger.open_runs()]

    @property
    def ledger(self) -> Path:
        return self.home / ".batchscribe" / "ledger.sqlite"

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
        for key in self.transcripts:
            times = self.aws.proxy.written[f"/{self.bucket}/{key}"]
            if times != 1 or key not in found:
                yield f"{key} was published {times} times"
        for key in self.intents:
            if key.replace("intent", "settlement") not in found:
                yield f"{key} is not settled"
        if "s/transcript.json" not in found:
            yield "the session was not written"
        yield from self._of_the_claims(found)

    def _of_the_claims(self, found: list[str]) -> Iterator[str]:
        record = self.aws.s3.get_object(Bucket=self.bucket, Key=keys.instance(self.instance))["Body"].read()
        if claim := decode(record, InstanceRecord).claim:
            yield f"the box is still claimed by {claim.run}"

    def _of_the_ledger(self) -> Iterator[str]:
        with Ledger(self.ledger) as ledger:
            for run in ledger.open_runs():
                yield f"run {run.id} is {run.state}"


@contextmanager
def emulated_aws() -> Iterator[Aws]:
    with aws_environment(), moto_server() as endpoint, fault_proxy() as proxy:
        clients: dict[str, Any] = {name: aws_client(endpoint, name) for name in ("s3", "ec2", "scheduler")}
        clients["scheduler"].create_schedule_group(Name="batchscribe")
        yield Aws(endpoint=endpoint, proxy=proxy, **clients)


def new_case(aws: Aws, home: Path) -> Case:
    aws.proxy.forget()
    bucket = f"audio-{os.urandom(4).hex()}"
    aws.s3.create_bucket(Bucket=bucket)
    made = Case(aws, home, bucket, make_stopped_instance(aws.endpoint, instance_type="g4dn.xlarge"))
    for number in (1, 2):
        made.put(f"s/chunk-{number:03}.wav", b"played, not heard")
    record = InstanceRecord(
        instance=made.instance, release=__version__, at=datetime.now(UTC), boots=True, shows_tags=True
    )
    made.put(keys.instance(made.instance), encode(record))
    pin_host_key(home, made.instance)
    return made
