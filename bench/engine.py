"""How fast one Whisper model works on the same chunks, ours and others side by side in one run.

`python -m bench.engine [--chunks 24] [--device cpu]`: (a) faster-whisper's WhisperModel, one file at a time;
(b) its BatchedInferencePipeline, one file at a time; (c) whisper-ctranslate2 on all files, in a virtual
environment of its own; (d) our worker on a folder. Audio seconds for each second of CPU (user and system, of
the whole process and its children); with `--device cuda`, for each second on the wall.

The model has random weights and the shape of Whisper small.en: 12 + 12 layers of width 768 with 12 heads,
51,864 tokens. What is fixed, for all four alike (bench/fixed.py): each window's text has three tokens for
each second of its sound. The beam is 5 wide, words have times, one thread; whether to look for speech first
is left as each does it by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import SAMPLE_RATE
from bench import speech
from bench.bucket import Bucket
from bench.syllables import syllables
from support import whisper_model

HERE = Path(__file__).parent
CHUNK_SECONDS = 10.0
WORDS_PER_SECOND = 2.2
"""Flite's; some more are made than needed."""
OTHER = "whisper-ctranslate2"
BATCH = 16


@dataclass(frozen=True)
class Setup:
    """What all four have in common."""

    files: list[Path]
    seconds: float
    model: Path
    tokens: dict[str, int]
    """The numbers of the special ones."""
    device: str
    kind: str
    home: Path

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }


@dataclass(frozen=True)
class Took:
    cpu: float
    wall: float
    counts: Mapping[str, float]

    def all(self, what: str) -> float:
        """Seconds of `cpu` or on the `wall`."""
        return self.cpu if what == "cpu" else self.wall

    def after(self, what: str) -> float:
        """Without what came before the first window: the start, and loading the model."""
        return self.all(what) - self.counts[f"{what}_before"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compute-type", default="", help="int8 on a CPU, float16 on a GPU")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tools", type=Path, default=Path(tempfile.gettempdir()) / "batchscribe-bench-tools")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setup, bucket = _setup(Path(folder), wanted)
        ways: dict[str, Callable[[], Took]] = {
            "(a) faster-whisper, file by file": partial(one_by_one, setup, 0),
            "(b) faster-whisper, batched": partial(one_by_one, setup, BATCH),
        }
        if (other := installed(wanted.tools)) is not None:
            ways[f"(c) {OTHER}"] = partial(theirs, setup, other)
        else:
            print(f"(c) {OTHER}: skipped, it cannot be installed here")
        ways["(d) batchscribe"] = partial(ours, setup, bucket)
        show(setup, ways)


def _setup(home: Path, wanted: argparse.Namespace) -> tuple[Setup, Bucket]:
    model, tokens = build(home / "model", wanted.layers)
    seconds = wanted.chunks * CHUNK_SECONDS
    audio = speech.restless(round(seconds * WORDS_PER_SECOND) + 20).samples[: round(seconds * SAMPLE_RATE)]
    bucket = Bucket(home / "bucket")
    bucket.put_session("s", speech.files(audio, "webm", CHUNK_SECONDS, 0), "webm")
    kind = wanted.compute_type or ("int8" if wanted.device == "cpu" else "float16")
    files = sorted((home / "bucket" / "s").iterdir())
    return Setup(files, len(audio) / SAMPLE_RATE, model, tokens, wanted.device, kind, home), bucket


def build(folder: Path, layers: int) -> tuple[Path, dict[str, int]]:
    """The model, and the numbers of its special tokens."""
    shape = whisper_model.Shape(
        width=768, heads=12, layers=layers, words=syllables(400), vocabulary=51_864, places=1000.0
    )
    whisper_model.build(folder, shape=shape)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return folder, {token["content"]: token["id"] for token in tokens}


def one_by_one(setup: Setup, batch: int) -> Took:
    program = [HERE / "one_by_one.py", setup.model, setup.device, setup.kind, batch, *setup.files]
    return measured(setup, Path(sys.executable), program)


def theirs(setup: Setup, python: Path) -> Took:
    options = {
        "model_directory": setup.model,
        "device": setup.device,
        "compute_type": setup.kind,
        "threads": 1,
        "language": "en",
        "word_timestamps": True,
        "output_format": "json",
        "output_dir": setup.home / "theirs",
        "local_files_only": True,
        "verbose": False,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return measured(setup, python, [python.parent / OTHER, *setup.files, *words], PYTHONPATH="")


def ours(setup: Setup, bucket: Bucket) -> Took:
    spec = EngineSpec(
        engine="faster-whisper",
        model=str(setup.model),
        device=setup.device,
        compute_type=setup.kind,
        language="en",
    )
    manifest = bucket.manifest(spec)
    took = measured(setup, Path(sys.executable), ["batchscribe", "worker", bucket.write(manifest)])
    record = bucket.said(manifest)
    assert record.tally.done == len(setup.files), record
    print(f"    our worker's flags: {record.flags}")
    return took


def measured(setup: Setup, python: Path, program: Sequence[Any], **changes: str) -> Took:
    """What the program took with all of its children."""
    counts = setup.home / "counts.json"
    special = (setup.tokens["<|endoftext|>"], setup.tokens["<|notimestamps|>"] + 1)
    words = list(map(str, (python, HERE / "fixed.py", counts, *special, *program)))
    cpu, begin = used(), time.perf_counter()
    subprocess.run(words, env=setup.environment() | changes, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - begin
    return Took(used() - cpu, wall, json.loads(counts.read_text()))


def used() -> float:
    """CPU seconds of all children that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def installed(tools: Path) -> Path | None:
    """The Python of an environment with the other program in it, made where it is not there yet."""
    python = tools / OTHER / "bin" / "python"
    if (python.parent / OTHER).exists():
        return python
    try:
        venv.create(tools / OTHER, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", OTHER],
            check=True,
            capture_output=True,
            timeout=900,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return python if (python.parent / OTHER).exists() else None


def show(setup: Setup, ways: Mapping[str, Callable[[], Took]]) -> None:
    print(
        f"{len(setup.files)} chunks, {setup.seconds:.0f} s of audio, {setup.device}, {setup.kind}, 1 thread"
    )
    found = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip() or "nothing").splitlines()[-1]
            print(f"    {name}: left out, it ended with {error.returncode} and said: {last}", flush=True)
        else:
            print(f"    {name} took {found[name].wall:.0f} s", flush=True)
    table(setup.seconds, found, "wall" if setup.device == "cuda" else "cpu")


def table(seconds: float, found: Mapping[str, Took], what: str) -> None:
    """Ratios are of speeds: of all that a run takes, and of what each window more will take."""
    others = [took for name, took in found.items() if "(d)" not in name]
    whole, later = (min(part(took, what) for took in others) for part in (Took.all, Took.after))
    print(f"{'':<34}{what + ' s':>8}{'to first':>9}{'audio/s':>9}{'after':>8}{'windows':>9}", end="")
    print(f"{'sound s':>9}{'tokens':>8}{'to best other':>15}{'after':>8}")
    for name, took in found.items():
        counts = took.counts
        print(
            f"{name:<34}{took.all(what):>8.1f}{counts[what + '_before']:>9.1f}"
            f"{seconds / took.all(what):>9.2f}{seconds / took.after(what):>8.2f}"
            f"{counts['windows']:>9.0f}{counts['seconds']:>9.0f}{counts['tokens']:>8.0f}"
            f"{whole / took.all(what):>14.2f}x{later / took.after(what):>7.2f}x"
        )


if __name__ == "__main__":
    main()
