"""How long a person or a timer waits for a command: `--help`, and a tick that holds on 10,000 keys.

Each is a whole process, timed in turn with a bare Python, five times; medians, and the ratio.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
KEYS = 10_000
PER_SESSION = 50


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home / "bucket")
        (home / ".env").write_text(
            "BATCH_SOURCE=./bucket\nBATCH_THRESHOLD=1000000\nBATCH_MIN_AGE_MINUTES=0\n"
        )
        bare = [sys.executable, "-c", "pass"]
        for name, words in (("--help", ["--help"]), (f"tick, {KEYS} keys, held", ["tick"])):
            compare(name, [sys.executable, "-m", "batchscribe", *words], bare, home)


def fill(bucket: Path) -> None:
    """Half of the keys are audio, half are its transcripts."""
    for number in range(KEYS // 2):
        session = bucket / f"user/session_{number // PER_SESSION:04}"
        session.mkdir(parents=True, exist_ok=True)
        (session / f"chunk-{number % PER_SESSION:03}.webm").write_bytes(b"x" * 40)
        if number % PER_SESSION:
            (session / f"transcription-chunk-{number % PER_SESSION:03}.json").write_bytes(b"{}")


def compare(name: str, command: list[str], other: list[str], home: Path) -> None:
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(RUNS):
        for index, words in enumerate((command, other)):
            begin = time.perf_counter()
            done = subprocess.run(words, cwd=home, env=dict(os.environ), capture_output=True, check=False)
            seconds[index].append(time.perf_counter() - begin)
            assert done.returncode == 0, done.stderr.decode()
    ours, bare = (statistics.median(seconds[index]) for index in (0, 1))
    print(f"{name:<28} {ours:6.2f} s   bare python {bare:5.2f} s   ratio {ours / bare:5.1f}x")


if __name__ == "__main__":
    main()
