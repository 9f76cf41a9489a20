"""A user who may only write the bucket, and forges control objects."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.core import keys
from batchscribe.core.decide.money import Usd
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import ClaimLaunch, HostClaim, InstanceRecord
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Failure,
    FailureKind,
    Manifest,
    ManifestChunk,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.runs import Machine, Run, RunState
from simulation.invariants import FORGED
from simulation.seams import Bucket
from simulation.timeline import Timeline
from simulation.weather import HOUR, between, pick


class Forger:
    """Reads everything in the bucket, also ids of runs and scheduler."""

    def __init__(
        self, rng: random.Random, line: Timeline, bucket: Bucket, instance: str, runs: Mapping[str, Run]
    ) -> None:
        self.over = False
        self.forged: Callable[[str], object] = lambda _what: None
        """Called after each act."""
        self.uploaded: list[str] = []
        self._rng = rng
        self._line = line
        self._bucket = bucket
        self._instance = instance
        self._runs = runs
        self._count = 0

    def plan(self, times: int, hours: float) -> None:
        acts = (
            self._settlement,
            self._intent,
            self._manifest,
            self._exit_record,
            self._claim,
            self._attempts,
            self._deletion,
        )
        for _ in range(times):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._act(pick(self._rng, acts)))

    def _act(self, forge: Callable[[Run], None]) -> Callable[[], None]:
        """Returns an act on the latest open run, once there is one."""

        def act() -> None:
            still_open = [run for run in self._runs.values() if run.open and not run.id.startswith(FORGED)]
            if self.over:
                return
            if not still_open:
                self._line.at(0.1 * HOUR, act)
                return
            forge(still_open[-1])
            self.forged(forge.__name__.strip("_"))

        return act

    @property
    def _now(self) -> datetime:
        return self._line.now()

    def _settlement(self, run: Run) -> None:
        """Forges a settlement at no cost, a huge or a plausible one."""
        begin = Moment(run.created)
        end = Moment(run.created + timedelta(hours=pick(self._rng, (0.0, 0.2, 2.0, 1e5))))
        meter = Meter(start_requested=begin, up_since=begin, running_since=begin, stopped=end)
        settled = pick(self._rng, (self._now, end.at))
        lie = run.with_machine(run.instance, meter=meter)
        over = replace(lie, state=RunState.SETTLED, outcome=Outcome.COMPLETED, settled=settled)
        cost = pick(self._rng, (over.bill(), Usd.parse("0"), Usd.parse("1000000")))
        self._bucket.forge(keys.settlement(run.id), encode_run(replace(over, cost=cost)))

    def _intent(self, run: Run) -> None:
        """Forges a run record, as if this scheduler's ledger had been lost."""
        lie = self._forged_run(run)
        self._bucket.forge(keys.intent(lie.id), encode_run(lie))

    def _forged_run(self, run: Run) -> Run:
        self._count += 1
        created = self._now - timedelta(hours=pick(self._rng, (0.1, 1.0, 100.0)))
        return replace(
            run,
            id=f"{FORGED}{self._count}",
            state=RunState.PLANNED,
            outcome=None,
            created=created,
            deadline=self._now + timedelta(hours=2),
            machines=(Machine(id=pick(self._rng, (self._instance, "i-0fedcba9876543210"))),),
            workers=(),
            borrowed=self._rng.random() < 0.3,
        )

    def _manifest(self, run: Run) -> None:
        """Forges a manifest of the run, with another store or names."""
        number = max(0, len(run.manifests) - pick(self._rng, (0, 1)))
        self._bucket.forge(keys.manifest(run.id, number), wire.encode(self._forged_manifest(run, number)))

    def _forged_manifest(self, run: Run, number: int) -> Manifest:
        key = next(iter(self.uploaded), "s0/chunk-001.webm")
        chunk = ManifestChunk(key=key, etag="any", size=1, session="s0", transcript=".bash_profile")
        return Manifest(
            run=run.id,
            worker=number,
            release="any",
            source=run.source,
            output=pick(self._rng, (run.output, "memory://another")),
            deadline=run.deadline,
            engine=EngineSpec(engine="played"),
            settings_hash="forged",
            chunks=(chunk,),
        )

    def _exit_record(self, run: Run) -> None:
        """Forges an exit record that reports everything done."""
        record = ExitRecord(
            run=run.id,
            worker=max(0, len(run.manifests) - 1),
            end=WorkerEnd.FINISHED,
            at=self._now,
            tally=Tally(done=100, failed=0, audio_seconds=1e6),
            timings=Timings(),
        )
        self._bucket.forge(keys.exit_record(record.run, record.worker), wire.encode(record))

    def _claim(self, run: Run) -> None:
        """Forges a claim in the instance's record, with a forged run."""
        place = keys.instance(self._instance)
        record = msgspec.json.decode(self._bucket.get(place).data, type=InstanceRecord)
        lie = self._forged_run(run)
        claim = HostClaim(
            run=lie.id,
            created=lie.created,
            deadline=lie.deadline,
            output=run.output,
            launch=pick(self._rng, (ClaimLaunch.BOOT, ClaimLaunch.SSH)),
        )
        self._bucket.forge(keys.intent(lie.id), encode_run(lie))
        self._bucket.forge(keys.manifest(lie.id, 0), wire.encode(self._forged_manifest(lie, 0)))
        self._bucket.forge(place, msgspec.json.encode(msgspec.structs.replace(record, claim=claim)))

    def _attempts(self, run: Run) -> None:
        """Forges failures of a chunk."""
        if not self.uploaded:
            return
        key = pick(self._rng, self.uploaded)
        etag = next(info.etag for info in self._bucket.list(key))
        for number in range(pick(self._rng, (1, 3))):
            name = f"{FORGED}{run.id}-{number}"
            failure = Failure(
                key=key, etag=etag, run=name, kind=FailureKind.CHUNK, message="forged", at=self._now
            )
            self._bucket.forge(keys.attempt(key, etag, name), wire.encode(failure))

    def _deletion(self, run: Run) -> None:
        """Deletes one control object of the run, or all of them."""
        found = list(self._bucket.keys(f"{keys.RUNS}{run.id}/"))
        for key in pick(self._rng, (found, found[:1], found[-1:])):
            self._bucket.forge_deletion(key)
