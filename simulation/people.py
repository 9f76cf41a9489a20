"""Uploads, manual users of the GPU, and another scheduler."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from batchscribe.core.run.instances import DEADLINE_TAG, RELEASED_TAGS, RUN_TAG, InstanceState
from batchscribe.errors import BatchscribeError
from batchscribe.testing.compute import Cloud
from batchscribe.testing.worker import ChunkFate
from simulation.seams import Bucket
from simulation.timeline import Timeline
from simulation.weather import HOUR, MINUTE, Weather, between

USER = "a user"
CHUNK_BYTES = 2_400_000
"""Ten minutes of webm, at the packer's default bitrate."""


class Uploads:
    """Sessions of chunks that arrive during the episode; some chunks are bad."""

    def __init__(self, rng: random.Random, line: Timeline, bucket: Bucket, weather: Weather) -> None:
        self.kinds: dict[str, ChunkFate] = {}
        self.keys: list[str] = []
        self._rng = rng
        self._line = line
        self._bucket = bucket
        self._weather = weather

    def plan(self, hours: float) -> None:
        """Plans sessions within `hours` from now."""
        for session in range(2 + int(self._rng.random() * 5)):
            begin = between(self._rng, 0.0, hours * HOUR)
            for number in range(1, 3 + int(self._rng.random() * 5)):
                self._line.at(begin, self._arrival(f"s{session}/chunk-{number:03}.webm"))
                begin += between(self._rng, 0.5 * MINUTE, 12 * MINUTE)

    def _arrival(self, key: str) -> Callable[[], None]:
        kind, size = self._kind(), int(CHUNK_BYTES * between(self._rng, 0.3, 2.0))

        def arrive() -> None:
            self.kinds[key] = kind
            self._bucket.place(key, key.encode(), size=size)
            self.keys.append(key)

        return arrive

    def _kind(self) -> ChunkFate:
        drawn, weather = self._rng.random(), self._weather
        for kind, share in (
            (ChunkFate.POISON, weather.poison),
            (ChunkFate.KILLER, weather.killer),
            (ChunkFate.ENDLESS, weather.endless),
            (ChunkFate.FORGOTTEN, weather.forgotten),
        ):
            if drawn < share:
                return kind
            drawn -= share
        return ChunkFate.GOOD


class ManualUsers:
    """Users at the console, and another scheduler, both independent of ours."""

    def __init__(self, rng: random.Random, line: Timeline, cloud: Cloud, instance: str) -> None:
        self.over = False
        self._rng = rng
        self._line = line
        self._cloud = cloud
        self._id = instance

    def plan(self, weather: Weather, hours: float) -> None:
        for _ in range(weather.people):
            act = self._visit if self._rng.random() < 0.6 else self._meddle
            self._line.at(between(self._rng, 0.0, hours * HOUR), act)
        for number in range(weather.foreign_runs):
            self._line.at(between(self._rng, 0.0, hours * HOUR), self._foreign_run(f"other-{number}"))

    def leave(self) -> None:
        """Ends all foreign use: stops their instance and removes their claims."""
        self.over = True
        machine = self._cloud.machine(self._id)
        if machine.holder.startswith(("other-", USER)):
            self._stop(machine.holder)
            self._line.at(10 * MINUTE, self._force)
        if machine.tags.get(RUN_TAG, "").startswith("other-"):
            self._cloud.tag(self._id, RELEASED_TAGS)

    def _force(self) -> None:
        """Forces a hung stop of their instance."""
        machine = self._cloud.machine(self._id)
        if machine.stuck and machine.holder.startswith(("other-", USER)):
            self._cloud.begin_stop(self._id, force=True)

    def _visit(self) -> None:
        """Uses the GPU for a while if it is free."""
        if self.over or self._cloud.machine(self._id).state is not InstanceState.STOPPED:
            return
        self._cloud.start_unclaimed(self._id)
        self._line.at(between(self._rng, 10 * MINUTE, 90 * MINUTE), self._end_visit)

    def _end_visit(self) -> None:
        self._stop(USER)

    def _meddle(self) -> None:
        """Stops the GPU regardless of its user, and perhaps starts it again."""
        if self.over:
            return
        self._stop(self._cloud.machine(self._id).holder)
        if self._rng.random() < 0.5:
            self._line.at(between(self._rng, 1 * MINUTE, 40 * MINUTE), self._visit)

    def _stop(self, holder: str) -> None:
        """Stops it for that holder; retries while it is pending."""
        machine = self._cloud.machine(self._id)
        if not holder or machine.holder != holder:
            return
        with suppress(BatchscribeError):
            self._cloud.begin_stop(self._id)
        if machine.state is InstanceState.PENDING:
            self._line.at(0.5 * MINUTE, lambda: self._stop(holder))

    def _foreign_run(self, name: str) -> Callable[[], None]:
        """Returns the start of a foreign run, as careful as ours."""

        def begin() -> None:
            machine = self._cloud.machine(self._id)
            if self.over or machine.state is not InstanceState.STOPPED or machine.tags.get(RUN_TAG):
                return
            deadline = self._line.now() + timedelta(hours=2)
            self._cloud.tag(self._id, {RUN_TAG: name, DEADLINE_TAG: deadline.isoformat()})
            self._line.at(between(self._rng, 1.0, 90.0), start)

        def start() -> None:
            machine = self._cloud.machine(self._id)
            if machine.state is not InstanceState.STOPPED or machine.tags.get(RUN_TAG) != name:
                release()
                return
            self._cloud.begin_start(self._id, name)
            self._line.at(between(self._rng, 10 * MINUTE, 100 * MINUTE), end)

        def end() -> None:
            self._stop(name)
            self._line.at(5 * MINUTE, release)

        def release() -> None:
            if self._cloud.machine(self._id).tags.get(RUN_TAG) == name:
                self._cloud.tag(self._id, RELEASED_TAGS)

        return begin
