"""Ledgers of many days, for pages, metrics and benches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.controller.commands.rehearsal import PROVED, Proof
from batchscribe.core.run.manifest import EngineTimeSummary
from batchscribe.core.run.meter import Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.ledger import Ledger
from support.values import INSTANCE, RATE, meter, run

CHUNK_SECONDS = 60.0
SPEED = 16.0


def settled_run(name: str, begin: datetime, chunks: int, **changes: object) -> Run:
    """A settled run that was measured: 95 s of boot, 20 s of loading, then its chunks, 40 s of stopping."""
    audio = CHUNK_SECONDS * chunks
    worker = begin + timedelta(seconds=95)
    window = worker + timedelta(seconds=25)
    end = window + timedelta(seconds=audio / SPEED * 1.1)
    stopped = end + timedelta(seconds=40)
    polled = meter(
        start_requested=begin,
        idle_until=begin + timedelta(seconds=5),
        running_since=begin + timedelta(seconds=60),
        running_until=end,
        stopped=stopped,
    )
    values: dict[str, object] = {
        "id": name,
        "state": RunState.SETTLED,
        "outcome": Outcome.COMPLETED,
        "created": begin,
        "deadline": begin + timedelta(hours=2),
        "machines": (Machine(id=INSTANCE, meter=polled),),
        "workers": (RunWorker(manifest="m", machine=INSTANCE, launched=True, ended=end),),
        "rate": replace(RATE, source="AWS list, on-demand, us-east-2", as_of=f"{begin:%Y-%m-%d}"),
        "planned_chunks": chunks,
        "worker_since": worker,
        "first_window": window,
        "stop_requested": Moment(end),
        "settled": stopped + timedelta(seconds=10),
        "chunks_done": chunks,
        "audio_seconds": audio,
        "worked": EngineTimeSummary(
            workers=1,
            load=20.0,
            after_load=audio / SPEED * 1.1,
            busy=audio / SPEED,
            starved=audio / SPEED * 0.1,
        ),
        "timeline": {"start": 60.0, "worker": 35.0, "load": 20.0, "work": audio / SPEED, "teardown": 40.0},
    }
    made = run(**(values | changes))
    return replace(made, cost=made.bill())


def make_days(begin: datetime, days: int, *, seed: int = 1) -> Iterator[Run | QueueSample]:
    """Hourly checks and the runs that they start at 100 chunks, with one failed start a week."""
    rng = random.Random(seed)
    pending, oldest = 0, None
    for hour in range(24 * days):
        at = begin + timedelta(hours=hour, seconds=7)
        arrived = rng.choice((0, 2, 5, 9, 14)) * (at.weekday() < 5) * (7 <= at.hour < 19)
        pending += arrived
        oldest = oldest or (at - timedelta(minutes=40) if arrived else None)
        name = f"{at:%Y%m%d-%H%M%S}-{rng.randrange(16**6):06x}"
        if hour % 168 == 60:
            yield settled_run(name, at, 0, outcome=Outcome.LAUNCH_FAILED, worked=EngineTimeSummary())
        elif pending >= 100 or (oldest and at - oldest > timedelta(hours=22)):
            yield settled_run(name, at, pending)
            pending, oldest = 0, None
        else:
            yield QueueSample(
                at=at,
                pending=pending,
                triggering=pending,
                waiting=arrived // 5,
                oldest=oldest,
                decision="below-threshold",
                sentence=f"{pending} chunks pending, threshold 100",
            )


def fill_ledger(ledger: Ledger, begin: datetime, days: int, *, seed: int = 1) -> None:
    """Saves the days, and a proof of the stop."""
    for each in make_days(begin, days, seed=seed):
        if isinstance(each, Run):
            ledger.save_run(each, at=each.settled or each.created)
        else:
            ledger.save_sample(each)
    proof = Proof(
        act="box", at=begin, run="r", proved=True, seconds=95.0, detail="the GPU host powered itself off"
    )
    ledger.put(f"{PROVED}box", msgspec.json.encode(proof).decode())
