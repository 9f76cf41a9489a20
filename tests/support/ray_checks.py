"""Tests of the Ray adapter; tests/contract/test_ray.py runs them inside of a cluster's namespaces."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from batchscribe.adapters.ray.capacity import AUTOSCALED, IDLE_NODE, NO_NODE, WORKER, RayCapacity
from batchscribe.adapters.ray.cluster import RayCluster
from batchscribe.adapters.ray.launcher import RayLauncher
from batchscribe.core.run.instances import MACHINE_TAG, RUN_TAG, InstanceState
from batchscribe.core.run.manifest import ExitRecord, Manifest, WorkerEnd, decode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.testing.capacity_suite import CapacityCase, CapacitySuite
from batchscribe.testing.launcher_suite import LauncherCase, LauncherSuite
from support.cli import spoken
from support.created import RUNTIME, teach_speed
from support.ray_cluster import ADDRESS, INSIDE, PlayedCluster, await_true
from support.ray_run import OFFER, RealRun, open_capacity
from support.stand_in import StandIns

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> PlayedCluster:
    cluster = PlayedCluster(Path(os.environ[INSIDE]))
    cluster.start()
    cluster.add_node()
    return cluster


@pytest.fixture
def stand_ins(tmp_path: Path) -> Iterator[StandIns]:
    stand_ins = StandIns(tmp_path / "stand-ins")
    yield stand_ins
    stand_ins.kill()


@pytest.fixture
def capacity(cluster: PlayedCluster, stand_ins: StandIns) -> RayCapacity:
    return open_capacity((*stand_ins.command[1:], "-"))


@pytest.fixture
def case(capacity: RayCapacity) -> Iterator[CapacityCase]:
    name = f"run-1-{next(_numbers)}"
    yield CapacityCase(
        capacity=capacity, instance=name, missing="run-0-0", sleep=lambda _: time.sleep(0.5), has_tags=False
    )
    capacity.teardown(name)


class TestCapacity(CapacitySuite):
    """The suite that ships, and what differs if the machines do not exist before their runs."""

    def test_each_machine_is_polled_in_the_given_order(self, case: CapacityCase) -> None:
        case.acquire()
        found = case.capacity.poll((case.missing, case.instance))
        assert [seen.id for seen in found] == [case.missing, case.instance]
        assert [seen.state for seen in found] == [InstanceState.STOPPED, InstanceState.RUNNING]

    def test_machines_that_have_not_ended_are_listed(self, case: CapacityCase, capacity: RayCapacity) -> None:
        assert capacity.list_created() == ()
        case.acquire()
        assert [seen.id for seen in capacity.list_created()] == [case.instance]

    def test_a_released_machine_has_no_claim(self, case: CapacityCase) -> None:
        case.acquire()
        case.stop()
        case.capacity.release(case.instance)
        seen = case.poll()
        assert (seen.state, seen.deadline) == (InstanceState.STOPPED, None)
        assert seen.tags[MACHINE_TAG] == case.instance, "Ray's record of it proves its end"

    def test_a_released_machine_can_keep_running(self, case: CapacityCase) -> None:
        case.acquire()
        case.capacity.release(case.instance)
        assert case.poll().run == "run-1", "a claim ends with its machine"

    def test_the_next_claim_replaces_the_last_one(self, case: CapacityCase) -> None:
        case.acquire()
        assert case.acquire(case.claim("run-2")).tags[RUN_TAG] == "run-1", "a machine has one run"

    def test_a_machine_that_does_not_exist_cannot_be_acquired(self, case: CapacityCase) -> None:
        assert case.poll().state is InstanceState.STOPPED
        assert case.acquire().tags[MACHINE_TAG] == case.instance

    def test_the_end_of_a_machine_that_does_not_exist_is_no_error(self, case: CapacityCase) -> None:
        case.capacity.teardown(case.missing)
        case.capacity.release(case.missing)
        assert case.poll(case.missing).state is InstanceState.STOPPED

    def test_a_machine_waits_for_a_free_gpu_and_can_be_stopped_meanwhile(self, case: CapacityCase) -> None:
        case.acquire()
        other = f"{case.instance}0"
        assert case.capacity.acquire(replace(case.claim(), instance=other), OFFER, case.poll(other))
        seen = case.poll(other)
        assert (seen.state, seen.run, seen.state_reason) == (InstanceState.PENDING, "run-1", NO_NODE)
        case.capacity.teardown(other)
        await_true(lambda: case.poll(other).state is InstanceState.STOPPED, "the waiting machine is stopped")

    def test_an_autoscaled_node_is_billed_until_it_is_gone(
        self, case: CapacityCase, cluster: PlayedCluster
    ) -> None:
        case.acquire()
        other = f"{case.instance}0"
        node = cluster.add_node("--labels", f"{AUTOSCALED}=true")
        case.capacity.acquire(replace(case.claim(), instance=other), OFFER, case.poll(other))
        await_true(lambda: case.poll(other).state is InstanceState.RUNNING, "it has a node")
        case.capacity.teardown(other)
        await_true(lambda: case.poll(other).state_reason == IDLE_NODE, "its actor has ended")
        assert case.poll(other).state is InstanceState.RUNNING
        cluster.kill_node(node)
        await_true(lambda: case.poll(other).state is InstanceState.STOPPED, "its node is gone")

    def test_a_machine_ends_itself_after_its_deadline(self, case: CapacityCase) -> None:
        passed = datetime.now(UTC) - timedelta(hours=1)
        case.capacity.acquire(replace(case.claim(), deadline=passed), OFFER, case.poll())
        await_true(lambda: case.poll().state is InstanceState.RUNNING, "it has a node")
        await_true(lambda: case.poll().state is InstanceState.STOPPED, "it ends itself")

    def test_ray_takes_no_signal_from_the_scheduler(self, case: CapacityCase) -> None:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            case.acquire()
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def launchers(case: CapacityCase, stand_ins: StandIns) -> LauncherCase:
    return LauncherCase(
        launcher=RayLauncher(RayCluster(ADDRESS)),
        started=stand_ins.urls,
        all_end=stand_ins.gone,
        instance=case.acquire(),
        has_agent=True,
    )


class TestLauncher(LauncherSuite):
    @pytest.fixture
    def case(self, launchers: LauncherCase) -> LauncherCase:
        return launchers

    def test_a_driver_that_is_killed_leaves_machine_and_worker_to_the_next_one(
        self, case: LauncherCase, tmp_path: Path
    ) -> None:
        machine = case.instance.id
        driver = [sys.executable, "-c", DRIVER, ADDRESS, machine, str(case.url())]
        subprocess.run(driver, check=False, timeout=120)
        assert case.started(1) == [case.url()]
        assert case.is_alive() is True
        case.launch()
        assert case.started(1) == [case.url()]

    def test_a_cluster_that_does_not_answer_is_reported_at_once(self, case: LauncherCase) -> None:
        done = subprocess.run(
            [sys.executable, "-c", POLL, "127.0.0.1:9"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "ComputeUnavailableError: the Ray cluster could not be polled" in done.stderr
        assert "check its address, and the token" in done.stderr


POLL = """
import sys
from support.ray_run import open_capacity
open_capacity(address=sys.argv[1]).poll(("run-1-0",))
"""
DRIVER = """
import os, signal, sys
from batchscribe.adapters.ray.cluster import RayCluster
from batchscribe.adapters.ray.launcher import RayLauncher
from batchscribe.testing.launcher_suite import INSTANCE, make_manifest
from dataclasses import replace
address, machine, url = sys.argv[1:]
RayLauncher(RayCluster(address)).launch(replace(INSTANCE, id=machine), make_manifest(), url)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def real_run(cluster: PlayedCluster, tmp_path: Path) -> Iterator[RealRun]:
    run = RealRun(tmp_path, f"run-1-{next(_numbers)}")
    yield run
    run.capacity.teardown(run.machine)


