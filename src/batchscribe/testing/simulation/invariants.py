"""What must hold at every step, whatever dies; each is held against the truth, not against what was told.

I1   ours is up only with a durable intent and a guard's order (or with its window past)
I2   ours never runs past its deadline + 20 minutes, nor does a worker of ours on a borrowed machine
I3   what is in other hands, or claimed by others, is not touched, as far as looks could tell; and only a
     stop that hangs is forced
I4   every uploaded chunk is done, pending or quarantined, as the scan says it
I5   a transcript is written at most once, and what is done is not done again
I6   at most one process holds the lock
I7   a settled run is billed for no less than it ran, and for no more than the gaps between looks explain,
     in seconds and in dollars of the type that ran
I8   after two ticks without faults nothing of ours is left, and the instance is of its own type
I9   no secret in any line, message, report or stored object
I10  a chunk that failed by itself starts no GPU before its longest wait, and then once for each attempt
I11  in the end everything is done or quarantined: no chunk waits for ever
E    no error of our own making: what a tick raises is one of ours, and no mistake is logged

What our words promise of times, `promises` holds: P1 to P4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchscribe.controller import outside
from batchscribe.controller.attempts import list_attempts, read_failures
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.backlog import ChunkState, state_of
from batchscribe.core.box import InstanceRecord
from batchscribe.core.instances import GUARD_LAST, RUN_TAG, Instance, InstanceState
from batchscribe.core.manifest import Manifest, counted
from batchscribe.core.meter import LONGEST_PENDING
from batchscribe.core.money import MINIMUM_BILLED_SECONDS, Usd
from batchscribe.core.policy import Policy
from batchscribe.core.runs import Run, RunState
from batchscribe.testing.guard import FakeGuard
from batchscribe.testing.simulation.cloud import UP, Act, Cloud, Machine, Span
from batchscribe.testing.simulation.gate import Gate
from batchscribe.testing.simulation.seams import Bucket, LedgerSeam
from batchscribe.testing.simulation.timeline import Timeline
from batchscribe.testing.simulation.worker import transcript_of

LIMIT = timedelta(minutes=20)
OLD_LOOK_SECONDS = 120.0
"""An act on a look that is older than this is no act on a look."""
SKEW = timedelta(minutes=5)
"""EC2 takes no request that was signed by a clock more wrong than that; the simulated cloud does."""
CALL_SECONDS = 60.0
"""What the calls between a look and its record may add to a bill, on both ends together."""


@dataclass(slots=True)
class _Seen:
    """What a process has seen of the instance."""

    look: tuple[float, Instance] | None = None
    """The last one, and the moment that it showed."""
    unwritten: tuple[float, float, bool] | None = None
    """When the last one was asked for and answered, and whether it showed `pending`; until something is
    written down after it."""
    at_work: set[str] = field(default_factory=set)
    """The runs that it has written down: what it sees from then on, it sees for them."""


class Checker:
    """Holds the episode against its invariants. It changes nothing."""

    def __init__(
        self, gate: Gate, line: Timeline, cloud: Cloud, bucket: Bucket, guard: FakeGuard, *, ours: str
    ) -> None:
        self.ledger: Callable[[], LedgerSeam] = lambda: self._no_ledger
        self.runs: dict[str, Run] = {}
        """Every run of ours as it was saved last, whatever became of the ledger."""
        self.uploaded: list[str] = []
        self.policy = Policy()
        self.jumps: list[tuple[float, float]] = []
        """(moment, seconds) of the jumps of the host's clock."""
        self.lag = 0.0
        """How old a look can be at most."""
        self.secrets: tuple[str, ...] = ()
        self.rates: Mapping[str, Usd] = {}
        """Dollars an hour of each type."""
        self.own_type = ""
        self.host_now: Callable[[], datetime] = line.now
        """By the host's clock a claim that was seen is over or not."""
        self._gate = gate
        self._line = line
        self._cloud = cloud
        self._bucket = bucket
        self._guard = guard
        self._ours = cloud.machine(ours)
        self._no_ledger: LedgerSeam
        self._me = _Seen()
        self._pid = 0
        self._seen: dict[int, _Seen] = {}
        self._kept: dict[str, list[tuple[float, float, bool]]] = {}
        self._recovered: set[str] = set()
        self._deadlines: dict[str, datetime] = {}
        """Of every run that claimed an instance, whether anybody wrote it down or not."""
        self._late: dict[str, datetime] = {}
        """When a run was started last by a host whose clock is so wrong that the deadline may be past."""
        self._doubtful = 0
        """The start of the machine, by its number, that we may take for ours."""
        self._launched: dict[str, datetime] = {}
        """The launch time of each run that somebody saw up, and wrote down after that."""
        self._in_doubt: set[str] = set()
        """Runs that took somebody else's start for theirs: they pay for it, too."""
        self._begun: dict[str, float] = {}
        self._checked = -1

    # every step

    def step(self) -> None:
        machine = self._ours
        if machine.state in UP and machine.holder in self._deadlines:
            self._guarded(machine, machine.holder, self._deadlines[machine.holder])

    def _guarded(self, machine: Machine, run: str, deadline: datetime) -> None:
        now = self._line.now()
        over = max(deadline, self._late.get(run, deadline)) + LIMIT
        if machine.state is InstanceState.RUNNING and now > over:
            self._gate.violated("I2", f"{machine.id} runs for {run} past {deadline} + 20 min")
        if run not in self.ledger().known and not self._bucket.has(keys.intent(run)):
            self._gate.violated("I1", f"{machine.id} is {machine.state} for {run}, which nobody intended")
        if now < deadline + GUARD_LAST and run not in self._guard.standing(machine.id):
            fired = any(firing.run == run for firing in self._guard.fired)
            if not fired:
                self._gate.violated("I1", f"{machine.id} is {machine.state} for {run} without a guard")

    # I3: looks, and what was done on them

    def enter(self, pid: int) -> None:
        """Whose looks and writes come from here on. A new process has seen nothing yet; what one that is
        gone did not write down is lost.
        """
        self._seen = {each: seen for each, seen in self._seen.items() if each in {pid, self._pid}}
        self._me = self._seen.setdefault(pid, _Seen())
        self._pid = pid

    def looked(self, asked: float, at: float, seen: Instance) -> None:
        self._me.look = (at, seen)
        self._me.unwritten = (asked, self._line.seconds, seen.state is InstanceState.PENDING)

    def acted(self, act: Act) -> None:
        """Something was asked of an instance, with a claim where one goes with it."""
        call, instance, claim = act.call, act.instance, act.claim
        machine = self._cloud.machines.get(instance)
        if claim is not None:
            self._deadlines.setdefault(claim.run, claim.deadline)
            if call == "start" and abs(self.host_now() - self._line.now()) > SKEW:
                self._late[claim.run] = self._line.now()
        if machine is not self._ours:
            self._gate.violated("I3", f"{call} of {instance}, which is none of our business")
        self._as_seen(act, machine)
        if machine.holder == "" or machine.holder in self._deadlines:
            return
        tagged = self.runs.get(tag := machine.tags.get(RUN_TAG, ""))
        if call == "release" and (tagged or not tag):
            return  # who empties our own tag, or an empty one, touches nothing of anybody else's
        if tagged and self._launched.get(tagged.id) in {None, machine.launched_at}:
            # We asked for a start and never saw it up: what is up under our tag when we see it first
            # cannot be told from it, from here to its stop.
            self._doubtful = machine.starts
            self._in_doubt.add(tagged.id)
        if machine.starts == self._doubtful:
            return
        look = self._me.look
        age = float("inf") if look is None else act.asked - look[0]
        if look is None or look[0] >= machine.since or age > OLD_LOOK_SECONDS:
            self._gate.violated("I3", f"{call} of {instance} in the hands of {machine.holder}")
        if call == "start" and claim is not None:
            self._join(machine, claim.run)

    def _as_seen(self, act: Act, machine: Machine) -> None:
        """I3, of what the last look showed plainly."""
        if self._me.look is None:
            return
        seen = self._me.look[1]
        if act.force and seen.state is InstanceState.RUNNING:
            self._gate.violated("I3", f"{act.call} of {machine.id} by force, which runs and was never asked")
        theirs = seen.run and seen.run not in self.runs and seen.run not in self._deadlines
        over = seen.deadline is not None and seen.deadline <= self.host_now()
        if theirs and not over and seen.run == machine.tags.get(RUN_TAG):
            self._gate.violated("I3", f"{act.call} of {machine.id}, which {seen.run} was seen to claim")

    def _join(self, machine: Machine, run: str) -> None:
        """Two started it at once, and neither could know: from now on it runs for us, too."""
        machine.holder = run
        if machine.state is InstanceState.RUNNING:
            machine.spans[-1].end = self._line.seconds
            machine.spans.append(Span(run, self._line.seconds, machine.type))

    # the ledger

    def ledger_lost(self) -> None:
        """What was written down of open runs is gone: from here on they are billed from their intent on."""
        lost = {run.id for run in self.runs.values() if run.open}
        self._recovered |= lost
        self._launched = {run: at for run, at in self._launched.items() if run not in lost}
        self._kept = {run: looks for run, looks in self._kept.items() if run not in lost}

    def saved(self, run: Run, _at: datetime) -> None:
        """A run was written down, and with it what was seen so far."""
        before = self.runs.get(run.id)
        self._begun.setdefault(run.id, self._line.seconds)
        self.runs[run.id] = run
        self._up_as(run)
        if run.id in self._me.at_work and self._me.unwritten:
            self._kept.setdefault(run.id, []).append(self._me.unwritten)
        self._me.at_work.add(run.id)
        self._me.unwritten = None
        if before is None and run.state is RunState.PLANNED:
            self._may_start(run)
        if run.state is RunState.SETTLED and (before is None or before.open):
            self._billed(run)
            self._counted(run)

    def _up_as(self, run: Run) -> None:
        """Who saw it up under its own tag, and wrote down anything then, knows which start was its own."""
        if self._me.look is None:
            return
        at, seen = self._me.look
        up = seen.state is InstanceState.RUNNING and seen.run == run.id
        if up and seen.launched_at and self._ours.holder == run.id and at >= self._ours.since:
            self._launched.setdefault(run.id, seen.launched_at)

    def _counted(self, run: Run) -> None:
        """I4 for a run: what it says is done has its transcript, whatever the worker said."""
        given = [
            key
            for key in self._bucket.keys(f"{keys.RUNS}{run.id}/workers/")
            if key.endswith("/manifest.json")
        ]
        chunks = [
            chunk for key in given for chunk in wire.decode(self._bucket.get(key).data, Manifest).chunks
        ]
        done = sum(self._bucket.has(chunk.transcript) for chunk in chunks)
        if run.chunks_done > done:
            self._gate.violated("I4", f"{run.id} says that {run.chunks_done} chunks are done, {done} are")

    def _may_start(self, run: Run) -> None:
        """I10, against the store: a pending chunk that never failed, or one whose next attempt was due."""
        then = self._line.now() - timedelta(minutes=10)
        if not any(self._startable(key, then) or self._retry_due(key) for key in self.uploaded):
            self._gate.violated("I10", f"{run.id} was begun although all that is pending failed before")

    def _startable(self, key: str, then: datetime) -> bool:
        """True if the chunk was pending and had not failed at some time since `then`."""
        done = self._bucket.modified(transcript_of(key))
        failed = self._failed(key)
        held = self._bucket.modified(keys.quarantine(key))
        return all(at is None or at > then for at in (done, held, *failed))

    def _retry_due(self, key: str) -> bool:
        """True if the chunk failed, and has waited for its next attempt as long as any chunk may."""
        if self._closed(key) or not (failed := self._failed(key)):
            return False
        lead = self.policy.check_interval + self.policy.max_runtime + timedelta(hours=1)
        jumped = timedelta(seconds=sum(abs(seconds) for _at, seconds in self.jumps))
        return self._line.now() - max(failed) >= self.policy.max_wait - lead - jumped

    def _failed(self, key: str) -> list[datetime]:
        """When the bucket received each failure of the chunk's own, compacted or not."""
        digest = keys.digest(key)
        stored = list_attempts(self._bucket, digest).stored
        names = [name for name in stored if keys.chunk_of(name)[0] == digest]
        failures = read_failures(self._bucket, lambda _listed: names, digest)
        own = {id(failure) for failure in counted(failures.values())}
        return [stored[name] for name, failure in failures.items() if id(failure) in own]

    def _billed(self, run: Run) -> None:
        """I7. A borrowed machine runs anyway, and one in other hands is not ours to measure."""
        if run.borrowed:
            return
        spans = [span for span in self._ours.spans if span.holder == run.id]
        if any(span.end is None for span in spans) and not run.abandoned_gpu:
            self._gate.violated("I7", f"{run.id} was settled while {self._ours.id} runs for it")
        truth = self._cloud.billed(run.id)
        jumped = sum(abs(seconds) for at, seconds in self.jumps if at >= self._begun[run.id])
        if run.billed_seconds + jumped + self.lag + 1.0 < truth:
            self._gate.violated("I7", f"{run.id} ran {truth:.0f} s and is billed {run.billed_seconds:.0f} s")
        most = self._most(run, spans) + jumped
        if jumped:  # clocks that contradict each other across a reboot are answered with the deadline
            most = max(most, (run.deadline - run.created).total_seconds())
        if run.billed_seconds > most and run.id not in self._in_doubt:
            text = f"{run.id} ran {truth:.0f} s, is billed {run.billed_seconds:.0f} s, at most {most:.0f} s"
            self._gate.violated("I7", text)
        self._paid(run, spans, truth - jumped - self.lag - 1.0, most)

    def _paid(self, run: Run, spans: list[Span], least: float, most: float) -> None:
        """I7 in dollars."""
        paid = run.cost.micros
        rates = [self.rates[span.type].micros for span in spans] or [
            rate.micros for rate in self.rates.values()
        ]
        if paid < min(rates) * max(0.0, least) / 3600:
            self._gate.violated(
                "I7", f"{run.id} cost ${run.cost.text(4)} for {least:.0f} s and more of {spans}"
            )
        limit = max(rates) * max(most, MINIMUM_BILLED_SECONDS) / 3600 + 1
        if paid > limit and run.id not in self._in_doubt:
            self._gate.violated(
                "I7", f"{run.id} cost ${run.cost.text(4)} for at most {most:.0f} s of {spans}"
            )

    def _most(self, run: Run, spans: list[Span]) -> float:
        """The longest bill that looks explain: from the last look before it ran to the first after it.

        A look counts where its process was at work on the run, and wrote the run down next. It is as early
        as it was asked for, and as late as it was answered.
        With a lost ledger the bill begins at the intent. A run that never ran is billed for no more than
        its life; stale looks and the time that calls take come on top, once on each side.
        """
        looks = self._kept.get(run.id, [])
        created = self._begun[run.id]
        now = self._line.seconds
        if not spans:
            return now - created + CALL_SECONDS
        first, last = spans[0].begin, spans[-1].end or now
        after = [at for _asked, at, _pending in looks if at >= last + self.lag]
        begin = created if run.id in self._recovered else self._idle(looks, created, first)
        end = min(after, default=now)
        return end - begin + 2 * self.lag + CALL_SECONDS

    def _idle(self, looks: list[tuple[float, float, bool]], begin: float, first: float) -> float:
        """Until when looks show that it has not run yet. One that sees it on its way up, after what its
        host took for a long time without any, does not tell whether it is for the first time.
        """
        for asked, at, pending in looks:
            passed = asked - begin + sum(seconds for when, seconds in self.jumps if begin <= when <= asked)
            if at <= first and not (pending and passed > LONGEST_PENDING.total_seconds()):
                begin = max(begin, asked)
        return begin

    # ends

    def tick_ended(self, scanner: Scanner) -> None:
        """I4 and I5, where the store has changed since the last look."""
        if self._bucket.changes == self._checked:
            return
        self._checked = self._bucket.changes
        rules = scanner.rules()
        states = {audio.info.key: state_of(audio, rules) for audio in scanner.audio()}
        for key in self.uploaded:
            self._accounted(key, states.get(key))
        for key, times in self._bucket.written.items():
            if times > 1 and "/transcription-" in key:
                self._gate.violated("I5", f"{key} was written {times} times")

    def _accounted(self, key: str, state: ChunkState | None) -> None:
        expected = {ChunkState.PENDING, ChunkState.WAITING}
        if self._bucket.has(transcript_of(key)):
            expected = {ChunkState.DONE}
        elif self._bucket.has(keys.quarantine(key)):
            expected = {ChunkState.QUARANTINED}
        if state not in expected:
            self._gate.violated("I4", f"{key} is {state}, and should be {' or '.join(sorted(expected))}")

    def heard(self, kind: str, text: str) -> None:
        """I9."""
        for secret in self.secrets:
            if secret in text:
                self._gate.violated("I9", f"a {kind} tells a secret")

    def written(self, key: str) -> None:
        """I9, of what is stored."""
        data = self._bucket.get(key).data
        if any(secret.encode() in data for secret in self.secrets):
            self._gate.violated("I9", f"{key} tells a secret")

    def ours(self, run: str) -> bool:
        """Whether somebody claimed an instance for this run of ours."""
        return run in self._deadlines

    def undone(self) -> list[str]:
        """I11: chunks that are neither done nor quarantined."""
        return [key for key in self.uploaded if not self._closed(key)]

    def closed(self) -> int:
        """How many chunks are done or quarantined."""
        return sum(map(self._closed, self.uploaded))

    def _closed(self, key: str) -> bool:
        return self._bucket.has(transcript_of(key)) or self._bucket.has(keys.quarantine(key))

    def never_done(self) -> None:
        if undone := self.undone():
            self._gate.violated("I11", f"everything is well, and still not done: {', '.join(undone)}")

    def quiet(self) -> None:
        """I8."""
        machine = self._ours
        left = [f"run {run.id} is {run.state}" for run in self.ledger().open_runs()]
        if machine.state is not InstanceState.STOPPED and machine.holder in self._deadlines:
            left.append(f"{machine.id} is {machine.state} for {machine.holder}")
        left += [f"a guard's order for {run}" for run in sorted(self._guard.standing(machine.id))]
        seen = machine.shown[-1][1]
        if seen.run in self._deadlines:
            left.append(f"the tag of {seen.run}")
        if machine.type != self.own_type:
            left.append(f"its type is {machine.type}")
        left += [f"a note {note}" for note in self.ledger().facts(outside.NOTED)]
        record = wire.decode(self._bucket.get(keys.instance(machine.id)).data, InstanceRecord)
        if record.claim is not None:
            left.append(f"the claim of {record.claim.run}")
        if left:
            self._gate.violated("I8", f"two ticks without faults, and there is still {'; '.join(left)}")
