"""Plays episodes and prints their results.

Exit code 1 if an invariant was broken.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

from simulation.episode import Result, play
from simulation.listening import listening
from simulation.summary import Summary, broken, sound
from simulation.weather import ACTORS, FLEETS, FOCI, Focus

SHARE = 100
"""Episodes of a process between two returns of results."""
COLLECTED = 50_000
"""New objects between two collections of garbage. Few of an episode's objects are in cycles, and the default
of 700 costs a fifth of its time."""
APART = 1_000_000
"""Distance between the first episodes of two seeds."""
NAMED = {**FOCI, **ACTORS, **FLEETS}
Played = tuple[list[Result], float]


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = _parse_arguments(arguments)
    if wanted.replay is not None:
        (result,), _seconds = played([wanted.replay], wanted.focus)
        _print_text(broken(result, wanted.focus) if result.violation else sound(result))
        return int(bool(result.violation))
    summary = Summary()
    first = wanted.seed * APART + wanted.skip
    for results, seconds in _play_shares(
        range(first, first + wanted.episodes), wanted.processes, wanted.focus
    ):
        summary.seconds += seconds
        for result in results:
            summary.add(result)
            if result.violation:
                _print_text(broken(result, wanted.focus))
    _print_text(summary.text())
    return int(bool(summary.violations))


def played(seeds: Sequence[int], focus: Focus | None = None) -> Played:
    """Plays the episodes of these seeds.

    Returns them and their processor time in seconds.
    """
    begun = os.times()
    with listening() as listener, _rare_collections():
        results = [play(seed, listener, focus) for seed in seeds]
    ended = os.times()
    return results, ended.user + ended.system - begun.user - begun.system


@contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(COLLECTED, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _play_shares(seeds: range, processes: int, focus: Focus) -> Iterator[Played]:
    play_share = partial(played, focus=focus)
    shares = [seeds[at : at + SHARE] for at in range(0, len(seeds), SHARE)]
    if processes == 1:
        yield from map(play_share, shares)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(play_share, shares)


def _parse_focus(text: str) -> Focus:
    """Parses `people=3,crash=0.01` or a name of FOCI or ACTORS."""
    if text in NAMED:
        return NAMED[text]
    pairs = (each.partition("=") for each in text.split(",") if each)
    return {name: float(level) if "." in level else int(level) for name, _, level in pairs}


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0, help="episodes of the seed that were played before")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="play the one episode of a printed seed")
    parser.add_argument(
        "--focus", type=_parse_focus, default={}, help=f"NAME=N,... or one of: {', '.join(NAMED)}"
    )
    return parser.parse_args(arguments)


def _print_text(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
