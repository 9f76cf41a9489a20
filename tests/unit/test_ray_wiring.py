"""GPU_PROVIDER=ray in settings and composition roots; tests/contract/test_ray.py has the adapter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.preflight import preflight
from batchscribe.wiring.seams import open_capacity, open_guard, open_launcher, rate_of


def settings(folder: Path, **names: str) -> Settings:
    given = {"GPU_PROVIDER": "ray", "BATCH_SOURCE": "./bucket", "BATCH_RAY_ADDRESS": "10.0.0.1:6379"}
    return load(given | names, folder=folder)


def test_a_guard_of_ec2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot stop a machine of GPU_PROVIDER=ray"):
        settings(tmp_path, BATCH_CLOUD_GUARD="eventbridge")


def test_the_guard_is_described_by_what_bounds_the_cost(tmp_path: Path) -> None:
    guard = open_guard(settings(tmp_path))
    assert "ends itself 3 min after its deadline" in guard.description
    assert guard.armed("run-1-0") == frozenset()


def test_without_a_price_nothing_is_offered(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="set GPU_HOURLY_COST"):
        rate_of(settings(tmp_path))("")
    assert rate_of(settings(tmp_path, GPU_HOURLY_COST="0.19"))("").per_hour.text(2) == "0.19"
    assert rate_of(settings(tmp_path, AWS_REGION="us-east-2"))("g4dn.xlarge").per_hour.text(3) == "0.526"


def test_an_engine_is_needed_on_the_nodes_only(tmp_path: Path) -> None:
    preflight(settings(tmp_path, BATCH_ENGINE="parakeet"), MemoryStore(FakeClock()))


def test_a_missing_package_is_reported_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "batchscribe.adapters.ray.cluster", raising=False)
    for open_one in (
        lambda: open_capacity(settings(tmp_path), FakeClock()),
        lambda: open_launcher(settings(tmp_path), MemoryStore(FakeClock())),
    ):
        with pytest.raises(MisconfiguredError, match=r"pip install --editable '\.\[ray\]'"):
            open_one()


def test_the_cluster_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="BATCH_RAY_ADDRESS is not set"):
        open_capacity(settings(tmp_path, BATCH_RAY_ADDRESS=""), FakeClock())
