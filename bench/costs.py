"""What one session of 100, 500 and 1,000 chunks of ten seconds costs, beside the original's own table.

`python -m bench.costs [--speed AUDIO_SECONDS_PER_SECOND] [--instance-type g4dn.xlarge]`. Prices are those of
the dated table that comes with batchscribe. A speed is a run's own where you give one (a report tells it:
audio seconds for each second of work after the model was loaded). Else those of other people and guesses are
taken, and named so: none of them was measured here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from batchscribe.adapters.aws.prices import load_packaged_prices
from batchscribe.core.decide.money import Rate, cost, units_per_dollar

CHUNK_SECONDS = 10.0
CHUNKS = (100, 500, 1000)
ORIGINAL = {100: (15 * 60.0, "$0.13"), 500: (3600.0, "$0.53"), 1000: (2 * 3600.0, "$1.05")}
"""Of its README: GPU time in seconds, and dollars. A hundred of its chunks are 15 to 20 minutes of audio."""


@dataclass(frozen=True)
class Speed:
    times: float
    """Audio seconds for each second of work."""
    source: str


OTHERS = (
    Speed(16, "published: large-v3 on a T4, file by file"),
    Speed(34, "published: small.en file by file, a CUDA GPU without a name"),
    Speed(80, "a guess: small.en on a T4, stitched and batched, the lower end"),
    Speed(150, "a guess: small.en on a T4, stitched and batched, the upper end"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--speed", type=float, nargs="*", default=[])
    parser.add_argument(
        "--overhead", type=float, default=180.0, help="billed seconds besides work: see below"
    )
    parser.add_argument("--instance-type", default="g4dn.xlarge")
    parser.add_argument("--region", default="us-east-1")
    wanted = parser.parse_args()
    rate = load_packaged_prices().find_rate(wanted.instance_type, wanted.region)
    assert rate is not None, f"no price is known of {wanted.instance_type} in {wanted.region}"
    speeds = [Speed(times, "yours") for times in wanted.speed] or list(OTHERS)
    price = f"${rate.per_hour.text(3)}/h ({rate.source}, as of {rate.as_of})"
    print(
        f"{wanted.instance_type}: {price}; besides work, {wanted.overhead:.0f} s are billed for the start of"
    )
    print("the machine, loading the model, and the release (the original says 2 to 3 minutes for its start)")
    _original()
    for speed in speeds:
        _ours(speed, rate, wanted.overhead)


def _original() -> None:
    print(f"\n{'the original, by its README':<34}{'billed':>10}{'cost':>9}{'audio/s':>9}")
    for chunks, (seconds, dollars) in ORIGINAL.items():
        times = chunks * CHUNK_SECONDS / seconds
        print(f"{chunks:>7} chunks{'':<20}{seconds / 60:>6.1f} min{dollars:>9}{times:>8.1f}x")


def _ours(speed: Speed, rate: Rate, overhead: float) -> None:
    print(f"\n{speed.times:g} times as fast as speech ({speed.source})")
    for chunks in CHUNKS:
        audio = chunks * CHUNK_SECONDS
        seconds = overhead + audio / speed.times
        amount = cost(rate, seconds)
        each = units_per_dollar(chunks, amount) or 0.0
        print(
            f"{chunks:>7} chunks{'':<20}{seconds / 60:>6.1f} min{'$' + amount.text(3):>9}"
            f"{audio / seconds:>8.1f}x{each:>9.0f} chunks for a dollar"
        )


if __name__ == "__main__":
    main()
