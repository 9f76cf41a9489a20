"""Created machines on "AWS": moto for S3, EC2 and the guard; each has a real agent and real workers."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest

from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import Run
from batchscribe.testing.guard import ROLE
from support.aws import make_launch_template, make_schedule_group
from support.booted import ec2
from support.cli import finish_by_timer, wait_for
from support.created import WEST, CreatedCloud, created_cloud, find_name
from support.faults import Refusal, fault_proxy
from support.s3 import CREDENTIALS, aws_client

pytestmark = pytest.mark.e2e
RECORDINGS = 3
"""One for each machine."""
SPOT, ON_DEMAND = 0.2, 0.526
"""Dollars an hour."""


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def settled(cloud: CreatedCloud, recordings: int = RECORDINGS) -> Run:
    """The run after passes of the watchdog; all is done and nothing is left of its machines."""
    assert finish_by_timer(cloud.desk)["outcome"] == "completed"
    run = cloud.run
    assert (run.outcome, run.chunks_done, run.chunks_failed) == (Outcome.COMPLETED, recordings, 0)
    assert cloud.count_done() == (recordings, recordings)
    assert (cloud.states, cloud.orders) == (dict.fromkeys(run.instances, "terminated"), [])
    assert not [info.key for info in cloud.home.list("_batchscribe/instances/") if run.id in info.key]
    return run


def test_three_machines_share_a_run_and_are_terminated(tmp_path: Path, endpoint: str) -> None:
    with created_cloud(tmp_path, endpoint) as cloud:
        cloud.add_speech(2 * RECORDINGS)
        doctor = cloud.desk.run("doctor")
        assert (doctor.returncode, "failures: 0" in doctor.stdout) == (0, True), doctor.stdout
        cloud.desk.json("tick", "--no-wait")
        assert len(cloud.orders) == 3, "the guard is armed for each"
        status = cloud.desk.run("status").stdout
        assert f"{cloud.run.id}-2 (g4dn.xlarge spot, $0.20 an hour) is being started" in status
        assert f"active stop orders: {cloud.run.id}" in status
        assert "rehearse" not in status, "it is refused for created machines"
        run = settled(cloud, 2 * RECORDINGS)
        assert run.instances == tuple(f"{run.id}-{number}" for number in range(3))
        assert {machine.outcome for machine in run.machines} == {None}
        assert all(host.power.pulled == 0 for host in cloud.hosts.values()), "their scheduler was there"
        bills = build(run).gpu.machines
        assert [bill.rate for bill in bills] == [SPOT] * 3
        assert run.cost.micros == sum(bill.cost_micros for bill in bills) > 0
        report = cloud.desk.run("report", "--last", "24h").stdout
        assert f"1 run settled, 1 GPU start; {2 * RECORDINGS} chunks done, 0 failed" in report
        assert "The GPU was up for" in report
        assert "Root disk" not in report
        assert f"run {run.id}, worker 0: completed" in cloud.desk.run("why", "talk-0.wav").stdout
        assert (
            cloud.desk.run("gpu", "status").stdout
            == "no machine of a run exists in the regions of the settings\n"
        )


def test_the_others_do_the_rest_of_a_machine_that_is_terminated_from_outside(
    tmp_path: Path, endpoint: str
) -> None:
    with created_cloud(tmp_path, endpoint, stuck=(1,)) as cloud:
        # The others are still at work at the first pass after its end.
        cloud.add_speech(8 * RECORDINGS)
        cloud.desk.json("tick", "--no-wait")
        wait_for(cloud.is_at_work(1) for _ in repeat(None))
        (lost,) = [row["InstanceId"] for row in cloud.rows if find_name(row) == cloud.run.instances[1]]
        ec2(endpoint).terminate_instances(InstanceIds=[lost])
        run = settled(cloud, 8 * RECORDINGS)
        # EC2's reason begins with Client: a user ended it, not the cloud.
        assert [machine.outcome for machine in run.machines] == [None, Outcome.INSTANCE_LOST, None]


def test_without_spot_capacity_the_next_machines_are_on_demand(tmp_path: Path, endpoint: str) -> None:
    with (
        fault_proxy() as proxy,
        created_cloud(tmp_path, endpoint, calls=proxy.endpoint) as cloud,
    ):
        cloud.add_speech(RECORDINGS)
        proxy.plan("CreateFleet", None, Refusal("InsufficientInstanceCapacity", 500))
        cloud.desk.json("tick", "--no-wait")
        run = settled(cloud)
        assert [machine.market for machine in run.machines] == ["spot", "on-demand", "on-demand"]
        assert [bill.rate for bill in build(run).gpu.machines] == [SPOT, ON_DEMAND, ON_DEMAND]
        assert proxy.calls.count("CreateFleet") == 4, "one request for each machine and offer"


def test_without_capacity_in_its_region_a_run_goes_on_in_a_further_one(tmp_path: Path, endpoint: str) -> None:
    template = make_launch_template(endpoint, "west", region=WEST)
    make_schedule_group(endpoint, WEST)

    def list_orders() -> list[str]:
        client = aws_client(endpoint, "scheduler", WEST)
        return [order["Name"] for order in client.list_schedules(GroupName=GROUP)["Schedules"]]

    regions = f"{WEST} {template} {ROLE}"
    with (
        fault_proxy() as proxy,
        created_cloud(tmp_path, endpoint, calls=proxy.endpoint, GPU_FURTHER_REGIONS=regions) as cloud,
    ):
        cloud.add_speech(RECORDINGS)
        doctor = cloud.desk.run("doctor")
        assert (doctor.returncode, f"machines, {WEST}" in doctor.stdout) == (0, True), doctor.stdout
        proxy.plan("CreateFleet", None, *[Refusal("InsufficientInstanceCapacity", 500)] * 2)
        cloud.desk.json("tick", "--no-wait")
        assert len(list_orders()) == len(cloud.orders) == 3, "the guard is armed in each region"
        run = settled(cloud)
        assert [machine.region for machine in run.machines] == ["", WEST, WEST]
        assert run.tried_types == ("g4dn.xlarge spot", "g4dn.xlarge")
        assert proxy.calls.count("CreateFleet") == 5, "one request for each machine and offer"
        assert list_orders() == []
