"""Control objects that another program wrote: no run record is recovered, no settlement billed."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core.run.instances import DEADLINE_TAG, RUN_TAG, Claim, InstanceState
from batchscribe.core.run.meter import Meter
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.run.seals import seal
from batchscribe.settings import load
from batchscribe.wiring.process import scheduler_identity
from support.values import metered
from support.world import INSTANCE, SECRET, Stage


def forged(at: Stage) -> Run:
    """A run that never was, as its record would look like after a start; one run was settled before."""
    at.upload(120)
    at.clock.sleep(600)
    (run,) = tick(at.world, at.config).runs
    created = at.clock.now() - timedelta(hours=50)
    planned = replace(run, id="forged", state=RunState.PLANNED, created=created, settled=None, outcome=None)
    return metered(planned, Meter())


@pytest.mark.parametrize("secret", ["", "of another scheduler"], ids=["without a seal", "with another seal"])
@pytest.mark.parametrize("borrowed", [False, True])
def test_a_forged_run_record_is_not_recovered(at: Stage, secret: str, borrowed: bool) -> None:
    lie = replace(forged(at), borrowed=borrowed)
    at.store.place(keys.intent(lie.id), seal(encode_run(lie), secret))
    at.notes.messages.clear()
    for _ in range(3):
        reconcile(at.world, at.config)
    assert at.ledger.run(lie.id) is None
    titles = [message.title for message in at.notes.messages]
    assert titles == ["batchscribe: a control object is not ours"]


def test_a_run_record_with_our_seal_is_recovered(at: Stage) -> None:
    run = forged(at)
    at.store.place(keys.intent(run.id), seal(encode_run(run), SECRET))
    reconcile(at.world, at.config)
    assert at.ledger.run(run.id) is not None


def test_a_run_that_is_taken_over_is_billed_from_its_launch_whatever_its_record_says(at: Stage) -> None:
    lie = replace(forged(at), scheduler="another")
    at.store.place(keys.intent(lie.id), encode_run(lie))
    launched = at.clock.now()
    at.compute.start(Claim(instance=INSTANCE, run=lie.id, deadline=launched + timedelta(hours=1)))
    at.clock.sleep(2 * 3600)
    assert at.compute.describe(INSTANCE).tags.keys() >= {RUN_TAG, DEADLINE_TAG}
    reconcile(at.world, at.config)
    taken = at.ledger.run(lie.id)
    assert taken is not None
    assert taken.state is RunState.SETTLED
    assert 2 * 3600 <= taken.billed_seconds <= 3 * 3600
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED


def test_id_and_secret_are_written_once(tmp_path: Path) -> None:
    settings = load({"BATCH_SOURCE": str(tmp_path), "BATCH_STATE_DIR": str(tmp_path)}, folder=tmp_path)
    assert scheduler_identity(settings, remember=False) == ("", "")
    scheduler, secret = scheduler_identity(settings)
    assert len(scheduler) < len(secret)
    assert scheduler_identity(settings) == (scheduler, secret)


def test_an_id_of_an_earlier_version_gets_a_secret(tmp_path: Path) -> None:
    settings = load({"BATCH_SOURCE": str(tmp_path), "BATCH_STATE_DIR": str(tmp_path)}, folder=tmp_path)
    (tmp_path / "scheduler-id").write_text("0123456789abcdef\n")
    scheduler, secret = scheduler_identity(settings)
    assert (scheduler, scheduler_identity(settings)) == ("0123456789abcdef", (scheduler, secret))
    assert secret


def test_a_pipe_in_the_place_of_the_identity_hangs_no_command(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scheduler-id")
    settings = load({"BATCH_SOURCE": "in", "BATCH_STATE_DIR": str(tmp_path)}, folder=tmp_path)
    assert scheduler_identity(settings, remember=False) == ("", "")
    assert all(scheduler_identity(settings))
