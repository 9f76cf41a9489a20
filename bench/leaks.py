"""The same weeks of faults through the original's rules and through ours: hours billed, longest leak.

`python -m bench.leaks [--weeks 20] [--seed 1]`. All rows of a table see the same weeks: the same uploads,
the same losses of the host's power, the same partitions, to the second. What strikes at a call, a boot
or a chunk is drawn from the week's own randomness as it comes up, since no two rows make the same calls.
Ours is the production tick and the production agent in the shipped simulator; its invariants stay on
wherever the guard is. The rates, invented and harsh, are at the top of `bench/weeks.py`.

The original is imitated, not run; where its scripts can be read in two ways, the kinder one is taken.
Its worker publishes chunk by chunk as ours does (it brought all results back at the end), its calls are
tried again as often as ours, and a broken connection is noticed at once. That it may adopt somebody
else's GPU is left out. It is shown as cron runs it, where ticks overlap because its lock is read and
never written, and as its systemd unit runs it, where they do not, and a tick is ended after three hours
with its trap run. Nobody looks in, in any row: what leaks runs to the end of its week.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from batchscribe import __version__
from batchscribe.controller.tick import tick, watch
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.manifest import EngineSpec, Manifest, ManifestChunk
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, LaunchError
from bench.weeks import POLICY, WEEK, Host, Played, Week
from simulation.chunk_rules import transcript_of
from simulation.gate import Crashed
from simulation.listening import listening
from simulation.stage import INSTANCE
from simulation.weather import HOUR, MINUTE

POLL_SECONDS = 15.0
WATCH_EVERY = 5 * MINUTE
"""While no run is open, a pass is one poll: fewer of them show the same."""
LONG, VERY_LONG = 3.5, 12.0  # hours; no run that goes well lasts so long
Call = Generator[float, None, None]


@dataclass(frozen=True)
class Row:
    name: str
    host: Callable[[Week], Host]
    guarded: bool = True
    boots: bool = True


class Ours(Host):
    """The production's timers: a tick an hour, and a pass over the open runs each minute."""

    def play(self) -> None:
        line, config, held = self.week.line, self.week.config, self.week.lock.held
        next_tick = next_watch = 0.0
        while line.seconds < WEEK:
            line.sleep(max(0.0, min(next_tick, next_watch) - line.seconds))
            if self.down_until > line.seconds:
                line.sleep(self.down_until - line.seconds)
                self.week.boot()
                next_tick, next_watch = line.seconds + MINUTE, line.seconds + 2 * MINUTE
            elif next_tick <= line.seconds:
                self._process("tick", lambda: tick(self.week.main.world, config, locked=held, wait=False))
                next_tick = max(next_tick + HOUR, line.seconds + 1.0)
                next_watch = min(next_watch, line.seconds + MINUTE)
            else:
                self._process("watchdog", lambda: watch(self.week.main.world, config, locked=held))
                again = MINUTE if self.week.ledger.open_runs() else WATCH_EVERY
                next_watch = max(next_watch + again, line.seconds + 1.0)

    def lost(self) -> None:
        self.week.power_off()

    def _process(self, name: str, act: Callable[[], object]) -> None:
        week = self.week
        week.begin(week.main, name)
        try:
            week.gate.point(name)
            act()
        except (Crashed, BatchscribeError):
            pass
        finally:
            week.end(week.main)
        if week.gate.violation:
            raise week.gate.violation


