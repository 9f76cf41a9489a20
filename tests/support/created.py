"""Machines that runs create on "AWS": moto for S3, EC2 and the guard; real or played workers."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from batchscribe import __version__
from batchscribe.adapters.aws.metadata import read_tag
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core import keys
from batchscribe.core.decide.packing import BYTES_PER_SECOND, Priors
from batchscribe.core.decide.prices import PriceKind, PriceSheet
from batchscribe.core.run.host import HostPlace, HostWaits, InstanceRecord
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG
from batchscribe.core.run.manifest import ExitRecord, decode
from batchscribe.core.run.runs import Run
from batchscribe.core.text.transcripts import encode
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.protocols import Store
from batchscribe.testing.guard import ROLE
from batchscribe.wiring.stores import open_store
from support.aws import AMAZON_IMAGE, make_launch_template
from support.booted import backend, ec2, state, tags
from support.cli import Desk, spoken
from support.emulated import Aws, Case
from support.forked import ENGINES, Forked, nursery
from support.metadata import metadata_service
from support.played_gpu_host import PlayedGpuHost, Power, played_gpu_host
from support.s3 import CREDENTIALS, REGION, aws_client, create_bucket

TYPE = "g4dn.xlarge"
WEST = "us-west-2"
"""A further region."""
WORK_SECONDS = 2.5 * 3600
"""Estimated work of all chunks. With RUNTIME, a run needs three machines."""
RUNTIME = {"BATCH_MAX_RUNTIME_HOURS": "1"}
STUCK = {"SCRIPTED_SECONDS": "3600"}
"""An engine that never comes to an end."""


class WatchfulDesk(Desk):
    """A desk whose commands poll machines at work at each pass, not twice a minute."""

    def start(self, *words: str, **environment: str) -> Forked:
        return nursery().start(self.home, *words, environment=self._environment(environment), arm={})


CHUNKS = 4
PLAYED = b"played, not heard"


@dataclass
class CreatedCloud:
    """A desk, a bucket, and a host that boots for each instance that a run creates."""

    endpoint: str
    home: Store
    desk: Desk
    folder: Path
    stuck: frozenset[int] = frozenset()
    """Numbers of the machines whose engine never comes to an end."""
    earlier: frozenset[str] = frozenset()
    """IDs of instances of other tests."""
    hosts: dict[str, PlayedGpuHost] = field(default_factory=dict)
    """By ID of the instance."""

    @property
    def rows(self) -> list[Any]:
        """Instances of this desk's runs, as EC2 describes them."""
        return [row for row in list_created(self.endpoint) if row["InstanceId"] not in self.earlier]

    @property
    def states(self) -> dict[str, str]:
        """State of each machine, by its name."""
        return {find_name(row): row["State"]["Name"] for row in self.rows}

    @property
    def run(self) -> Run:
        """The desk's last run."""
        with Ledger(self.desk.home / ".batchscribe" / FILE_NAME) as ledger:
            return ledger.runs(datetime.min.replace(tzinfo=UTC))[-1]

    @property
    def orders(self) -> list[Any]:
        found = aws_client(self.endpoint, "scheduler").list_schedules(GroupName=GROUP)["Schedules"]
        return [order for order in found if self.run.id in order["Name"]]

    def add_speech(self, count: int) -> list[str]:
        """Uploads recordings, and the ledger has measured how slow their engine is."""
        recordings = {f"talk-{number}.wav": spoken() for number in range(count)}
        for key, data in recordings.items():
            self.home.create(key, data)
        teach_speed(self.desk.home, "scripted", sum(map(len, recordings.values())))
        return [*recordings]

    def count_done(self) -> tuple[int, int]:
        """Transcripts in the store, and chunks that workers reported as done by them."""
        listed = [info.key for info in self.home.list("")]
        ends = [decode(self.home.get(key).data, ExitRecord) for key in listed if key.endswith("/exit.json")]
        transcripts = [key for key in listed if key.startswith("transcription-")]
        return len(transcripts), sum(end.tally.done for end in ends)

    def is_at_work(self, number: int) -> bool:
        """True once the worker of this machine is observed at work, after one more pass of the watchdog."""
        self.desk.json("watchdog")
        run = self.run
        return run.is_at_work(run.machines[number])

    def live(self, ended: threading.Event) -> None:
        """Boots a host for each new instance."""
        with ExitStack() as stack:
            while not ended.wait(0.2):
                running = {
                    each.id for region in (REGION, WEST) for each in backend(region).all_running_instances()
                }
                new = running - self.hosts.keys()
                for row in self.rows if new else ():
                    if row["InstanceId"] in new:
                        self.hosts[row["InstanceId"]] = stack.enter_context(self._host(row))

    @contextmanager
    def _host(self, row: Any) -> Iterator[PlayedGpuHost]:
        instance, region = row["InstanceId"], row["Placement"]["AvailabilityZone"][:-1]
        client = ec2(self.endpoint, region)
        names = {name: value for name, value in CREDENTIALS.items() if name != "AWS_DEFAULT_REGION"}
        if int(find_name(row).rpartition("-")[2]) in self.stuck:
            names |= STUCK
        with metadata_service() as metadata:

            def show(tag: str) -> str:
                metadata.tags = tags(instance, region)
                return read_tag(tag, metadata.url) or ""

            gpu_host = PlayedGpuHost(
                home=self.folder / instance,
                place=HostPlace(
                    instance="i-0builder0",
                    home=self.home.url,
                    region=REGION,
                    endpoint=self.endpoint,
                    created=True,
                    waits=HostWaits(),
                ),
                stores=lambda where: open_store(where, region=REGION, endpoint=self.endpoint),
                running=lambda: state(instance, region) == "running",
                announced=lambda: show(MANIFEST_TAG),
                machine=lambda: show(MACHINE_TAG),
                power=Power(lambda: client.terminate_instances(InstanceIds=[instance])),
            )
            with played_gpu_host(gpu_host, {"PYTHONPATH": ENGINES} | names) as made:
                yield made


