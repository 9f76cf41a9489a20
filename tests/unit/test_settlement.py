"""What was settled once stays: a ledger that could not be written meanwhile believes the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchscribe.controller.context import Terms, World
from batchscribe.controller.settlement import as_settled
from batchscribe.controller.steps import claim_of
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.instances import Claim, InstanceState
from batchscribe.core.manifest import Settlement
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import BatchscribeError
from support.world import INSTANCE, Stage, once, stage


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path)
    made.upload(120)
    made.clock.sleep(600)
    yield made
    made.ledger.close()


def full(*_said: object, **_more: object) -> None:
    raise BatchscribeError("no space left on the ledger's disk")


def forgotten(at: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Settlement]:
    """A run that was started, stopped and settled while nothing could be written down: its last row says
    that it was about to start.
    """
    once(at)
    once(at)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.PROVISIONING
    at.compute.start(claim_of(run))
    at.clock.sleep(300)
    with monkeypatch.context() as patch:
        patch.setattr(at.ledger, "save_run", full)
        with pytest.raises(BatchscribeError):
            reconcile(at.world, at.terms)
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    told = wire.decode(at.store.get(keys.settlement(run.id)).data, Settlement)
    assert told.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0
    return run, told


def starts(at: Stage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that a start is asked for from here on."""
    asked: list[str] = []
    whole = at.compute.start

    def start(claim: Claim) -> None:
        asked.append(claim.run)
        whole(claim)

    monkeypatch.setattr(at.compute, "start", start)
    return asked


@pytest.mark.parametrize("looks", [tick, reconcile])
def test_a_bill_that_only_the_store_knows_is_believed(
    at: Stage, monkeypatch: pytest.MonkeyPatch, looks: Callable[[World, Terms], object]
) -> None:
    """A person's session is up when there is room again: nothing of ours can be seen any more."""
    run, told = forgotten(at, monkeypatch)
    at.clock.sleep(1200)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    looks(at.world, at.terms)
    closed = at.ledger.run(run.id)
    assert closed is not None
    assert (closed.state, closed.outcome) == (RunState.SETTLED, Outcome(told.outcome))
    assert (closed.billed_seconds, closed.cost.micros) == (told.billed_seconds, told.cost_micros)
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING


def test_a_settled_run_is_not_started_again(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = forgotten(at, monkeypatch)
    asked = starts(at, monkeypatch)
    at.clock.sleep(5)
    tick(at.world, at.terms)
    assert run.id not in asked


def test_a_settlement_of_another_version_keeps_no_run_open(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = forgotten(at, monkeypatch)
    at.store.place(keys.settlement(run.id), b'{"outcome": "not yet thought of"}')
    at.clock.sleep(1200)
    reconcile(at.world, at.terms)
    closed = at.ledger.run(run.id)
    assert closed is not None
    assert closed.state is RunState.SETTLED


def test_a_crash_between_settlement_and_ledger_costs_no_looks(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same looks make the same bill: they stay, and what the store says is taken for the rest."""
    with monkeypatch.context() as patch:
        patch.setattr("batchscribe.controller.settle.keep", full)
        with pytest.raises(BatchscribeError):
            tick(at.world, at.terms)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.VERIFYING
    told = wire.decode(at.store.get(keys.settlement(run.id)).data, Settlement)
    at.clock.sleep(1200)
    reconcile(at.world, at.terms)
    closed = at.ledger.run(run.id)
    assert closed == as_settled(run, told)
    assert closed is not None
    assert (closed.running_since, closed.running_until) == (run.running_since, run.running_until)
    assert closed.settled == told.settled
