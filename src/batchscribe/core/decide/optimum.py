"""The offline optimum: the cheapest starts if all arrivals are known.

Starts are made at the same checks as a policy's, and each takes all chunks that are pending then, in order of
arrival. Runs may overlap, and none has a maximum length: the optimum is a lower bound for every policy. Both
optima are exact, by dynamic programming over the checks that find new chunks (dynamic acknowledgement: Dooly,
Goldman, Scott, 2001).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, groupby

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.replay import first_check

_TOLERANCE = 1e-5
"""Seconds: a transcript at its limit is in time, whatever the rounding of floats."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Chunks that arrived between two checks. Times: seconds since the first arrival."""

    check: float
    """The check that finds them."""
    work: float
    """Seconds of work."""
    latest: float
    """Latest start of a run that begins with these chunks, for all their limits."""
    audio: float
    """Audio seconds."""
    offset: float
    """Sum of audio seconds times (end of the chunk's work in the slot - its arrival)."""


def make_slots(
    arrivals: Sequence[Arrival], priors: Priors, interval: timedelta, limits: Sequence[float]
) -> list[Slot]:
    """Groups arrivals by check. `limits`: their longest waits, in seconds."""
    pairs = zip(arrivals, limits, strict=True)
    groups = groupby(pairs, key=lambda pair: first_check(pair[0].at, interval))
    return [_make_slot(check, list(group), priors, arrivals[0].at) for check, group in groups]


def _make_slot(
    check: datetime, chunks: list[tuple[Arrival, float]], priors: Priors, origin: datetime
) -> Slot:
    times = [(each.at - origin).total_seconds() for each, _limit in chunks]
    ends = list(accumulate(each.audio_seconds / priors.speed for each, _limit in chunks))
    return Slot(
        check=(check - origin).total_seconds(),
        work=ends[-1],
        latest=min(
            at + limit - priors.setup_seconds - end
            for at, end, (_each, limit) in zip(times, ends, chunks, strict=True)
        ),
        audio=sum(each.audio_seconds for each, _limit in chunks),
        offset=sum(
            each.audio_seconds * (end - at)
            for at, end, (each, _limit) in zip(times, ends, chunks, strict=True)
        ),
    )


def find_least_total(slots: Sequence[Slot], priors: Priors, second_price: float, wait_price: float) -> float:
    """Least sum of the bill and the price of all waits.

    The starts keep the limit of each chunk. Prices: of a billed second, and of an audio second that waits for
    a second. Chunks that a start at once cannot finish in time get a start of their slot's own.
    """
    sums = _Sums(slots, priors)
    one_more = second_price * max(MINIMUM_BILLED_SECONDS, sums.overhead)
    best, first = [0.0], 0
    for last in range(len(slots)):
        # A start that is too late or worth a split with these slots is so with a further slot, too.
        while first < last and (
            sums.is_too_late(first, last) or wait_price * sums.find_gain(first, last) > one_more
        ):
            first += 1
        totals = (
            best[begin] + second_price * sums.bill(begin, last) + wait_price * sums.wait(begin, last)
            for begin in range(first, last + 1)
        )
        best.append(min(totals))
    return best[-1]


class _Sums:
    """Bill and waits of one start for the slots `first` to `last`."""

    def __init__(self, slots: Sequence[Slot], priors: Priors) -> None:
        self.overhead = priors.setup_seconds + priors.release_seconds
        self._checks = [slot.check for slot in slots]
        self._setup = priors.setup_seconds
        self._work = _sum_up(slot.work for slot in slots)
        self._audio = _sum_up(slot.audio for slot in slots)
        placed = list(zip(slots, self._work, strict=False))
        self._offset = _sum_up(slot.offset + slot.audio * before for slot, before in placed)
        self._latest = [slot.latest - before for slot, before in placed]

    def is_too_late(self, first: int, last: int) -> bool:
        latest = min(self._latest[first : last + 1]) + self._work[first]
        return self._checks[last] > latest + _TOLERANCE

    def bill(self, first: int, last: int) -> float:
        """Billed seconds."""
        return max(MINIMUM_BILLED_SECONDS, self.overhead + self._work[last + 1] - self._work[first])

    def wait(self, first: int, last: int) -> float:
        """Waiting of all chunks, in audio seconds times seconds."""
        begin = self._checks[last] + self._setup - self._work[first]
        audio = self._audio[last + 1] - self._audio[first]
        return audio * begin + self._offset[last + 1] - self._offset[first]

    def find_gain(self, first: int, last: int) -> float:
        """Least waiting that a separate start for the first slots saves.

        Any split is a lower bound, so the one at half of the time needs not be the best.
        """
        end = self._checks[last]
        half = bisect_right(self._checks, (self._checks[first] + end) / 2, first, last) - 1
        return (self._audio[half + 1] - self._audio[first]) * (end - self._checks[half])


def _sum_up(values: Iterable[float]) -> list[float]:
    """Running sums, from 0 on."""
    return list(accumulate(values, initial=0.0))
