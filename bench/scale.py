"""What a scan of 1e6 to 1e9 keys costs: requests, dollars, time, by a simulation of its listing.

`python -m bench.scale [--cpu-us 11.3] [--latency-ms 40]`; docs/scale.md shows its output. It plays
`adapters/stores/ranges.py`: ranges of SPACING keys in STREAMS streams, read in key order, each with its own
latency, and new keys since the last listing. The CPU seconds are those that `bench.listing` measures.
The last column lists the ranges with new keys hourly, and everything once a day.
The prices are those of S3 Standard in us-east-1.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from batchscribe.adapters.stores.obstore_store import PAGE
from batchscribe.adapters.stores.ranges import SPACING, STREAMS

REQUEST_USD = 0.005 / 1000
HOURS = 730
"""Of a month."""
SLOW, SLOWER = 0.01, 10
"""One request in a hundred takes ten times as long."""
HOT, NEW = 0.01, 100
"""A part of the ranges gets nearly all new keys, about this many between two listings."""


@dataclass(frozen=True)
class Listing:
    requests: int
    wall: float
    cpu: float


def simulate(keys: int, *, streams: int, latency: float, cpu_of_key: float, seed: int = 1) -> Listing:
    """Plays one listing. A range starts when the range `streams` before it has been read."""
    chance = random.Random(seed)
    read: deque[float] = deque([0.0] * streams, maxlen=streams)
    requests, now = 0, 0.0
    for held in _sizes(keys, chance):
        now = max(now, read[0] + _wait(latency, chance)) + held * cpu_of_key
        pages = ceil(held / PAGE)
        now += sum(_wait(latency, chance) for _ in range(pages - 1))
        requests += pages
        read.append(now)
    return Listing(requests, now, keys * cpu_of_key)


def _sizes(keys: int, chance: random.Random) -> Iterator[int]:
    """Keys of each range, with the new ones."""
    for _ in range(ceil(keys / SPACING)):
        yield SPACING + (round(chance.expovariate(1 / NEW)) if chance.random() < HOT else 0)


def _wait(latency: float, chance: random.Random) -> float:
    return latency * (SLOWER if chance.random() < SLOW else chance.uniform(0.75, 1.25))


def _dollars(requests: float) -> str:
    return f"{requests * REQUEST_USD:,.2f}"


def show(latency: float, cpu_of_key: float) -> None:
    """Prints a scan's figures, and the dollars of a month's requests for three check intervals."""
    print(f"{STREAMS} streams, {latency * 1000:g} ms for a request, {cpu_of_key * 1e6:g} us of CPU for a key")
    _print_row(
        "keys", "requests", "USD/scan", "wall s", "CPU s", "1 stream s", "hourly", "6 hours", "daily", "hot"
    )
    for exponent in range(6, 10):
        keys = 10**exponent
        one = simulate(keys, streams=STREAMS, latency=latency, cpu_of_key=cpu_of_key)
        alone = keys / PAGE * latency + one.cpu
        scans_of_month = (HOURS, HOURS / 6, HOURS / 24, HOURS * (HOT + 1 / 24))
        _print_row(
            f"1e{exponent}",
            f"{one.requests:,}",
            _dollars(one.requests),
            *(f"{seconds:,.0f}" for seconds in (one.wall, one.cpu, alone)),
            *(_dollars(one.requests * scans) for scans in scans_of_month),
        )


def _print_row(*values: str) -> None:
    print("".join(f"{value:>11}" for value in values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cpu-us", type=float, default=11.3)
    parser.add_argument("--latency-ms", type=float, default=40.0)
    wanted = parser.parse_args()
    show(wanted.latency_ms / 1000, wanted.cpu_us / 1e6)


if __name__ == "__main__":
    main()
