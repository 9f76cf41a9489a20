"""Costs beside the GPU's: fixed ones of a month, and address and requests of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.adapters.aws.prices import load_packaged_prices
from batchscribe.cli import report as command
from batchscribe.cli.app import App
from batchscribe.core import keys
from batchscribe.core.decide.fixed import CostBasis, ParkedParts, describe_fixed_costs
from batchscribe.core.decide.money import Rate, Usd, split_cost
from batchscribe.core.decide.packing import Estimate
from batchscribe.core.run.bill_parts import split_bill
from batchscribe.core.run.cost_block import cost_block, estimate_block
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import EngineTimeSummary
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import period_of
from batchscribe.core.run.report import build, totals
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.errors import StoreUnavailableError
from batchscribe.ledger import FILE_NAME, Ledger
from batchscribe.settings import Settings, load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.costs import copy_parked_parts, read_cost_basis
from support.values import meter

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
INSTANCE = "i-0123456789abcdef0"
RATE = Rate(per_hour=Usd(526_000), source="AWS list, on-demand, us-east-2", as_of="2026-11-23")
BASIS = CostBasis(
    table=load_packaged_prices(),
    region="us-east-2",
    now=NOW,
    cloud=True,
    parked=ParkedParts(disk_gigabytes=20),
    host_per_hour=Usd.parse("0.0042"),
    s3=True,
    audio_hours=100.0,
)
RUN = Run(
    id="r1",
    state=RunState.SETTLED,
    outcome=Outcome.COMPLETED,
    provider="ec2",
    machines=(
        Machine(
            id=INSTANCE,
            meter=meter(
                idle_until=NOW,
                running_since=NOW,
                running_until=NOW + timedelta(seconds=1790),
                stopped=NOW + timedelta(seconds=1800),
            ),
        ),
    ),
    policy="threshold",
    reason="",
    created=NOW,
    deadline=NOW + timedelta(hours=2),
    settled=NOW + timedelta(seconds=1800),
    rate=RATE,
    instance_type="g4dn.xlarge",
    planned_chunks=120,
    chunks_done=120,
    audio_seconds=3600.0,
    worker_since=NOW + timedelta(seconds=80),
    worked=EngineTimeSummary(workers=1, load=20.0, after_load=1600.0, busy=1500.0),
)
RUN = replace(RUN, cost=RUN.bill())


def lines(basis: CostBasis | None = BASIS, run: Run = RUN) -> dict[str, str]:
    return dict(cost_block(build(run, costs=basis)))


def test_fixed_costs_are_dollars_a_month_and_for_each_audio_hour() -> None:
    fixed = BASIS.fixed_costs()
    assert {part.name: part.per_month_micros for part in fixed.parts} == {
        "Root Disk": 1_600_000,
        "Scheduler Host": 3_066_000,
    }
    assert (fixed.per_month_micros, fixed.per_audio_hour) == (4_666_000, 0.04666)


def test_the_block_has_a_line_for_each_cost() -> None:
    shown = lines()
    assert shown["Root Disk"] == (
        "$1.60 a month, $0.0160 per audio hour: 20 GB of gp3 (AWS list, us-east-2, as of 2026-10-16)"
    )
    assert shown["Public Address"] == "at most $0.0025 while the instance runs"
    assert shown["Requests"] == "about $0.0025, estimated: 160 reads, 490 writes"
    assert shown["Scheduler Host"] == (
        "$3.07 a month, $0.0307 per audio hour: $0.0042 an hour (BATCH_HOST_HOURLY_COST)"
    )
    assert shown["$/Audio Hour"] == (
        "at most $0.26, 1.00 h of audio; fixed costs: $0.0467 per audio hour at the last 30 days' 100.00 h"
    )


def test_ten_lines_follow_the_title_as_in_the_original_log() -> None:
    shown = list(lines())
    assert (len(shown), shown[-1]) == (11, "Scheduler Host")
    assert list(lines(replace(BASIS, host_per_hour=None)))[-1] == "Savings"


def test_an_estimate_has_the_same_lines() -> None:
    planned = Estimate(
        chunks=120,
        audio_seconds=3600.0,
        setup_seconds=150.0,
        work_seconds=1590.0,
        release_seconds=60.0,
        cost=Usd(263_000),
        rate=RATE,
    )
    shown, ran = dict(estimate_block(planned, "g4dn.xlarge", NOW, BASIS)), lines()
    for label in ("Root Disk", "Public Address", "Requests", "Scheduler Host"):
        assert shown[label] == ran[label]
    assert shown["$/Audio Hour"].endswith("$0.0467 per audio hour at the last 30 days' 100.00 h")


def test_a_fixed_address_is_a_cost_of_the_month_and_not_of_the_run() -> None:
    fixed = replace(BASIS, parked=ParkedParts(disk_gigabytes=20, fixed_address=True))
    assert lines(fixed)["Public Address"].startswith("$3.65 a month, $0.0365 per audio hour: an Elastic IP")


def test_created_machines_have_no_disk_between_two_runs(tmp_path: Path) -> None:
    settings = replace(cloud(tmp_path), provider="fleet", instance_id="")
    with Ledger(tmp_path / FILE_NAME) as ledger:
        basis = read_cost_basis(settings, ledger, NOW)
    assert basis is not None
    assert "Root Disk" not in lines(basis)


def test_an_unrecorded_disk_and_an_unpriced_region_name_the_remedy() -> None:
    assert lines(replace(BASIS, parked=None))["Root Disk"].endswith("`batchscribe gpu setup` records it")
    elsewhere = lines(replace(BASIS, region="eu-west-1"))
    assert elsewhere["Root Disk"] == (
        "unknown, no price in eu-west-1: `batchscribe prices --refresh --region eu-west-1`"
    )
    assert not {"Public Address", "Requests"} & set(elsewhere)


def test_without_audio_there_is_no_cost_of_an_audio_hour() -> None:
    idle = replace(BASIS, audio_hours=0.0)
    assert idle.fixed_costs().per_audio_hour is None
    assert lines(idle)["Root Disk"].startswith("$1.60 a month: 20 GB")
    assert lines(idle)["$/Audio Hour"].endswith("; fixed costs: no audio in the last 30 days")


def test_this_machine_has_no_disk_and_no_address_of_its_own() -> None:
    local = replace(BASIS, cloud=False, parked=None, s3=False, host_per_hour=None)
    assert lines(local) == lines(None)
    assert describe_fixed_costs(local.fixed_costs()) == ""


def test_an_old_price_is_marked_in_the_block() -> None:
    later = replace(RUN, created=NOW + timedelta(days=120))
    shown = lines(replace(BASIS, now=later.created), later)
    assert shown["Root Disk"].endswith("as of 2026-10-16, 164 days old)")
    assert shown["Hourly Rate"].endswith("as of 2026-11-23, 126 days old)")
    assert shown["Savings"].endswith("(price as of 2026-09-22, 188 days old)")


def test_a_bill_is_divided_into_boot_load_work_and_idle() -> None:
    parts = split_bill(RUN)
    assert parts is not None
    assert (parts.boot, parts.load, parts.work, parts.idle, parts.minimum) == (80.0, 20.0, 1500.0, 200.0, 0.0)
    assert sum(parts.cost_micros.values()) == RUN.cost.micros
    assert lines()["GPU Cost"] == "at most $0.26: boot $0.0117, load $0.0029, work $0.22, idle $0.0292"


def test_the_minimum_of_a_start_is_a_part_of_its_own() -> None:
    short = replace(
        RUN.machines[0], meter=meter(idle_until=NOW, running_since=NOW, stopped=NOW + timedelta(seconds=21))
    )
    run = replace(
        RUN,
        machines=(short,),
        worker_since=NOW + timedelta(seconds=10),
        worked=EngineTimeSummary(workers=1, load=5.0, busy=4.0),
    )
    parts = split_bill(replace(run, cost=run.bill()))
    assert parts is not None
    assert (parts.idle, parts.minimum) == (2.0, 39.0)
    assert sum(parts.cost_micros.values()) == run.bill().micros
    free = replace(run.rate, per_hour=Usd(0))
    for without in (replace(run, borrowed=True), replace(run, rate=free)):
        parts = split_bill(without)
        assert parts is not None
        assert parts.minimum == 0.0


def test_a_run_without_a_measured_worker_is_not_divided() -> None:
    assert split_bill(replace(RUN, worker_since=None)) is None
    assert split_bill(replace(RUN, worked=EngineTimeSummary())) is None
    assert lines(run=replace(RUN, worker_since=None))["GPU Cost"] == "at most $0.26"


@given(st.integers(0, 10**9), st.lists(st.floats(0, 1e6), min_size=1, max_size=6))
def test_the_parts_of_a_cost_add_up_to_it(micros: int, parts: list[float]) -> None:
    found = split_cost(Usd(micros), parts)
    assert sum(part.micros for part in found) == (micros if sum(parts) else 0)
    assert all(part.micros >= 0 for part in found)


def test_failed_starts_count_and_are_named() -> None:
    failed = replace(RUN, id="r2", outcome=Outcome.WORKER_FAILED, chunks_done=0, audio_seconds=0.0)
    sums = totals([RUN, failed])
    assert sums.cost_micros == 2 * RUN.cost.micros
    assert sums.unproductive_cost_micros == RUN.cost.micros
    assert (
        "at most $0.53 per audio hour, $0.26 of it for starts without a transcript."
        in command.describe_totals(sums, NOW)
    )


def cloud(folder: Path, **names: str) -> Settings:
    given = {"GPU_INSTANCE_ID": INSTANCE, "AWS_REGION": "us-east-2", "BATCH_SOURCE": "s3://b/a"}
    return load(given | names, folder=folder)


def recorded(parked: ParkedParts | None) -> MemoryStore:
    store = MemoryStore(FakeClock())
    record = InstanceRecord(instance=INSTANCE, release="0.2.0", at=NOW, parked=parked)
    store.create(keys.instance(INSTANCE), msgspec.json.encode(record))
    return store


def test_the_disk_comes_from_the_set_up_and_the_volume_from_the_ledger(tmp_path: Path) -> None:
    store = recorded(ParkedParts(disk_gigabytes=60))
    with Ledger(tmp_path / FILE_NAME) as ledger:
        ledger.save_run(RUN, at=NOW)
        ledger.save_run(replace(RUN, id="r0", settled=NOW - timedelta(days=31)), at=NOW - timedelta(days=31))
        basis = read_cost_basis(cloud(tmp_path), ledger, NOW, store=store)
    assert basis is not None
    assert (basis.audio_hours, basis.s3, basis.host_per_hour) == (1.0, True, None)
    assert basis.fixed_costs().per_month_micros == 4_800_000


def test_requests_for_control_objects_in_s3_are_counted(tmp_path: Path) -> None:
    audio = (tmp_path / "audio").as_uri()
    settings = cloud(tmp_path, BATCH_SOURCE=audio, BATCH_CONTROL="s3://b/control")
    with Ledger(tmp_path / FILE_NAME) as ledger:
        basis = read_cost_basis(settings, ledger, NOW)
    assert basis is not None
    assert basis.run_costs(seconds=600, chunks=10).requests is not None


def test_a_run_that_is_being_settled_counts_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / FILE_NAME) as ledger:
        for state in (RunState.VERIFYING, RunState.SETTLED):
            ledger.save_run(replace(RUN, state=state), at=NOW)
            basis = read_cost_basis(cloud(tmp_path), ledger, NOW, settling=RUN)
            assert basis is not None
            assert basis.audio_hours == 1.0


def test_a_report_knows_the_disk_without_the_store(tmp_path: Path) -> None:
    settings = cloud(tmp_path)
    with Ledger(tmp_path / FILE_NAME) as ledger:
        unknown = read_cost_basis(settings, ledger, NOW)
        copy_parked_parts(ledger, recorded(ParkedParts(disk_gigabytes=60)), settings)
        known = read_cost_basis(settings, ledger, NOW)
    assert unknown is not None
    assert known is not None
    assert (unknown.parked, known.parked) == (None, ParkedParts(disk_gigabytes=60))


def test_a_store_that_does_not_answer_spoils_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = recorded(None)

    def refuse(*_words: object, **_options: object) -> None:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(store, "get", refuse)
    with Ledger(tmp_path / FILE_NAME) as ledger:
        copy_parked_parts(ledger, store, cloud(tmp_path))
        basis = read_cost_basis(cloud(tmp_path), ledger, NOW, store=store)
    assert basis is not None
    assert basis.parked is None


def test_a_price_file_that_cannot_be_read_spoils_no_report(tmp_path: Path) -> None:
    with Ledger(tmp_path / FILE_NAME) as ledger:
        assert read_cost_basis(cloud(tmp_path, BATCH_PRICE_FILE="none.json"), ledger, NOW) is None
    assert "Root Disk" not in lines(None)


class Clock:
    def now(self) -> datetime:
        return NOW


def test_the_report_begins_with_the_fixed_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = cloud(tmp_path, BATCH_HOST_HOURLY_COST="0.0042")
    with Ledger(settings.state_dir / FILE_NAME) as ledger:
        ledger.save_run(RUN, at=NOW)
        copy_parked_parts(ledger, recorded(ParkedParts(disk_gigabytes=20)), settings)
    app = App()
    app.__dict__["settings"] = settings
    monkeypatch.setattr(command, "open_clock", Clock)
    shown = CliRunner().invoke(command.report, [], obj=app, catch_exceptions=False).stdout
    assert (
        "Fixed costs: $4.67 a month (root disk $1.60: 20 GB of gp3 (AWS list, us-east-2, as of 2026-10-16); "
        "scheduler host $3.07: $0.0042 an hour (BATCH_HOST_HOURLY_COST)), $4.67 per audio hour at the last "
        "30 days' 1.00 h.\n"
    ) in shown
    document: Any = json.loads(
        CliRunner().invoke(command.report, ["--json"], obj=app, catch_exceptions=False).stdout
    )
    assert document["fixed_costs"]["per_month_micros"] == 4_666_000
    assert period_of([RUN], NOW, NOW).fixed_costs is None
