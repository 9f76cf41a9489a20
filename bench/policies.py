"""Bills and waits of each policy on six traces of arrivals: `python -m bench.policies`.

The traces last five weeks, and their seeds are fixed. Nothing is measured on a GPU: the price is AWS's list
price of a g6.xlarge in us-east-1, set-up takes 150 s, and an audio hour 49 s of work (a published speed of
faster-whisper on an L4, 73 times as fast as speech).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from batchscribe.adapters.aws.prices import load_packaged_prices
from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.simulation import PolicyResult, simulate

MONDAY = datetime(2026, 10, 5, tzinfo=UTC)
DAYS = 35
HOUR, DAY = 3600.0, 86_400.0
WEEKDAYS = tuple(day * DAY for day in range(DAYS) if day % 7 < 5)
CHUNK = 10.0
TYPE, REGION = "g6.xlarge", "us-east-1"
PRIORS = Priors(speed=73.0, setup_seconds=150.0, setup_p95_seconds=300.0, release_seconds=0.0)

HEAD = (
    "trace",
    "policy",
    "$ an audio hour",
    "starts",
    "mean wait",
    "p95",
    "longest",
    "late",
    "bill : least",
    "bill and waits : least",
)

Chunks = Iterator[tuple[float, float]]
"""(seconds after MONDAY, audio seconds)."""


def make_offer() -> Offer:
    rate = load_packaged_prices().find_rate(TYPE, REGION)
    assert rate is not None
    return Offer(provider="ec2", instance_type=TYPE, market=Market.ON_DEMAND, rate=rate, priors=PRIORS)


def make_trace(name: str, seed: int = 1) -> tuple[Arrival, ...]:
    chunks = TRACES[name](random.Random(seed))
    return tuple(sorted(Arrival(MONDAY + timedelta(seconds=at), audio) for at, audio in chunks))


def _upload_at_random(rng: random.Random) -> Chunks:
    """Two chunks an hour, day and night."""
    yield from _arrive(rng, 0.0, DAYS * DAY, 2 / HOUR)


def _upload_in_office_hours(rng: random.Random) -> Chunks:
    """300 chunks each weekday."""
    for day in WEEKDAYS:
        yield from _arrive(rng, day + 9 * HOUR, day + 17 * HOUR, 300 / (8 * HOUR))


def _arrive(rng: random.Random, begin: float, end: float, rate: float) -> Chunks:
    at = begin + rng.expovariate(rate)
    while at < end:
        yield at, CHUNK
        at += rng.expovariate(rate)


def _record_meetings(rng: random.Random) -> Chunks:
    """Two to five meetings each weekday, with a chunk each ten seconds."""
    for day in WEEKDAYS:
        for _ in range(rng.randint(2, 5)):
            begin, minutes = day + rng.uniform(9, 17) * HOUR, rng.choice((15, 30, 30, 60))
            yield from _record(begin, minutes)


def _record_stand_ups(rng: random.Random) -> Chunks:
    """A meeting of 12 to 16 minutes each weekday."""
    for day in WEEKDAYS:
        yield from _record(day + 9.5 * HOUR, rng.uniform(12, 16))


def _record(begin: float, minutes: float) -> Chunks:
    for number in range(int(minutes * 60 / CHUNK)):
        yield begin + number * CHUNK, CHUNK


def _upload_archives(rng: random.Random) -> Chunks:
    """Four uploads a day, of 8 to 3,000 chunks each (Pareto)."""
    for at, _audio in _arrive(rng, 0.0, DAYS * DAY, 4 / DAY):
        for _ in range(min(3000, int(8 * rng.paretovariate(0.9)))):
            yield at, CHUNK


def _upload_bursts(_rng: random.Random) -> Chunks:
    """Ten minutes of audio each six minutes, four hours a day: against a rule for quiet backlogs."""
    for day in WEEKDAYS:
        for number in range(40):
            yield day + 8 * HOUR + number * 360, 600.0


TRACES: dict[str, Callable[[random.Random], Chunks]] = {
    "at random": _upload_at_random,
    "office hours": _upload_in_office_hours,
    "meetings": _record_meetings,
    "stand-ups": _record_stand_ups,
    "archives": _upload_archives,
    "bursts": _upload_bursts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--max-wait-hours", type=float, default=24.0)
    parser.add_argument("--check-minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    policy = Policy(
        max_wait=timedelta(hours=wanted.max_wait_hours),
        check_interval=timedelta(minutes=wanted.check_minutes),
    )
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name in TRACES:
        for result in simulate(make_trace(name, wanted.seed), policy, [make_offer()]).policies:
            print(_format_row(name, result), flush=True)


def _format_row(trace: str, result: PolicyResult) -> str:
    waits = result.wait_hours
    cells = (
        trace,
        f"`{result.name}`",
        f"{result.dollars_per_audio_hour or 0:.3f}",
        str(result.starts),
        *(f"{hours:.1f} h" for hours in (waits.mean, waits.p95, waits.max)),
        str(result.late),
        *(f"{ratio:.2f}" for ratio in (result.deadline_ratio, result.linear_ratio)),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
