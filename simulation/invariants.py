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
I12  no control object that we did not write is acted on: a forged one never starts, stops, bills, or makes
     a chunk done
I13  a run that was observed up is never billed 0
I14  no chunk is older than its longest wait without a start, a quarantine or an alert
E    no error of our own making: what a tick raises is one of ours, and no mistake is logged

What our words promise of times, `promises` holds: P1 to P4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchscribe.controller import external_state
from batchscribe.controller.reconcile import OVERDUE
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import GUARD_LAST, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.core.run.manifest import Manifest
from batchscribe.core.run.runs import Run, RunState
from batchscribe.testing.guard import FakeGuard
from simulation.bills import Bills, Kept, Look
from simulation.chunk_rules import ChunkRules
from simulation.cloud import UP, Act, Cloud, Machine, Span
from simulation.gate import Gate
from simulation.seams import Bucket, LedgerSeam
from simulation.timeline import Timeline

LIMIT = timedelta(minutes=20)
FORGED = "forged-"
"""How the runs begin that are nowhere but in forged objects."""
OLD_LOOK_SECONDS = 120.0
"""An act on a look that is older than this is no act on a look."""
SKEW = timedelta(minutes=5)
"""EC2 takes no request that was signed by a clock more wrong than that; the simulated cloud does."""


@dataclass(slots=True)
class _Seen:
    """What a process has seen of the instance."""

    look: tuple[float, Instance] | None = None
    """The last one, and the moment that it showed."""
    unwritten: Look | None = None
    """When the last one was asked for and answered, and whether it showed `pending`; until something is
    written down after it."""
    at_work: set[str] = field(default_factory=set)
    """The runs that it has written down: what it sees from then on, it sees for them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a ledger holds at one moment."""

    bills: Kept
    launched: Mapping[str, datetime]


