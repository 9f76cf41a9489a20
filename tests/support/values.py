"""Values for tests, with defaults that say nothing special."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Observation
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.runs import Machine, Run, RunWorker
from batchscribe.core.scan.backlog import Backlog
from batchscribe.core.scan.chunks import Chunk

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RATE = Rate(per_hour=Usd.parse("0.526"), source="test", as_of="2026-11-01")
OFFER = Offer(provider="ec2", instance_type="g4dn.xlarge", market=Market.ON_DEMAND, rate=RATE)
INSTANCE = "i-0123456789abcdef0"
LAUNCHES = {"launched", "launched_before"}
"""Fields of a meter that are times by the cloud's clock."""
METERED = {field.name for field in dataclasses.fields(Meter)}


def chunk(number: int = 1, *, hours_old: float = 1.0, **changes: Any) -> Chunk:
    values: dict[str, Any] = {
        "key": f"s/chunk-{number:03}.webm",
        "size": 40_000,
        "modified": NOW - timedelta(hours=hours_old),
        "etag": f"e{number}",
        "session": "s/",
        "number": number,
        "transcript": f"s/transcription-chunk-{number:03}.json",
    }
    return Chunk(**(values | changes))


def backlog(pending: int = 0, *, hours_old: float = 1.0, **changes: Any) -> Backlog:
    chunks = tuple(chunk(number, hours_old=hours_old) for number in range(pending))
    values: dict[str, Any] = {
        "sessions": 1 if pending else 0,
        "pending": pending,
        "pending_bytes": 40_000 * pending,
        "oldest": NOW - timedelta(hours=hours_old) if pending else None,
        "candidates": chunks,
    }
    return Backlog(**(values | changes))


def instance(state: InstanceState = InstanceState.STOPPED, **changes: Any) -> Instance:
    return Instance(**({"id": INSTANCE, "state": state, "type": "g4dn.xlarge"} | changes))


def observation(seen: Backlog | None = None, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "now": NOW,
        "backlog": seen or backlog(),
        "instances": (changes.pop("instance", instance()),),
        "offers": (OFFER,),
    }
    return Observation(**(values | changes))


def moment(seconds: float = 0.0, *, uptime: float | None = None, boot: str = "") -> Moment:
    """Seconds after NOW by the wall clock; a given uptime belongs to `boot`."""
    return Moment(NOW + timedelta(seconds=seconds), uptime, boot)


def meter(**times: datetime | Moment) -> Meter:
    """A meter; a plain time stands for a moment without uptime."""
    values: dict[str, Any] = {
        name: Moment(at) if isinstance(at, datetime) and name not in LAUNCHES else at
        for name, at in times.items()
    }
    return Meter(**values)


def run(**changes: Any) -> Run:
    """A run on one machine; fields of its meter may be given beside its own, as in `meter`."""
    polled = {name: changes.pop(name) for name in METERED & changes.keys()}
    values: dict[str, Any] = {
        "id": "20261123-120000-abcdef",
        "provider": "ec2",
        "machines": (Machine(id=INSTANCE, meter=meter(**polled)),),
        "policy": "threshold",
        "reason": "120 chunks pending, threshold 100 reached",
        "created": NOW,
        "deadline": NOW + timedelta(hours=2),
        "rate": RATE,
        "instance_type": "g4dn.xlarge",
    }
    return Run(**(values | changes))


def metered(run: Run, meter: Meter) -> Run:
    """The run with another meter of its only machine."""
    return run.with_machine(run.instance, meter=meter)


def workers(*manifests: str) -> tuple[RunWorker, ...]:
    """Workers of the only machine, one for each manifest."""
    return tuple(RunWorker(manifest=manifest, machine=INSTANCE) for manifest in manifests)
