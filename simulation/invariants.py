"""Invariants of every step, checked against the true state.

I1   our instance is up only with a durable intent and a guard's order (or after the order's window)
I2   our instance never runs past its deadline + 20 minutes, nor does our worker on a borrowed machine
I3   a foreign or foreign-claimed instance is not touched, as far as polls could show it; and only a
     stop that hangs is forced
I4   every uploaded chunk is done, pending or quarantined, and the scan reports so
I5   a transcript is written at most once, and no chunk is done twice
I6   at most one process holds the lock
I7   a settled run is billed for no less than it ran, and for no more than the gaps between polls explain,
     in seconds and in dollars of the type that ran
I8   after two ticks without faults no external state of ours is left, and the instance has its own type
     (unless a host with a wrong clock took a live claim for expired, and the type in force for its own)
I9   no secret in any line, message, report or stored object
I10  a chunk that failed before starts no GPU before its longest wait, and then once for each attempt
I11  in the end everything is done or quarantined: no chunk waits for ever
I12  no forged control object is acted on: it never starts, stops, bills, or makes a chunk done
I13  a run that was observed up is never billed 0
I14  no chunk is older than its longest wait without a start, a quarantine or an alert
E    no internal error: a tick raises only errors of `errors.py`, and logs no exception

`promises` checks the documented time bounds: P1 to P4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchscribe.controller import external_state
from batchscribe.controller.recovery import OVERDUE
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import GUARD_LAST, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.core.run.manifest import Manifest
from batchscribe.core.run.runs import Run, RunState
from batchscribe.testing.compute import Cloud, CloudMachine, Span
from batchscribe.testing.guard import FakeGuard
from simulation.bills import Bills, Kept, Poll
from simulation.chunk_rules import ChunkRules
from simulation.cloud import UP, Act
from simulation.gate import Gate
from simulation.seams import Bucket, LedgerSeam
from simulation.timeline import Timeline

LIMIT = timedelta(minutes=20)
FORGED = "forged-"
"""Prefix of runs that exist in forged objects only."""
OLD_POLL_SECONDS = 120.0
"""Maximum age of a poll that excuses an act."""
SKEW = timedelta(minutes=5)
"""Maximum clock error of a request to EC2; the simulated cloud accepts more."""


@dataclass(slots=True)
class _Seen:
    """Polls of the instance by one process."""

    poll: tuple[float, Instance] | None = None
    """The last poll, with the moment that it showed."""
    unwritten: Poll | None = None
    """The last poll, until a run is saved after it."""
    at_work: set[str] = field(default_factory=set)
    """Runs that the process has saved: its later polls count for them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Contents of a ledger at one moment."""

    bills: Kept
    launched: Mapping[str, datetime]


class Checker:
    """Checks the episode's invariants; read-only."""

    def __init__(
        self, gate: Gate, line: Timeline, cloud: Cloud, bucket: Bucket, guard: FakeGuard, *, ours: str
    ) -> None:
        self.ledgers: Callable[[], tuple[LedgerSeam, ...]] = tuple
        """Returns the ledgers of all hosts."""
        self.runs: dict[str, Run] = {}
        """All our runs as last saved, even if the ledger was lost since."""
        self.jumps: list[tuple[float, float]] = []
        """Jumps of the host's clock: (moment, seconds)."""
        self.secrets: tuple[str, ...] = ()
        self.own_type = ""
        self.unguarded: set[str] = set()
        """Runs begun with the guard switched off: nothing outside the host stops them."""
        self.left_armed: set[str] = set()
        """Runs that ended with the guard switched off: their stop orders stay until they fire."""
        self._host = ""
        self._host_now: Callable[[], datetime] = line.now
        """The host's clock, which decides if an observed claim has expired."""
        self._owners: dict[str, str] = {}
        """The host that opened each run."""
        self._taken_over: set[tuple[str, str]] = set()
        """Runs, each with the host that took it over after its deadline."""
        self._gate = gate
        self._line = line
        self._cloud = cloud
        self._bucket = bucket
        self._guard = guard
        self._ours = cloud.machine(ours)
        self.bills = Bills(gate, line, cloud, self._ours, self.jumps)
        self.chunks = ChunkRules(gate, line, bucket, self.jumps)
        self._me = _Seen()
        self._seen: dict[int, _Seen] = {}
        self._deadlines: dict[str, datetime] = {}
        """Deadlines of all runs that claimed an instance, saved or not."""
        self._late: dict[str, datetime] = {}
        """Last start of a run by a host whose clock is so wrong that the deadline may be past."""
        self._doubtful = 0
        """Number of the machine's start that we may mistake for ours."""
        self._type_lost = False
        """A host whose clock is ahead took a live claim for expired, and the type of that claim's run for the
        machine's own: both hosts change it at once from then on, and each restores what it found."""
        self._launched: dict[str, datetime] = {}
        """Launch time of each run that was observed up and saved after that."""

    # every step

    def step(self) -> None:
        machine = self._ours
        if machine.state in UP and machine.holder in self._deadlines:
            self._check_guarded(machine, machine.id, machine.holder)

    def _check_guarded(self, machine: CloudMachine, name: str, run: str) -> None:
        """I1 and I2 of a machine; stop orders have its `name`."""
        now, deadline = self._line.now(), self._deadlines[run]
        over = max(deadline, self._late.get(run, deadline)) + LIMIT
        if machine.state is InstanceState.RUNNING and now > over and run not in self.unguarded:
            self._gate.violated("I2", f"{machine.id} runs for {run} past {deadline} + 20 min")
        intended = keys.intent(run)
        stored = self._bucket.has(intended) or intended in self._bucket.spoilt
        if not stored and not any(run in ledger.known for ledger in self.ledgers()):
            self._gate.violated("I1", f"{machine.id} is {machine.state} for {run}, which has no intent")
        unarmed = run not in self._guard.standing(name) and run not in self.unguarded
        if now < deadline + GUARD_LAST and unarmed:
            fired = any(firing.run == run for firing in self._guard.fired)
            if not fired:
                self._gate.violated("I1", f"{machine.id} is {machine.state} for {run} without a guard")

    # I3: polls, and acts on them

    def enter(self, pid: int, host: str, now: Callable[[], datetime]) -> None:
        """Sets the process of the next polls and writes.

        A process id is never used again.
        """
        self._me = self._seen.setdefault(pid, _Seen())
        self._host, self._host_now = host, now

    def polled(self, asked: float, at: float, seen: Instance) -> None:
        self._me.poll = (at, seen)
        self._me.unwritten = (asked, self._line.seconds, seen.state is InstanceState.PENDING)
        if seen.state in UP and self._ours.holder not in {"", *self._deadlines}:
            self.bills.doubt_recovered()
            self._doubt_bill(self._ours)

    def acted(self, act: Act) -> None:
        """Checks a request on an instance, with its claim, if any."""
        call, instance, claim = act.call, act.instance, act.claim
        machine = self._cloud.machines.get(instance)
        if claim is not None:
            self._check_claim(act, claim)
        if machine is not self._ours:
            self._gate.violated("I3", f"{call} of {instance}, which is foreign")
        self._check_observed(act, machine)
        if machine.holder == "" or (
            machine.holder in self._deadlines and not self._is_foreign(machine.holder)
        ):
            return
        if call == "release" and (self._tagged_run(machine) or not machine.tags.get(RUN_TAG)):
            return  # clearing our own tag, or an empty one, changes nothing foreign
        if self._doubt_bill(machine):
            self._doubtful = machine.starts
        if machine.starts == self._doubtful:
            if claim is not None and machine.holder in self._deadlines:
                self._join(machine, claim.run)
            return
        poll = self._me.poll
        age = float("inf") if poll is None else act.asked - poll[0]
        if poll is None or poll[0] >= machine.since or age > OLD_POLL_SECONDS:
            self._gate.violated("I3", f"{call} of {instance}, which {machine.holder} holds")
        if claim is not None and (call == "start" or machine.holder in self._deadlines):
            self._join(machine, claim.run)

    def _tagged_run(self, machine: CloudMachine) -> Run | None:
        tag = machine.tags.get(RUN_TAG, "")
        return None if self._is_foreign(tag) else self.runs.get(tag)

    def _doubt_bill(self, machine: CloudMachine) -> bool:
        """True for a foreign start under our tag, which the run bills.

        The run requested a start and never observed it up, so it cannot distinguish the two.
        """
        tagged = self._tagged_run(machine)
        if tagged is None or self._launched.get(tagged.id) not in {None, machine.launched_at}:
            return False
        self.bills.in_doubt.add(tagged.id)
        return True

    def _check_claim(self, act: Act, claim: Claim) -> None:
        self._deadlines.setdefault(claim.run, claim.deadline)
        self._owners.setdefault(claim.run, self._host)
        if claim.run.startswith(FORGED):
            self._gate.violated("I12", f"{act.call} of {act.instance} for {claim.run}, which was forged")
        if act.call == "start" and abs(self._host_now() - self._line.now()) > SKEW:
            self._late[claim.run] = self._line.now()

    def _check_observed(self, act: Act, machine: CloudMachine) -> None:
        """I3, for what the last poll showed clearly."""
        if self._me.poll is None:
            return
        seen = self._me.poll[1]
        if act.force and seen.state is InstanceState.RUNNING:
            self._gate.violated("I3", f"forced {act.call} of {machine.id}, which runs and got no plain stop")
        unknown = seen.run not in self.runs and seen.run not in self._deadlines
        theirs = seen.run and (unknown or self._is_foreign(seen.run))
        over = seen.deadline is not None and seen.deadline <= self._host_now()
        if theirs and not over and seen.run == machine.tags.get(RUN_TAG):
            self._gate.violated("I3", f"{act.call} of {machine.id}, which was observed claimed by {seen.run}")

    def _is_foreign(self, run: str) -> bool:
        """True if another host opened the run and may still stop it."""
        if self._owners.get(run, self._host) == self._host or (run, self._host) in self._taken_over:
            return False
        deadline = self._deadlines.get(run)
        return deadline is None or self._host_now() < deadline + OVERDUE

    def _take_over(self, run: str) -> None:
        self.bills.in_doubt.add(run)
        if not self._is_foreign(run):
            self._taken_over.add((run, self._host))

    def _join(self, machine: CloudMachine, run: str) -> None:
        """Makes the machine ours after two undetectable simultaneous starts.

        Between two of our schedulers the tag decides, and the other one lets go.
        """
        tag = machine.tags.get(RUN_TAG, "")
        run = tag if self._is_foreign(tag) and machine.holder in self._deadlines else run
        machine.holder = run
        if machine.state is InstanceState.RUNNING:
            machine.spans[-1].end = self._line.seconds
            machine.spans.append(Span(run, self._line.seconds, machine.type))

    # the ledger

    def memory(self) -> Memory:
        """Current contents of the first host's ledger, for a copy of it."""
        return Memory(self.bills.copy(), dict(self._launched))

    def ledger_lost(self, host: str, older: Memory | None = None) -> None:
        """Drops this host's records, except those in an older ledger.

        From now on its runs are billed from their intent on.
        """
        own = {run for run, owner in self._owners.items() if owner == host}
        lost = own & self.runs.keys()
        self.bills.ledger_lost(lost, older.bills if older else None)
        launched = older.launched if older else {}
        self._launched = {run: at for run, at in self._launched.items() if run not in lost}
        self._launched |= {run: at for run, at in launched.items() if run in lost}

    def saved(self, run: Run, _at: datetime) -> None:
        """Records a saved run, with the polls so far."""
        before = self.runs.get(run.id)
        self.bills.begin(run)
        self.runs[run.id] = run
        if self._owners.setdefault(run.id, self._host) != self._host or run.adopted:
            self._take_over(run.id)
        self._record_launch(run)
        if run.id in self._me.at_work and self._me.unwritten:
            self.bills.keep(run.id, self._me.unwritten)
        self._me.at_work.add(run.id)
        self._me.unwritten = None
        if run.id.startswith(FORGED):
            self._check_forgery(run)
        elif before is None and run.state is RunState.PLANNED:
            self.chunks.may_start(run)
            self._record_opened(run)
        if run.state is RunState.SETTLED and (before is None or before.open):
            if not run.lane:
                self.bills.check(run)
            self.chunks.count(run)

    def _check_forgery(self, run: Run) -> None:
        """I12, for forged runs."""
        if run.cost.micros or run.dispatched or run.chunks_done:
            self._gate.violated("I12", f"{run.id} was forged, and is {run.state} for ${run.cost.text(4)}")

    def _record_opened(self, run: Run) -> None:
        """Records a run that took a live claim's type for its own."""
        claimed = self._me.poll[1].run if self._me.poll else None
        live = claimed is not None and self._line.now() < self._deadlines.get(claimed, self._line.now())
        if live and self._owners[claimed or ""] != self._host and run.own_type != self.own_type:
            self._type_lost = True

    def _record_launch(self, run: Run) -> None:
        """Records the launch time of a run observed up under its tag."""
        if self._me.poll is None:
            return
        at, seen = self._me.poll
        up = seen.state is InstanceState.RUNNING and seen.run == run.id
        if up and seen.launched_at and self._ours.holder == run.id and at >= self._ours.since:
            self._launched.setdefault(run.id, seen.launched_at)

    # ends

    def check_text(self, kind: str, text: str) -> None:
        """I9."""
        for secret in self.secrets:
            if secret in text:
                self._gate.violated("I9", f"a {kind} contains a secret")

    def written(self, key: str) -> None:
        """I9, for stored objects."""
        data = self._bucket.get(key).data
        if any(secret.encode() in data for secret in self.secrets):
            self._gate.violated("I9", f"{key} contains a secret")

    def owner(self, run: str) -> str:
        """Host that opened the run."""
        return self._owners.get(run, "")

    def work_begun(self, manifest: Manifest) -> None:
        """I12, for the manifests of the GPU host."""
        if self._bucket.is_forged(keys.manifest(manifest.run, manifest.worker)):
            self._gate.violated("I12", f"the GPU host works on a forged manifest of {manifest.run}")

    def ours(self, run: str) -> bool:
        """True if an instance was claimed for this run."""
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
        if machine.type != self.own_type and not self._type_lost:
            left.append(f"its type is {machine.type}")
        left += [f"a note {note}" for ledger in ledgers for note in ledger.facts(external_state.NOTED)]
        record = wire.decode(self._bucket.get(keys.instance(machine.id)).data, InstanceRecord)
        if record.claim is not None and not record.claim.run.startswith(FORGED):
            left.append(f"the claim of {record.claim.run}")
        if left:
            self._gate.violated("I8", f"two ticks without faults, and there is still {'; '.join(left)}")