class Checker:
    """Holds the episode against its invariants. It changes nothing."""

    def __init__(
        self, gate: Gate, line: Timeline, cloud: Cloud, bucket: Bucket, guard: FakeGuard, *, ours: str
    ) -> None:
        self.ledgers: Callable[[], tuple[LedgerSeam, ...]] = tuple
        """Of all hosts."""
        self.runs: dict[str, Run] = {}
        """Every run of ours as it was saved last, whatever became of the ledger."""
        self.jumps: list[tuple[float, float]] = []
        """(moment, seconds) of the jumps of the host's clock."""
        self.secrets: tuple[str, ...] = ()
        self.own_type = ""
        self.unguarded: set[str] = set()
        """Runs that were begun with the guard switched off: nothing outside the host stops them."""
        self.left_armed: set[str] = set()
        """Runs that ended with the guard switched off: their stop orders stay until they fire."""
        self._host = ""
        self._host_now: Callable[[], datetime] = line.now
        """By the host's clock a claim that was observed is over or not."""
        self._owners: dict[str, str] = {}
        """The host that opened each run."""
        self._taken_over: set[tuple[str, str]] = set()
        """Runs, each with another host that took it over after its deadline."""
        self._gate = gate
        self._line = line
        self._cloud = cloud
        self._bucket = bucket
        self._guard = guard
        self._ours = cloud.machine(ours)
        self.bills = Bills(gate, line, cloud, self._ours, self.jumps)
        self.chunks = ChunkRules(gate, line, bucket, self.jumps)
        self._me = _Seen()
        self._pid = 0
        self._seen: dict[int, _Seen] = {}
        self._deadlines: dict[str, datetime] = {}
        """Of every run that claimed an instance, whether anybody wrote it down or not."""
        self._late: dict[str, datetime] = {}
        """When a run was started last by a host whose clock is so wrong that the deadline may be past."""
        self._doubtful = 0
        """The start of the machine, by its number, that we may take for ours."""
        self._launched: dict[str, datetime] = {}
        """The launch time of each run that somebody saw up, and wrote down after that."""

    # every step

    def step(self) -> None:
        machine = self._ours
        if machine.state in UP and machine.holder in self._deadlines:
            self._guarded(machine, machine.holder, self._deadlines[machine.holder])

    def _guarded(self, machine: Machine, run: str, deadline: datetime) -> None:
        now = self._line.now()
        over = max(deadline, self._late.get(run, deadline)) + LIMIT
        if machine.state is InstanceState.RUNNING and now > over and run not in self.unguarded:
            self._gate.violated("I2", f"{machine.id} runs for {run} past {deadline} + 20 min")
        intended = keys.intent(run)
        known = any(run in ledger.known for ledger in self.ledgers())
        if not known and not self._bucket.has(intended) and intended not in self._bucket.spoilt:
            self._gate.violated("I1", f"{machine.id} is {machine.state} for {run}, which nobody intended")
        unarmed = run not in self._guard.standing(machine.id) and run not in self.unguarded
        if now < deadline + GUARD_LAST and unarmed:
            fired = any(firing.run == run for firing in self._guard.fired)
            if not fired:
                self._gate.violated("I1", f"{machine.id} is {machine.state} for {run} without a guard")

    # I3: looks, and what was done on them

    def enter(self, pid: int, host: str, now: Callable[[], datetime]) -> None:
        """Whose looks and writes come from here on. A new process has seen nothing yet; what one that is
        gone did not write down is lost.
        """
        self._seen = {each: seen for each, seen in self._seen.items() if each in {pid, self._pid}}
        self._me = self._seen.setdefault(pid, _Seen())
        self._pid, self._host, self._host_now = pid, host, now

    def looked(self, asked: float, at: float, seen: Instance) -> None:
        self._me.look = (at, seen)
        self._me.unwritten = (asked, self._line.seconds, seen.state is InstanceState.PENDING)

    def acted(self, act: Act) -> None:
        """Something was asked of an instance, with a claim where one goes with it."""
        call, instance, claim = act.call, act.instance, act.claim
        machine = self._cloud.machines.get(instance)
        if claim is not None:
            self._claimed(act, claim)
        if machine is not self._ours:
            self._gate.violated("I3", f"{call} of {instance}, which is none of our business")
        self._as_seen(act, machine)
        if machine.holder == "" or (machine.holder in self._deadlines and not self._foreign(machine.holder)):
            return
        tag = machine.tags.get(RUN_TAG, "")
        tagged = None if self._foreign(tag) else self.runs.get(tag)
        if call == "release" and (tagged or not tag):
            return  # who empties our own tag, or an empty one, touches nothing of anybody else's
        if tagged and self._launched.get(tagged.id) in {None, machine.launched_at}:
            # We asked for a start and never saw it up: what is up under our tag when we see it first
            # cannot be told from it, from here to its stop.
            self._doubtful = machine.starts
            self.bills.in_doubt.add(tagged.id)
        if machine.starts == self._doubtful:
            if claim is not None and machine.holder in self._deadlines:
                self._join(machine, claim.run)
            return
        look = self._me.look
        age = float("inf") if look is None else act.asked - look[0]
        if look is None or look[0] >= machine.since or age > OLD_LOOK_SECONDS:
            self._gate.violated("I3", f"{call} of {instance} in the hands of {machine.holder}")
        if claim is not None and (call == "start" or machine.holder in self._deadlines):
            self._join(machine, claim.run)

    def _claimed(self, act: Act, claim: Claim) -> None:
        self._deadlines.setdefault(claim.run, claim.deadline)
        self._owners.setdefault(claim.run, self._host)
        if claim.run.startswith(FORGED):
            self._gate.violated("I12", f"{act.call} of {act.instance} for {claim.run}, which was forged")
        if act.call == "start" and abs(self._host_now() - self._line.now()) > SKEW:
            self._late[claim.run] = self._line.now()

    def _as_seen(self, act: Act, machine: Machine) -> None:
        """I3, of what the last look showed plainly."""
        if self._me.look is None:
            return
        seen = self._me.look[1]
        if act.force and seen.state is InstanceState.RUNNING:
            self._gate.violated("I3", f"{act.call} of {machine.id} by force, which runs and was never asked")
        unknown = seen.run not in self.runs and seen.run not in self._deadlines
        theirs = seen.run and (unknown or self._foreign(seen.run))
        over = seen.deadline is not None and seen.deadline <= self._host_now()
        if theirs and not over and seen.run == machine.tags.get(RUN_TAG):
            self._gate.violated("I3", f"{act.call} of {machine.id}, which {seen.run} was seen to claim")

    def _foreign(self, run: str) -> bool:
        """True for a run that another host opened, and may still stop itself."""
        if self._owners.get(run, self._host) == self._host or (run, self._host) in self._taken_over:
            return False
        deadline = self._deadlines.get(run)
        return deadline is None or self._host_now() < deadline + OVERDUE

    def _take_over(self, run: str) -> None:
        self.bills.in_doubt.add(run)
        if not self._foreign(run):
            self._taken_over.add((run, self._host))

    def _join(self, machine: Machine, run: str) -> None:
        """Two started it at once, and neither could know: from now on it runs for us, too.

        Of two schedulers of ours it is the one that the tag names: the other one lets go.
        """
        tag = machine.tags.get(RUN_TAG, "")
        run = tag if self._foreign(tag) and machine.holder in self._deadlines else run
        machine.holder = run
        if machine.state is InstanceState.RUNNING:
            machine.spans[-1].end = self._line.seconds
            machine.spans.append(Span(run, self._line.seconds, machine.type))

    # the ledger

    def memory(self) -> Memory:
        """What the ledger of the first host shows now, for a copy of it."""
        return Memory(self.bills.copy(), dict(self._launched))

    def ledger_lost(self, host: str, older: Memory | None = None) -> None:
        """What this host recorded of its runs is gone, but for what an older copy of its ledger shows:
        from here on they are billed from their intent on.
        """
        own = {run for run, owner in self._owners.items() if owner == host}
        lost = own & self.runs.keys()
        self.bills.ledger_lost(lost, older.bills if older else None)
        launched = older.launched if older else {}
        self._launched = {run: at for run, at in self._launched.items() if run not in lost}
        self._launched |= {run: at for run, at in launched.items() if run in lost}

    def saved(self, run: Run, _at: datetime) -> None:
        """A run was written down, and with it what was seen so far."""
        before = self.runs.get(run.id)
        self.bills.begin(run)
        self.runs[run.id] = run
        if self._owners.setdefault(run.id, self._host) != self._host:
            self._take_over(run.id)
        self._up_as(run)
        if run.id in self._me.at_work and self._me.unwritten:
            self.bills.keep(run.id, self._me.unwritten)
        self._me.at_work.add(run.id)
        self._me.unwritten = None
        if run.id.startswith(FORGED):
            self._acted_on_forgery(run)
        elif before is None and run.state is RunState.PLANNED:
            self.chunks.may_start(run)
        if run.state is RunState.SETTLED and (before is None or before.open):
            self.bills.check(run)
            self.chunks.count(run)

    def _acted_on_forgery(self, run: Run) -> None:
        """I12, of runs that never were."""
        if run.cost.micros or run.dispatched or run.chunks_done:
            self._gate.violated("I12", f"{run.id} was forged, and is {run.state} for ${run.cost.text(4)}")

    def _up_as(self, run: Run) -> None:
        """Who saw it up under its own tag, and wrote down anything then, knows which start was its own."""
        if self._me.look is None:
            return
        at, seen = self._me.look
        up = seen.state is InstanceState.RUNNING and seen.run == run.id
        if up and seen.launched_at and self._ours.holder == run.id and at >= self._ours.since:
            self._launched.setdefault(run.id, seen.launched_at)

    # ends

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

    def owner(self, run: str) -> str:
        """The host that opened it."""
        return self._owners.get(run, "")

    def work_begun(self, manifest: Manifest) -> None:
        """I12, of what the GPU host works on."""
        if self._bucket.is_forged(keys.manifest(manifest.run, manifest.worker)):
            self._gate.violated("I12", f"the GPU host works on a forged manifest of {manifest.run}")

    def ours(self, run: str) -> bool:
        """Whether somebody claimed an instance for this run of ours."""
        return run in self._deadlines

    def quiet(self) -> None:
        """I8."""
        machine = self._ours
        ledgers = self.ledgers()
        left = [f"run {run.id} is {run.state}" for ledger in ledgers for run in ledger.open_runs()]
        if machine.state is not InstanceState.STOPPED and machine.holder in self._deadlines:
            left.append(f"{machine.id} is {machine.state} for {machine.holder}")
        armed = self._guard.standing(machine.id) - self.left_armed
        left += [f"a guard's order for {run}" for run in sorted(armed)]
        seen = machine.shown[-1][1]
        if seen.run in self._deadlines:
            left.append(f"the tag of {seen.run}")
        if machine.type != self.own_type:
            left.append(f"its type is {machine.type}")
        left += [f"a note {note}" for ledger in ledgers for note in ledger.facts(external_state.NOTED)]
        record = wire.decode(self._bucket.get(keys.instance(machine.id)).data, InstanceRecord)
        if record.claim is not None and not record.claim.run.startswith(FORGED):
            left.append(f"the claim of {record.claim.run}")
        if left:
            self._gate.violated("I8", f"two ticks without faults, and there is still {'; '.join(left)}")
