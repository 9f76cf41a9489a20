"""How well paid time is used: from the worker's start to its first window, and the engine's share after that.

A worker of its own process on bundled speech, four times over, with pocketsphinx (or `--engine NAME`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from batchscribe.core.run.manifest import ExitRecord, decode

COPIES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", default="pocketsphinx")
    parser.add_argument("--copies", type=int, default=COPIES)
    wanted = parser.parse_args()
    speech = Path(__file__).parents[1] / "src" / "batchscribe" / "demo" / "audio"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for copy in range(wanted.copies):
            shutil.copytree(speech, home / "bucket" / f"copy{copy}", copy_function=shutil.copyfile)
        env = {"BATCH_SOURCE": "./bucket", "BATCH_ENGINE": wanted.engine, "GPU_PROVIDER": "local"}
        done = subprocess.run(
            [sys.executable, "-m", "batchscribe", "run", "--json"],
            cwd=home,
            env=dict(os.environ) | env,
            capture_output=True,
            check=True,
        )
        (run,) = json.loads(done.stdout)["runs"]
        (place,) = home.glob("bucket/_batchscribe/runs/*/workers/0/exit.json")
        record = decode(place.read_bytes(), ExitRecord)
    timings, tally = record.timings, record.tally
    assert timings.loaded is not None
    assert timings.first_window is not None
    after_load = timings.elapsed - timings.loaded
    print(f"chunks {tally.done}, audio {tally.audio_seconds:.0f} s, engine {wanted.engine}")
    print(f"worker's start to model loaded  {timings.loaded:6.2f} s")
    print(f"worker's start to first window  {timings.first_window:6.2f} s")
    print(f"engine busy after load          {timings.busy / after_load:6.1%} of {after_load:.1f} s")
    print(f"engine starved                  {timings.starved / after_load:6.1%}")
    print(f"audio for each second of work   {tally.audio_seconds / after_load:6.2f}")
    print(f"start asked for to first window {run['performance']['setup']:6.2f} s")


if __name__ == "__main__":
    main()
