"""How fast the simulator is on one core: passes of the controller and steps at its seams, a second.

A pass is one call of the production's `tick()`, `reconcile()` or `Watchdog.watch()`. Most find nothing to do:
that is what a schedule is like, and why the steps are given beside it.
"""

from __future__ import annotations

import argparse

from simulation.__main__ import played
from simulation.summary import Summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--episodes", type=int, default=300)
    wanted = parser.parse_args()
    summary = Summary()
    results, summary.seconds = played(range(wanted.episodes))
    for result in results:
        summary.add(result)
    passes = summary.ticks + summary.reconciles + summary.watches
    print(f"episodes                 {summary.episodes}, {summary.seconds:.1f} s of processor time")
    print(f"passes a second          {passes / summary.seconds:8.0f}")
    print(f"  of them, tick()        {summary.ticks / summary.seconds:8.0f}")
    print(f"steps a second           {summary.steps / summary.seconds:8.0f}")
    print(f"simulated hours a second {summary.hours / summary.seconds:8.0f}")


if __name__ == "__main__":
    main()
