"""Tests of the Ray adapter; tests/contract/test_ray.py runs them inside of a cluster's namespaces."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.ray.capacity import AUTOSCALED, RayCapacity
from batchscribe.adapters.ray.cluster import RayCluster
from batchscribe.adapters.ray.launcher import RayLauncher
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MACHINE_TAG, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.testing.capacity_suite import CapacityCase, CapacitySuite
from batchscribe.testing.launcher_suite import LauncherCase, LauncherSuite, make_manifest
from support.ray_cluster import ADDRESS, INSIDE, PlayedCluster, await_true
from support.stand_in import StandIns

OFFER = Offer(
    provider="ray",
    instance_type="",
    market=Market.ON_DEMAND,
    rate=Rate(per_hour=Usd.parse("1"), source="test"),
)
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
    command = (*stand_ins.command, "-")
    return RayCapacity(cluster=RayCluster(ADDRESS), clock=SystemClock(), offer=OFFER, command=command)


@pytest.fixture
def case(capacity: RayCapacity) -> Iterator[CapacityCase]:
    name = f"run-1-{next(_numbers)}"
    yield CapacityCase(
        capacity=capacity, instance=name, missing="run-0-0", sleep=lambda _: time.sleep(0.1), has_tags=False
    )
    capacity.teardown(name)


class TestCapacity(CapacitySuite):
    """The suite that ships."""


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
