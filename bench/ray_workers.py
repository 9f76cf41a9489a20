"""Throughput of 1, 2 and 4 workers on a Ray cluster, with an engine that sleeps: at least 0.9 of linear.

The cluster is this machine's processes, in a network of its own, and each worker has loaded its engine
before. Each number of workers gets the same work, shared evenly: 240 recordings of 2.2 s, for which the
engine sleeps 78 s. Time from the launches to the last exit record, and the speed as a part of so many times
one worker's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from support.ray_cluster import ENTER, INSIDE, PlayedCluster, await_true, make_environment
from support.ray_run import RealRun

COUNTS = (1, 2, 4)
RECORDINGS = 240


def main() -> None:
    if INSIDE in os.environ:
        run_inside(Path(os.environ[INSIDE]))
        return
    with TemporaryDirectory(prefix="ray-") as folder:
        argv = [*ENTER, sys.executable, "-m", "bench.ray_workers"]
        subprocess.run(argv, env=make_environment(Path(folder)), check=True)


def run_inside(folder: Path) -> None:
    cluster = PlayedCluster(folder)
    cluster.start()
    for _ in range(max(COUNTS)):
        cluster.add_node()
    machines = [RealRun(folder, f"run-1-{number}") for number in range(max(COUNTS))]
    numbers = iter(range(1_000))
    measure(machines, numbers, recordings=len(machines))
    spent = {count: measure(machines[:count], numbers, recordings=RECORDINGS) for count in COUNTS}
    for count, seconds in spent.items():
        print(f"{count} workers   {seconds:6.1f} s   {spent[1] / seconds / count:5.2f} of linear")


def measure(machines: list[RealRun], numbers: Iterator[int], *, recordings: int) -> float:
    """Seconds in which the machines transcribe so many recordings."""
    share = recordings // len(machines)
    work = {next(numbers): machine for machine in machines}
    manifests = {number: machine.store_manifest(number, share) for number, machine in work.items()}
    begin = time.perf_counter()
    for number, machine in work.items():
        machine.launch(manifests[number])
    for number, machine in work.items():
        await_true(partial(machine.has_ended, number), "it ends")
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