def list_created(endpoint: str) -> list[Any]:
    """Instances of all runs, as EC2 describes them in each region."""
    filters: Any = [{"Name": "tag-key", "Values": [MACHINE_TAG]}]
    answers = [ec2(endpoint, region).describe_instances(Filters=filters) for region in (REGION, WEST)]
    return [row for answer in answers for group in answer["Reservations"] for row in group["Instances"]]


def find_name(row: Any) -> str:
    """The run's name of the machine, from its instance's tags."""
    (name,) = [tag["Value"] for tag in row["Tags"] if tag["Key"] == MACHINE_TAG]
    return str(name)


def teach_speed(home: Path, engine: str, size: int, *, instance_type: str = TYPE) -> None:
    """Records that `engine` takes WORK_SECONDS for `size` bytes of WAV."""
    folder = home / ".batchscribe"
    folder.mkdir()
    with Ledger(folder / FILE_NAME) as ledger:
        measured = Priors(
            speed=size / BYTES_PER_SECOND["wav"] / WORK_SECONDS, setup_seconds=0, release_seconds=0
        )
        now = datetime.now(UTC)
        ledger.learn(
            run="earlier", engine=engine, model="", instance_type=instance_type, at=now, measured=measured
        )


def make_image_record() -> InstanceRecord:
    """The record that `gpu image` writes of the templates' image."""
    now = datetime.now(UTC)
    return InstanceRecord(instance=AMAZON_IMAGE, release=__version__, at=now, boots=True, shows_tags=True)


def make_spot_prices(now: datetime) -> PriceSheet:
    """The price of the zone in which moto creates machines."""
    return PriceSheet(
        kind=PriceKind.SPOT,
        source="test",
        as_of=f"{now:%Y-%m-%d}",
        regions=("us-east-1a",),
        prices={TYPE: "0.2"},
    )


