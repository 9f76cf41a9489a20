"""`make bench`: every bench, one after the other."""

from __future__ import annotations

import sys

from bench import (
    commands,
    engine,
    leaks,
    listing,
    memory,
    reader,
    scale,
    scan,
    simulation,
    start,
    words,
    work,
)

EVERY = (
    (commands,),
    (work,),
    (start,),
    (scan,),
    (listing, "--keys", "200000"),
    (scale,),
    (simulation,),
    (reader, "--sessions", "2000", "--chunks", "1200", "--requests", "200"),
    (leaks, "--weeks", "5"),
    (words, "--words", "300"),
    (engine,),
    (memory,),
)

for bench, *arguments in EVERY:
    print(f"\n== {bench.__name__}: {(bench.__doc__ or '').splitlines()[0]}", flush=True)
    sys.argv = [bench.__name__, *arguments]
    bench.main()
