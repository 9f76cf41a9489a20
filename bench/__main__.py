"""`make bench`: every bench, one after the other."""

from __future__ import annotations

import sys

from bench import commands, leaks, scan, simulation, work

for bench, *arguments in ((commands,), (work,), (scan,), (simulation,), (leaks, "--weeks", "5")):
    print(f"\n== {bench.__name__}: {(bench.__doc__ or '').splitlines()[0]}", flush=True)
    sys.argv = [bench.__name__, *arguments]
    bench.main()