class Original(Host):
    """The original's hourly tick. Each runs on its own: nothing keeps a second one out, or ends the first.

    A tick is a generator that yields the seconds until it goes on; one whose host is gone never does.
    """

    limit = math.inf
    """Seconds after which a tick is ended; its trap runs."""
    overlaps = True

    def __init__(self, week: Week) -> None:
        super().__init__(week)
        week.pays_twice = True  # its ticks overlap
        self._ticks = self._launches = 0
        self._alive: set[int] = set()

    def play(self) -> None:
        for hour in range(int(WEEK / HOUR)):
            self.week.line.at(hour * HOUR, self._timer)
        self.week.line.sleep(WEEK)

    def lost(self) -> None:
        self._alive.clear()

    def _timer(self) -> None:
        if self.down_until <= self.week.line.seconds and (self.overlaps or not self._alive):
            self._ticks += 1
            self._alive.add(self._ticks)
            self._go_on(self._ticks, self._tick())

    def _go_on(self, number: int, process: Call) -> None:
        if number not in self._alive:
            return
        wait = next(process, None)
        if wait is None:
            self._alive.discard(number)
        else:
            self.week.line.at(wait, lambda: self._go_on(number, process))

    # what its scripts do

    def _tick(self) -> Call:
        """Whether it started the GPU is known to this process alone; its trap runs at any end but a kill."""
        started: list[bool] = []
        with suppress(BatchscribeError):
            yield from self._batch(started)
        if started:
            yield from self._trap()

    def _trap(self) -> Call:
        """One stop, and a look whether it worked; where it did not, a line in a log."""
        with suppress(BatchscribeError):
            yield from self._stop()

    def _batch(self, started: list[bool]) -> Call:
        began = self.week.line.seconds
        yield from self._call("store.list")
        if len(self._pending()) < POLICY.threshold:
            return
        yield from self._up(started)
        for _ in range(4):  # the batch, and three more tries for what is still missing
            yield from self._transcribe(began + self.limit)
            yield from self._call("store.list")
            if not self._pending():
                break
        if started:
            yield from self._stop()

    def _up(self, started: list[bool]) -> Call:
        """What runs already is used; only what this tick started is this tick's to stop."""
        yield from self._call("compute.describe")
        state = self.week.machine.state
        if state is InstanceState.STOPPING:
            yield from self._wait_for(InstanceState.STOPPED)
        elif state is InstanceState.PENDING:
            yield from self._wait_for(InstanceState.RUNNING)
        if self.week.machine.state is not InstanceState.RUNNING:
            yield from self._call(
                "compute.start", lambda: self.week.cloud.begin_start(INSTANCE, "the original")
            )
            started.append(True)
            yield from self._wait_for(InstanceState.RUNNING)
        for _ in range(30):
            if self._reached():
                return
            yield 8.0
        raise LaunchError("timeout waiting for SSH")

    def _transcribe(self, until: float) -> Call:
        """Over ssh, to the end of the worker, whenever that is."""
        yield from self._call("launcher.launch")
        if not self._reached():
            raise LaunchError("the GPU host does not answer")
        if not (chunks := self._pending()):
            return
        manifest = self._manifest(chunks)
        self.week.gpu_host.play(manifest)
        worker = self.week.gpu_host.workers[manifest.run, manifest.worker]
        while worker.alive:
            if self.week.line.seconds >= until:
                raise LaunchError("ended by the unit's time limit")
            yield POLL_SECONDS

    def _manifest(self, chunks: list[str]) -> Manifest:
        self._launches += 1
        entries = [
            ManifestChunk(
                key=key, etag="", size=0, session=key.partition("/")[0], transcript=transcript_of(key)
            )
            for key in chunks
        ]
        return Manifest(
            run=f"original-{self._launches}",
            worker=0,
            release=__version__,
            source=self.week.bucket.url,
            output=self.week.bucket.url,
            deadline=self.week.line.now() + timedelta(days=365),
            engine=EngineSpec(engine="played"),
            settings_hash="",
            chunks=tuple(entries),
        )

    def _stop(self) -> Call:
        yield from self._call("compute.stop", lambda: self.week.cloud.begin_stop(INSTANCE))
        yield from self._wait_for(InstanceState.STOPPED)

    def _wait_for(self, state: InstanceState) -> Call:
        """As `aws ec2 wait` does: forty looks, and the first that fails is the last."""
        for _ in range(40):
            yield from self._call("compute.describe")
            if self.week.machine.state is state:
                return
            yield 15.0
        raise ComputeUnavailableError(f"timeout waiting for {state}")

    def _call(self, name: str, act: Callable[[], object] = lambda: None) -> Call:
        """A call through the same troubles as ours."""
        yield self.week.trouble.takes(name)
        error, applied = self.week.trouble.find_error(name) or (None, True)
        if applied:
            act()
        if error:
            raise error

    def _reached(self) -> bool:
        return self.week.gpu_host.reachable and self.week.trouble.find_error("launcher.way") is None

    def _pending(self) -> list[str]:
        has = self.week.bucket.has
        return [key for key in self.week.uploads.keys if not has(transcript_of(key))]


class OriginalUnit(Original):
    """Its systemd unit: one tick at a time, for three hours at most; a lost hour is made up for at boot."""

    limit = 3 * HOUR
    overlaps = False

    def lost(self) -> None:
        super().lost()
        self.week.line.at(self.down_until - self.week.line.seconds + MINUTE, self._timer)


ORIGINAL = Row("the original, by cron", Original)
LEDGER_ALONE = Row("ours, ledger alone", Ours, guarded=False, boots=False)
OURS = Row("ours", Ours)
ROWS = (
    ORIGINAL,
    Row("the original, as its unit", OriginalUnit),
    LEDGER_ALONE,
    Row("ours, ledger and host", Ours, guarded=False),
    Row("ours, ledger and guard", Ours, boots=False),
    OURS,
)


def play(row: Row, seed: int) -> Played:
    """One week, to its end."""
    week = Week(seed, guarded=row.guarded, boots=row.boots)
    row.host(week).play()
    return week.played()


def told(name: str, weeks: list[Played], seconds: float) -> str:
    """A line of the table."""
    stretches = [hours for week in weeks for hours in week.stretches]
    return (
        f"{name:<28}{len(weeks):>6}{sum(stretches) / len(weeks):>12.1f}"
        f"{sum(hours > LONG for hours in stretches):>10}{sum(hours > VERY_LONG for hours in stretches):>9}"
        f"{max(stretches, default=0.0):>12.2f}"
        f"{sum(week.chunks for week in weeks) / len(weeks):>13.0f}{seconds:>10.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weeks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    print(
        f"{'':<28}{'weeks':>6}{'GPU h/week':>12}{'> 3.5 h':>10}{'> 12 h':>9}{'longest h':>12}"
        f"{'chunks/week':>13}{'CPU s':>10}"
    )
    for row in ROWS:
        begun = time.process_time()
        with listening():
            weeks = [play(row, seed) for seed in range(wanted.seed, wanted.seed + wanted.weeks)]
        print(told(row.name, weeks, time.process_time() - begun), flush=True)


if __name__ == "__main__":
    main()
