"""Launch at boot on "AWS": moto for S3, EC2 and the guard, the real agent, and no ssh anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from support.cli import SPEECH, Desk
from support.forked import ENGINES
from support.played_gpu_host import WAITS, PlayedGpuHost, Power, played_gpu_host
from support.s3 import CREDENTIALS, REGION, aws_client, create_bucket


@dataclass
class Cloud:
    endpoint: str
    home: Store
    instance: str
    desk: Desk
    gpu_host: PlayedGpuHost

    @property
    def state(self) -> str:
        return state(self.instance)

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


def ec2(endpoint: str, region: str = REGION) -> Any:
    return aws_client(endpoint, "ec2", region)


def backend(region: str = REGION) -> Any:
    """The emulated EC2 itself: a host polls it ten times a second, and a request costs as much as a step."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.ec2.models import ec2_backends

    return ec2_backends[DEFAULT_ACCOUNT_ID][region]


def state(instance: str, region: str = REGION) -> str:
    name: str = backend(region).get_instance(instance).state
    return name


def tags(instance: str, region: str = REGION) -> dict[str, str]:
    return dict(backend(region).tags[instance])


@contextmanager
def booted_cloud(tmp_path: Path, endpoint: str) -> Iterator[Cloud]:
    """A desk, a bucket, a stopped instance, and the host that boots whenever the instance runs."""
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
    gpu_host = PlayedGpuHost(
        home=tmp_path / "box",
        place=HostPlace(instance=instance, home=url, region=REGION, endpoint=endpoint, waits=WAITS),
        stores=stores,
        running=lambda: state(instance) == "running",
        announced=lambda: tags(instance).get(MANIFEST_TAG),
        power=Power(lambda: ec2(endpoint).stop_instances(InstanceIds=[instance])),
    )
    names = {name: value for name, value in CREDENTIALS.items() if name != "AWS_DEFAULT_REGION"}
    with played_gpu_host(gpu_host, {"PYTHONPATH": ENGINES} | names):
        yield Cloud(endpoint, home, instance, desk, gpu_host)
