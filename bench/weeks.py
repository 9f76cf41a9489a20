"""Weeks of faults in the shipped simulator: what comes from outside is the same for whoever plays them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import msgspec

from batchscribe import __version__
from batchscribe.adapters.no_guard import NoGuard
from batchscribe.controller.context import Waits
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.host import InstanceRecord
from batchscribe.testing.worker import ChunkFate
from simulation.chunk_rules import transcript_of
from simulation.people import CHUNK_BYTES
from simulation.stage import INSTANCE, Stage
from simulation.weather import CALM, HOUR, MINUTE, between

# The rates. They are invented, and harsh: only the order of the rows means anything.
WEEK = 168 * HOUR
POWER_LOSS_EVERY = 36 * HOUR  # of the scheduler's host; on average, as all that is `EVERY`
POWER_LOSS_LASTS = (5.0, 30 * HOUR)  # shortest and longest, evenly by their logarithm, as all that is `LASTS`
PARTITION_EVERY = 48 * HOUR  # the host reaches neither cloud, store, guard nor GPU host
PARTITION_LASTS = (1 * MINUTE, 3 * HOUR)
GPU_HOST_PARTITION_EVERY = 48 * HOUR  # the GPU host reaches nothing, and nothing reaches it
GPU_HOST_PARTITION_LASTS = (1 * MINUTE, 1 * HOUR)
WEATHER = replace(
    CALM,
    fault=0.03,  # of the calls, their own retries included
    lost_reply=1 / 3,  # of those: the call had its effect
    broken_boot=0.005,  # of the starts: back to stopped
    deaf_boot=0.005,  # of the boots: up, and never heard of
    hangs=0.0005,  # of the chunks: about one worker in a hundred hangs there for good
    dies=0.001,  # of the chunks: the worker dies there
)
SESSIONS = 60
CHUNKS = (5, 15)  # in a session, of ten minutes each
CHUNK_SECONDS = (45.0, 135.0)  # of the GPU
POLICY = Policy(
    threshold=20,
    max_wait=timedelta(hours=24),
    max_runtime=timedelta(hours=2),
    check_interval=timedelta(hours=1),
)
WAITS = Waits(poll=20.0, describe=60.0)  # fewer looks than in production, for speed


@dataclass(frozen=True)
class Played:
    """What a week came to: each stretch for which the GPU ran, in hours, and the chunks that were done."""

    stretches: tuple[float, ...]
    chunks: int


class Week(Stage):
    """The simulator's stage with the rates from above, and all that comes from outside planned ahead."""

    def __init__(self, seed: int, *, guarded: bool, boots: bool) -> None:
        super().__init__(random.Random(seed), WEATHER)
        self.power_lost: Callable[[float], None] = lambda _lasts: None
        self.policy = POLICY
        self.config = replace(
            self.config, policy=POLICY, launch="auto", first_offer_only=True, max_attempts=3, waits=WAITS
        )
        record = InstanceRecord(instance=INSTANCE, release=__version__, at=self.line.now(), boots=boots)
        self.bucket.place(keys.instance(INSTANCE), msgspec.json.encode(record))
        if not guarded:  # nor is it held against what only the guard can promise
            self.main.world = replace(self.main.world, guard=NoGuard())
            self.gate.check = self.line.after = lambda: None
        self._plan_uploads()
        self._plan_each(POWER_LOSS_EVERY, POWER_LOSS_LASTS, self._lose_power)
        self._plan_each(PARTITION_EVERY, PARTITION_LASTS, self._cut_host)
        self._plan_each(GPU_HOST_PARTITION_EVERY, GPU_HOST_PARTITION_LASTS, self._cut_gpu_host_off)

    def played(self) -> Played:
        spans = [span for span in self.machine.spans if span.begin < WEEK]
        ends = [WEEK if span.end is None else min(span.end, WEEK) for span in spans]
        done = sum(self.bucket.has(transcript_of(key)) for key in self.uploads.keys)
        hours = ((end - span.begin) / HOUR for span, end in zip(spans, ends, strict=True))
        return Played(tuple(hours), done)

    def _draw_seconds(self) -> float:
        return between(self.rng, *CHUNK_SECONDS)

    def _plan_uploads(self) -> None:
        for session in range(SESSIONS):
            begin = between(self.rng, 0.0, WEEK)
            for number in range(1, 1 + int(between(self.rng, *CHUNKS))):
                size = int(CHUNK_BYTES * between(self.rng, 0.8, 1.2))
                self.line.at(begin, self._arrival(f"s{session:03}/chunk-{number:03}.webm", size))
                begin += between(self.rng, 1 * MINUTE, 10 * MINUTE)

    def _arrival(self, key: str, size: int) -> Callable[[], None]:
        def arrive() -> None:
            self.uploads.kinds[key] = ChunkFate.GOOD
            self.bucket.place(key, key.encode(), size=size)
            self.uploads.keys.append(key)

        return arrive

    def _plan_each(self, every: float, lasts: tuple[float, float], act: Callable[[float], None]) -> None:
        at = self.rng.expovariate(1 / every)
        while at < WEEK:
            seconds = math.exp(between(self.rng, *map(math.log, lasts)))
            self.line.at(at, partial(act, seconds))
            at += self.rng.expovariate(1 / every)

    def _lose_power(self, lasts: float) -> None:
        self.power_lost(lasts)

    def _cut_host(self, lasts: float) -> None:
        trouble = self.trouble
        trouble.partitioned_until = max(trouble.partitioned_until, self.line.seconds + lasts)

    def _cut_gpu_host_off(self, lasts: float) -> None:
        self.gpu_host.offline_until = max(self.gpu_host.offline_until, self.line.seconds + lasts)


class Host:
    """A host whose power can fail; `play` is its week."""

    def __init__(self, week: Week) -> None:
        self.week = week
        self.down_until = 0.0
        week.power_lost = self.lose_power

    def lose_power(self, lasts: float) -> None:
        """It is down from now on; a loss while it is down changes nothing."""
        if self.down_until <= self.week.line.seconds:
            self.down_until = self.week.line.seconds + lasts
            self.lost()

    def lost(self) -> None: ...

    def play(self) -> None: ...
