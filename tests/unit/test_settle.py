"""What a settlement counts: what is done, and which chunk is to blame for what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.settle import settle
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.manifest import Manifest, Phase, Progress, Tally, Timings
from batchscribe.core.policy import Policy, PolicyName
from batchscribe.core.runs import Outcome, Run, RunState
from support.world import Stage, stage


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    yield made
    made.ledger.close()


def ready(at: Stage, count: int) -> list[str]:
    names = at.upload(count)
    at.clock.sleep(600)
    return names


def at_work(at: Stage) -> Run:
    """A run whose worker has just come to life, and is slow."""
    at.worker.seconds_each = 1e6
    while True:
        (run,) = tick(at.world, at.terms, once=True).runs
        if run.state is RunState.TRANSCRIBING:
            return run
        at.clock.sleep(5)


def reports(at: Stage, manifest: Manifest, *, done: int, in_flight: list[str]) -> None:
    progress = Progress(
        run=manifest.run,
        worker=manifest.worker,
        sequence=1,
        phase=Phase.WORKING,
        at=at.clock.now(),
        total=len(manifest.chunks),
        tally=Tally(done=done),
        timings=Timings(),
        in_flight=tuple(in_flight),
    )
    at.store.replace(keys.progress(manifest.run, manifest.worker), wire.encode(progress))


def over(at: Stage, run: Run, outcome: Outcome | None, **changes: object) -> Run:
    """The run as it is settled after that outcome."""
    ended = replace(run, state=RunState.VERIFYING, outcome=outcome, stopped=at.clock.now())
    return settle(at.world, at.terms, replace(ended, **changes), [])  # type: ignore[arg-type]


def blamed(at: Stage, name: str) -> int:
    return len(list(at.store.list(f"{keys.ATTEMPTS}{keys.digest(name)}/")))


@pytest.mark.parametrize(
    ("done", "share", "times"),
    [(0, 0.9, 1), (0, 0.51, 1), (0, 0.49, 0), (1, 0.9, 0)],
    ids=["most of the run", "just most", "too little of it", "something was done"],
)
def test_chunks_that_filled_a_fruitless_run_together_are_blamed_once_each(
    at: Stage, done: int, share: float, times: int
) -> None:
    names = ready(at, 4)
    run = at_work(at)
    reports(at, at.worker.manifests[run.id, 0], done=done, in_flight=names[:2])
    since = run.deadline - share * (run.deadline - run.created)
    over(at, run, Outcome.TIMED_OUT, worker_since=since)
    assert [blamed(at, name) for name in names] == [times, times, 0, 0]


def test_chunks_of_a_run_that_was_ended_for_another_reason_filled_nothing(at: Stage) -> None:
    names = ready(at, 4)
    run = at_work(at)
    reports(at, at.worker.manifests[run.id, 0], done=0, in_flight=names[:2])
    over(at, run, Outcome.INTERRUPTED, worker_since=run.created + timedelta(minutes=1))
    assert not any(blamed(at, name) for name in names)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\x00"])
def test_a_quarantine_that_cannot_be_read_is_counted_with_its_chunk_alone(at: Stage, data: bytes) -> None:
    names = ready(at, 4)
    at.worker.skips = frozenset({names[1]})
    at.clock.at(22, lambda: at.store.place(keys.quarantine(names[1]), data))
    (run,) = tick(at.world, at.terms).runs
    assert (run.outcome, run.chunks_done, run.chunks_failed) == (Outcome.COMPLETED, 3, 1)
    assert "3 of 4 chunks done, 1 quarantined, 0 left" in at.notes.messages[-1].body
    at.clock.sleep(3600)
    assert tick(at.world, at.terms).runs == (), "it starts no GPU"
