"""I4, I5, I10, I11 and I14: invariants of each uploaded chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from batchscribe.controller.alerts import ALERT_EVERY_HOURS
from batchscribe.controller.attempts import list_attempts, read_failures
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Manifest, select_counted
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import ChunkState, state_of
from simulation.gate import Gate
from simulation.seams import Bucket
from simulation.timeline import Timeline

OVERDUE_TITLE = "batchscribe: chunks wait too long"
ALERTED_AGAIN = timedelta(hours=ALERT_EVERY_HOURS)


class ChunkRules:
    """Checks chunks against the bucket; read-only."""

    def __init__(
        self, gate: Gate, line: Timeline, bucket: Bucket, jumps: Sequence[tuple[float, float]]
    ) -> None:
        self.uploaded: list[str] = []
        self.policy = Policy()
        self._gate = gate
        self._line = line
        self._bucket = bucket
        self._jumps = jumps
        self._checked = -1
        self._alerted = datetime.min.replace(tzinfo=UTC)

    def count(self, run: Run) -> None:
        """I4 for a run: every chunk counted as done has its transcript."""
        prefix = f"{keys.RUNS}{run.id}/workers/"
        given = {key for key in (*self._bucket.keys(prefix), *self._bucket.spoilt) if key.startswith(prefix)}
        originals = [self._bucket.original(key) for key in sorted(given) if key.endswith("/manifest.json")]
        if len(originals) < len(run.manifests):
            return  # one of them is in the ledger alone
        chunks = {chunk for data in originals if data for chunk in wire.decode(data, Manifest).chunks}
        done = sum(self._bucket.has(chunk.transcript) for chunk in chunks)
        if run.chunks_done > done:
            self._gate.violated("I4", f"{run.id} reports {run.chunks_done} chunks done, {done} are")

    def may_start(self, run: Run) -> None:
        """I10: a pending chunk never failed, or its next attempt was due."""
        then = self._line.now() - timedelta(minutes=10)
        if not any(self._is_startable(key, then) or self._is_retry_due(key) for key in self.uploaded):
            self._gate.violated("I10", f"{run.id} was begun although all that is pending failed before")

    def _is_startable(self, key: str, then: datetime) -> bool:
        """True if the chunk was pending and had not failed by `then`."""
        done = self._bucket.modified(transcript_of(key))
        failed = self._list_failures(key)
        held = self._bucket.modified(keys.quarantine(key))
        return all(at is None or at > then for at in (done, held, *failed))

    def _is_retry_due(self, key: str) -> bool:
        """True if the chunk failed, and is due for its next attempt."""
        if self._is_closed(key) or not (failed := self._list_failures(key)):
            return False
        lead = self.policy.check_interval + self.policy.max_runtime + timedelta(hours=1)
        if self.policy.name in {PolicyName.DEADLINE, PolicyName.BALANCED}:
            lead *= 2  # they plan the runs after the next one, too
        jumped = timedelta(seconds=sum(abs(seconds) for _at, seconds in self._jumps))
        return self._line.now() - max(failed) >= self.policy.max_wait - lead - jumped

    def _list_failures(self, key: str) -> list[datetime]:
        """Times of the chunk's failures in the bucket, compacted or not."""
        digest = keys.digest(key)
        stored = list_attempts(self._bucket, digest).stored
        names = [name for name in stored if keys.chunk_of(name)[0] == digest]
        failures = read_failures(self._bucket, lambda _listed: names, digest)
        own = {id(failure) for failure in select_counted(failures.values())}
        return [stored[name] for name, failure in failures.items() if id(failure) in own]

    def check_states(self, scanner: Scanner) -> None:
        """I4 and I5, if the store changed since the last check."""
        if self._bucket.changes == self._checked:
            return
        self._checked = self._bucket.changes
        rules = scanner.rules()
        states = {audio.info.key: state_of(audio, rules) for audio in scanner.audio()}
        for key in self.uploaded:
            self._check_state(key, states.get(key))
        for key, times in self._bucket.written.items():
            if times > 1 and "/transcription-" in key:
                self._gate.violated("I5", f"{key} was written {times} times")

    def _check_state(self, key: str, state: ChunkState | None) -> None:
        expected = {ChunkState.PENDING, ChunkState.WAITING}
        if self._bucket.has(transcript_of(key)):
            expected = {ChunkState.DONE}
        elif self._bucket.has(keys.quarantine(key)):
            expected = {ChunkState.QUARANTINED}
        if state not in expected:
            self._gate.violated("I4", f"{key} is {state}, and should be {' or '.join(sorted(expected))}")

    def list_undone(self) -> list[str]:
        """I11: chunks that are neither done nor quarantined."""
        return [key for key in self.uploaded if not self._is_closed(key)]

    def progress(self, attempts: int) -> int:
        """Measure of closed chunks, and of failed attempts up to a quarantine.

        A start may have room for two of many chunks that always fail: each of its attempts counts.
        """
        undone = self.list_undone()
        stored = Counter(keys.chunk_of(name)[0] for name in list_attempts(self._bucket).stored)
        failed = sum(min(stored[keys.digest(key)], attempts) for key in undone)
        return failed + (len(self.uploaded) - len(undone)) * (attempts + 1)

    def _is_closed(self, key: str) -> bool:
        return self._bucket.has(transcript_of(key)) or self._bucket.has(keys.quarantine(key))

    def alerted(self, title: str) -> None:
        """Records a sent message."""
        if title == OVERDUE_TITLE:
            self._alerted = self._line.now()

    def check_waits(self, begun: int) -> None:
        """I14, after a tick in the calm period that began `begun` runs."""
        now = self._line.now()
        if begun or now - self._alerted <= self.policy.max_wait + ALERTED_AGAIN:
            return
        late = [key for key in self.list_undone() if now - self._waits_since(key) > self.policy.max_wait]
        if late:
            self._gate.violated("I14", f"no start, no alert, and still waiting: {', '.join(late)}")

    def _waits_since(self, key: str) -> datetime:
        """Time of its upload, or of its last failure."""
        uploaded = self._bucket.modified(key)
        return max(filter(None, (uploaded, *self._list_failures(key))))

    def check_end(self) -> None:
        if undone := self.list_undone():
            self._gate.violated("I11", f"no faults, and still not done: {', '.join(undone)}")


def transcript_of(key: str) -> str:
    """Transcript key of a simulated chunk."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/transcription-{name.removesuffix('.webm')}.json"
