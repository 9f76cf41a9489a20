"""A settlement in the store stands: a ledger that could not be written meanwhile takes it over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.steps import claim_of
from batchscribe.controller.tick import reconcile, tick, watch
from batchscribe.core import keys
from batchscribe.core.decide.money import Usd
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import decode_settlement, encode_run
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import BatchscribeError
from support.values import metered
from support.world import INSTANCE, Stage, once


@pytest.fixture
def at(at: Stage) -> Stage:
    at.upload(120)
    at.clock.sleep(600)
    return at


def full(*_said: object, **_more: object) -> None:
    raise BatchscribeError("no space left on the ledger's disk")


def stored_settlement(at: Stage, run: Run) -> Run:
    return decode_settlement(at.store.get(keys.settlement(run.id)).data, run)


def forgotten(at: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """A run that was started, stopped and settled while the ledger could not be written, and its settlement.

    Its last row in the ledger says that it was about to start.
    """
    once(at)
    once(at)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.PROVISIONING
    at.compute.start(claim_of(run, INSTANCE))
    at.clock.sleep(300)
    with monkeypatch.context() as patch:
        patch.setattr(at.ledger, "save_run", full)
        assert tick(at.world, at.config).errors
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    settled = stored_settlement(at, run)
    assert settled.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0
    return run, settled


def starts(at: Stage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that a start is asked for from here on."""
    asked: list[str] = []
    whole = at.compute.start

    def start(claim: Claim) -> None:
        asked.append(claim.run)
        whole(claim)

    monkeypatch.setattr(at.compute, "start", start)
    return asked


def test_reconcile_waits_for_its_stop_although_the_ledger_cannot_be_written(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(at)
    once(at)
    (run,) = at.ledger.open_runs()
    at.compute.start(claim_of(run, INSTANCE))
    at.clock.sleep(300)
    monkeypatch.setattr(at.ledger, "save_run", full)
    with pytest.raises(BatchscribeError, match="no space left"):
        reconcile(at.world, at.config)
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert stored_settlement(at, run).billed_seconds >= at.compute.billed_seconds(INSTANCE)


@pytest.mark.parametrize("make_pass", [tick, reconcile])
def test_a_bill_that_only_the_store_knows_is_taken_over(
    at: Stage, monkeypatch: pytest.MonkeyPatch, make_pass: Callable[[World, RunConfig], object]
) -> None:
    """A user's session is up when the disk has room again: nothing of ours can be observed any more."""
    run, settled = forgotten(at, monkeypatch)
    at.clock.sleep(1200)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    make_pass(at.world, at.config)
    assert at.ledger.run(run.id) == settled
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING


@pytest.mark.parametrize("sealed", [True, False], ids=["by us", "by another scheduler"])
@pytest.mark.parametrize("make_pass", [tick, reconcile, watch])
def test_a_settled_run_is_not_started_again(
    at: Stage, monkeypatch: pytest.MonkeyPatch, make_pass: Callable[[World, RunConfig], object], sealed: bool
) -> None:
    run, settled = forgotten(at, monkeypatch)
    if not sealed:
        at.store.place(keys.settlement(run.id), encode_run(settled))
    asked = starts(at, monkeypatch)
    at.clock.sleep(5)
    make_pass(at.world, at.config)
    assert run.id not in asked


@pytest.mark.parametrize(
    "data", [b'{"outcome": "not yet thought of"}', b'{"version": 99}', b"", b"{", b"\xff"], ids=repr
)
def test_a_settlement_that_cannot_be_read_keeps_no_run_open(
    at: Stage, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    run, _ = forgotten(at, monkeypatch)
    at.store.place(keys.settlement(run.id), data)
    at.clock.sleep(1200)
    reconcile(at.world, at.config)
    closed = at.ledger.run(run.id)
    assert closed is not None
    assert closed.state is RunState.SETTLED
    assert closed.billed_seconds >= at.compute.billed_seconds(INSTANCE)


def settled_and_not_recorded(at: Stage, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose controller died after it had stored the settlement, as the ledger has it."""
    with monkeypatch.context() as patch:
        patch.setattr("batchscribe.controller.settle.save", full)
        tick(at.world, at.config)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.VERIFYING
    return run


def test_a_crash_between_settlement_and_ledger_loses_no_poll(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settled_and_not_recorded(at, monkeypatch)
    settled = stored_settlement(at, run)
    at.clock.sleep(1200)
    reconcile(at.world, at.config)
    closed = at.ledger.run(run.id)
    assert closed == settled
    assert closed.machines[0].meter == run.machines[0].meter
    assert closed.outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    "change",
    [
        lambda settled: replace(settled, cost=Usd(settled.cost.micros - 1)),
        lambda settled: metered(
            settled, replace(settled.machines[0].meter, stopped=settled.machines[0].meter.idle_until)
        ),
        lambda settled: settled,
    ],
    ids=["another cost", "a shorter bill", "the same bill"],
)
def test_a_settlement_without_our_seal_is_ignored_and_alerted(
    at: Stage, monkeypatch: pytest.MonkeyPatch, change: Callable[[Run], Run]
) -> None:
    run = settled_and_not_recorded(at, monkeypatch)
    settled = stored_settlement(at, run)
    changed = change(settled)
    at.store.place(keys.settlement(run.id), encode_run(changed))
    at.notes.messages.clear()
    reconcile(at.world, at.config)
    closed = at.ledger.run(run.id)
    assert closed is not None
    assert (closed.machines[0].meter, closed.cost, closed.scheduler) == (
        settled.machines[0].meter,
        settled.cost,
        settled.scheduler,
    )
    assert "batchscribe: a control object is not ours" in [message.title for message in at.notes.messages]
    assert stored_settlement(at, run) == changed