def test_the_second_manifest_finds_the_engine_loaded(real_run: RealRun) -> None:
    for worker in (0, 1):
        manifest = real_run.store_manifest(worker, chunks=2)
        assert real_run.launch(manifest)
        await_true(partial(real_run.has_ended, worker), f"worker {worker} ends")
    records = [real_run.read_exit(worker) for worker in (0, 1)]
    assert [record.end for record in records if record] == [WorkerEnd.FINISHED] * 2
    first, second = (record.timings.manifest for record in records if record)
    assert second is not None
    assert first is not None
    assert second < first / 2, "no interpreter was started for the second one"
    assert len(real_run.list_done()) == 4


def test_a_node_that_is_killed_in_mid_run_is_replaced_and_nothing_is_lost_or_done_twice(
    real_run: RealRun, cluster: PlayedCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.add_node()
    manifest = real_run.store_manifest(0, chunks=12)
    assert real_run.launch(manifest)
    await_true(lambda: len(real_run.list_done()) >= 2, "it is at work")
    cluster.kill_node(cluster.find_machine())
    before = {key: real_run.store.get(key).data for key in real_run.list_done()}
    assert len(before) < 12, "it was killed in mid-run"
    await_true(lambda: real_run.launch(manifest), "Ray starts the actor on the other node")
    assert real_run.poll().state is InstanceState.RUNNING
    await_true(partial(real_run.has_ended, 0), "the worker ends")
    record = real_run.read_exit(0)
    assert record is not None
    assert (record.end, record.tally.skipped) == (WorkerEnd.FINISHED, len(before))
    assert len(real_run.list_done()) == 12
    assert all(real_run.store.get(key).data == data for key, data in before.items())
    assert not capfd.readouterr().out, "Ray prints nothing into a command's result"


@dataclass(frozen=True)
class Scheduled:
    """A bucket with recordings, and the scheduler's command line."""

    home: Path
    recordings: int = 40
    machines: int = 1

    def fill(self) -> None:
        (self.home / "bucket").mkdir()
        for number in range(self.recordings):
            (self.home / "bucket" / f"talk-{number:03}.wav").write_bytes(spoken(2.2))

    def tick(self) -> subprocess.Popen[str]:
        settings = {
            "GPU_PROVIDER": "ray",
            "BATCH_RAY_ADDRESS": ADDRESS,
            "GPU_HOURLY_COST": "0.5",
            "BATCH_SOURCE": "./bucket",
            "BATCH_ENGINE": "scripted",
            "BATCH_MIN_AGE_MINUTES": "0",
            "BATCH_THRESHOLD": "1",
            "BATCH_POLL_SECONDS": "1",
            "GPU_MAX_MACHINES": str(self.machines),
            **RUNTIME,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "batchscribe", "tick"],
            cwd=self.home,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def list_done(self) -> list[Path]:
        return sorted((self.home / "bucket").glob("transcription-*.json"))

    def is_at_work(self) -> bool:
        return len(self.list_done()) >= 3

    def read_manifests(self) -> list[Manifest]:
        """Those of the last run, in the order of its workers."""
        return [decode((self.home / "bucket" / key).read_bytes(), Manifest) for key in self.run.manifests]

    def list_at_work(self) -> set[str]:
        """Names of the machines that have done a chunk of their manifests."""
        done = {path.name for path in self.list_done()}
        return {
            str(manifest.machine)
            for manifest in self.read_manifests()
            if any(chunk.transcript in done for chunk in manifest.chunks)
        }

    @property
    def run(self) -> Run:
        """The only run."""
        with Ledger(self.home / ".batchscribe" / FILE_NAME) as ledger:
            (run,) = ledger.runs(datetime.min.replace(tzinfo=UTC))
        return run


@pytest.mark.parametrize("killed", ["node", "scheduler"])
def test_a_run_goes_on_if_its_node_or_its_scheduler_is_killed(
    cluster: PlayedCluster, tmp_path: Path, killed: str
) -> None:
    cluster.add_node()
    scheduled = Scheduled(tmp_path)
    scheduled.fill()
    tick = scheduled.tick()
    await_true(scheduled.is_at_work, "it is at work")
    if killed == "node":
        cluster.kill_node(cluster.find_machine())
    else:
        tick.kill()
        tick.communicate()
        tick = scheduled.tick()
    before = {path: path.read_bytes() for path in scheduled.list_done()}
    assert len(before) < scheduled.recordings, "it was killed in mid-run"
    output, _ = tick.communicate(timeout=300)
    assert tick.returncode == 0, output
    assert len(scheduled.list_done()) == scheduled.recordings
    assert all(path.read_bytes() == data for path, data in before.items()), "nothing was done twice"
    (record,) = tmp_path.glob("bucket/_batchscribe/runs/*/workers/*/exit.json")
    tally = decode(record.read_bytes(), ExitRecord).tally
    assert (tally.seen, tally.failed) == (scheduled.recordings, 0)
    assert tally.skipped == (len(before) if killed == "node" else 0)


def test_machines_share_a_run_and_one_that_is_killed_leaves_its_rest_to_the_others(
    cluster: PlayedCluster, capacity: RayCapacity, tmp_path: Path
) -> None:
    """The scheduler is killed at the same moment, and its next tick continues the run."""
    while len(cluster.nodes) < 3:
        cluster.add_node()
    # The others' work lasts longer than the 30 s between two polls, which show the end of one.
    scheduled = Scheduled(tmp_path, recordings=450, machines=3)
    scheduled.fill()
    size = sum(path.stat().st_size for path in (tmp_path / "bucket").iterdir())
    teach_speed(tmp_path, "scripted", size, instance_type="")
    tick = scheduled.tick()
    await_true(lambda: bool(capacity.list_created()), "machines are created")
    await_true(lambda: len(scheduled.list_at_work()) == 3, "all machines are at work")
    killed = scheduled.run.instances[1]
    capacity.teardown(killed)
    tick.kill()
    tick.communicate()
    before = {path: path.read_bytes() for path in scheduled.list_done()}
    rest = {
        chunk.key
        for manifest in scheduled.read_manifests()
        for chunk in manifest.chunks
        if manifest.machine == killed and chunk.transcript not in {path.name for path in before}
    }
    assert rest, "it was killed in mid-run"
    tick = scheduled.tick()
    output, _ = tick.communicate(timeout=300)
    assert tick.returncode == 0, output
    run, given = scheduled.run, scheduled.read_manifests()
    assert run.outcome is Outcome.COMPLETED
    assert [machine.outcome for machine in run.machines] == [None, Outcome.INSTANCE_LOST, None]
    assert len(scheduled.list_done()) == run.chunks_done == scheduled.recordings
    assert all(path.read_bytes() == data for path, data in before.items()), "nothing was done twice"
    assert {manifest.machine for manifest in given} == {*run.instances}
    others = Counter(chunk.key for each in given if each.machine != killed for chunk in each.chunks)
    assert rest <= others.keys()
    assert set(others.values()) == {1}, "no chunk was given to two of the others"
    assert all(run.billed_seconds_of(machine) > 0 for machine in run.machines)
    assert capacity.list_created() == ()
    await_true(lambda: not list_workers(), "no process of a killed machine works on")


def list_workers() -> list[psutil.Process]:
    """Processes of `batchscribe worker` on the nodes."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[1:] == [*WORKER]
    ]