@dataclass(frozen=True)
class CreatedCase(Case):
    """A bucket with a chunk for each of two machines, and a desk whose runs create them; workers are played.

    `instance` is the launch template.
    """

    @property
    def provider(self) -> dict[str, str]:
        return {
            **RUNTIME,
            "GPU_PROVIDER": "fleet",
            "GPU_LAUNCH_TEMPLATE": self.instance,
            "GPU_INSTANCE_TYPES": TYPE,
            "GPU_MAX_MACHINES": "2",
        }

    @property
    def transcripts(self) -> list[str]:
        return [f"s/transcription-chunk-{number:03}.json" for number in range(CHUNKS)]

    @property
    def orders(self) -> list[str]:
        return [each["Name"] for each in self.aws.scheduler.list_schedules()["Schedules"]]

    def _of_the_cloud(self) -> Iterator[str]:
        rows = list_created(self.aws.endpoint)
        for row in rows:
            if row["State"]["Name"] != "terminated":
                yield f"{find_name(row)} is {row['State']['Name']}"
        for name, count in Counter(map(find_name, rows)).items():
            if count > 1:
                yield f"{name} was created {count} times"
        for name in self.orders:
            yield f"order {name} stands"

    def _of_the_claims(self, found: list[str]) -> Iterator[str]:
        known = {keys.instance(AMAZON_IMAGE), keys.instance(self.instance)}
        for key in found:
            if key.startswith(keys.INSTANCES) and key not in known:
                yield f"{key} is left"


def new_created_case(aws: Aws, home: Path) -> CreatedCase:
    aws.proxy.forget()
    bucket = f"audio-{os.urandom(4).hex()}"
    aws.s3.create_bucket(Bucket=bucket)
    case = CreatedCase(aws, home, bucket, make_launch_template(aws.endpoint, bucket))
    for number in range(CHUNKS):
        case.put(f"s/chunk-{number:03}.wav", PLAYED)
    case.put(keys.instance(AMAZON_IMAGE), encode(make_image_record()))
    teach_speed(home, "pocketsphinx", CHUNKS * len(PLAYED))
    return case


@contextmanager
def created_cloud(
    folder: Path, endpoint: str, *, calls: str = "", stuck: Iterable[int] = (), **settings: str
) -> Iterator[CreatedCloud]:
    """The cloud while the block lasts; `calls`: address for the desk's calls, if not the endpoint."""
    bucket, desk = f"audio-{os.urandom(4).hex()}", WatchfulDesk(folder / "desk")
    create_bucket(endpoint, bucket)
    url, template = f"s3://{bucket}/spoken", make_launch_template(endpoint, bucket)
    desk.home.mkdir()
    (desk.home / "prices.json").write_bytes(msgspec.json.encode([make_spot_prices(datetime.now(UTC))]))
    desk.configure(
        **CREDENTIALS,
        **RUNTIME,
        AWS_ENDPOINT_URL=calls or endpoint,
        BATCH_SOURCE=url,
        BATCH_ENGINE="scripted",
        BATCH_MIN_AGE_MINUTES="0",
        BATCH_POLL_SECONDS="0.3",
        BATCH_GUARD_ROLE_ARN=ROLE,
        BATCH_POLICY="now",
        BATCH_PRICE_FILE="prices.json",
        GPU_PROVIDER="fleet",
        GPU_LAUNCH_TEMPLATE=template,
        GPU_INSTANCE_TYPES=TYPE,
        GPU_MAX_MACHINES="3",
        **settings,
    )
    home = open_store(url, region=REGION, endpoint=endpoint)
    home.create(keys.instance(AMAZON_IMAGE), encode(make_image_record()))
    earlier = frozenset(row["InstanceId"] for row in list_created(endpoint))
    cloud = CreatedCloud(endpoint, home, desk, folder, frozenset(stuck), earlier)
    ended = threading.Event()
    thread = threading.Thread(target=cloud.live, args=(ended,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        ended.set()
        thread.join(timeout=60)
