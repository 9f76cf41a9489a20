"""Speech engines of this machine: speed by batch size, loading time, first window and memory.

`bench/gpu.sh [PYTHON]` runs it in at most 8 minutes, with the Python of an environment that `gpu setup` made
(on a GPU host `~/batchscribe/venv/bin/python`). Every engine that can run here, with each of its models that
is here; an engine without a model gets random weights of Whisper small's or Parakeet 0.6b's shape. On a GPU
Parakeet is measured in float32 and in float16. Windows of 30 s of bundled speech, in batches of 1 to 64; the
largest batch that fits the memory ends the series. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from batchscribe.adapters.engines.parakeet.half_precision import HALF, make_half
from batchscribe.adapters.engines.parakeet.models import model_folder
from batchscribe.adapters.engines.problems import not_installed
from batchscribe.adapters.machine import nvidia
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.engine import Engine
from batchscribe.errors import OutOfMemoryError
from batchscribe.wiring.engines import engine_factory, engine_reports

SECONDS = 30
SIZES = (1, 2, 4, 8, 16, 32, 64)
TEXTS = 4
"""Windows, at most, in which the words of two number formats are compared."""
FEWEST = 3.0
"""Seconds that each batch size is measured, at least once."""
SPEECH = files("batchscribe").joinpath("demo", "audio", "morning-walk")


@dataclass
class Measured:
    engine: str
    model: str
    device: str = ""
    load_seconds: float = 0.0
    first_window_seconds: float = 0.0
    """Of one window, after loading: kernels are compiled and libraries opened in it."""
    speed: dict[int, float] = field(default_factory=dict)
    """Batch size -> audio seconds per second."""
    memory_mb: dict[int, float] = field(default_factory=dict)
    """Batch size -> memory in use on the GPU, or of this process on a CPU."""
    words: list[str] = field(default_factory=list)
    """Of TEXTS windows."""

    @property
    def best(self) -> int:
        return max(self.speed, key=lambda size: self.speed[size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-bench.json"))
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--budget", type=float, default=420.0, help="seconds after which no series begins")
    wanted = parser.parse_args()
    end = time.monotonic() + wanted.budget
    speech, found = load_speech(), list[Measured]()
    print(f"{hardware()}, Python {platform.python_version()}")
    print(f"{'engine':<16}{'model':<28}{'load s':>7}{'first s':>8}  audio seconds per second, by batch size")
    with tempfile.TemporaryDirectory() as folder:
        for spec in list_specs(wanted.device, Path(folder)):
            if time.monotonic() > end:
                print(f"{spec.engine:<16}{Path(spec.model).name:<28}not measured: the time is over")
                continue
            found.append(measured := measure(spec, speech, end))
            print_row(measured)
            if spec.compute_type == HALF and len(found) > 1 and found[-2].model == spec.model:
                print_difference(found[-2], measured)
    document = {
        "hardware": hardware(),
        "measured": [asdict(one) | {"words": len(one.words)} for one in found],
    }
    wanted.json.write_text(json.dumps(document, indent=2) + "\n")


def print_row(found: Measured) -> None:
    speeds = "  ".join(f"{size}: {speed:.1f}" for size, speed in found.speed.items())
    print(f"{found.engine:<16}{Path(found.model).name:<28}", end="")
    print(f"{found.load_seconds:7.1f}{found.first_window_seconds:8.2f}  {speeds}", end="")
    print(f"  ({found.device}; {found.memory_mb[found.best]:.0f} MB at {found.best})", flush=True)


def print_difference(plain: Measured, half: Measured) -> None:
    same = SequenceMatcher(None, plain.words, half.words, autojunk=False).ratio()
    print(
        f"{'':<16}{100 * (1 - same):.1f} % of {len(plain.words)} words differ from those in float32",
        flush=True,
    )


def list_specs(device: str, folder: Path) -> Iterator[EngineSpec]:
    """Yields each engine that can run here with each model that is here, else with random weights."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    for report in engine_reports(lambda name: EngineSpec(engine=name, device=device)):
        here = [name for name, there in report.models.items() if there]
        if not report.models and report.usable:
            yield EngineSpec(engine=report.name, device=device)
        elif not here and report.name in RANDOM and not not_installed(*RANDOM[report.name][0]):
            here = [str(RANDOM[report.name][1](folder))]
        for model in here:
            yield from list_formats(EngineSpec(engine=report.name, model=model, device=device))


def list_formats(spec: EngineSpec) -> Iterator[EngineSpec]:
    """Yields Parakeet in float16, too, if there is a GPU."""
    yield spec
    if spec.engine == "parakeet" and spec.device != "cpu" and nvidia.count_usable():
        make_half(model_folder(spec))
        yield replace(spec, compute_type=HALF)


def build_whisper(folder: Path) -> Path:
    from bench.engine import build  # noqa: PLC0415 - needs more than a GPU host has

    return build(folder / "random-small", 12)[0]


def build_parakeet(folder: Path) -> Path:
    from support.fastconformer import PUBLISHED, build_model  # noqa: PLC0415 - needs onnx

    return build_model(folder / "random-0.6b", PUBLISHED)


RANDOM: dict[str, tuple[tuple[str, ...], Callable[[Path], Path]]] = {
    "faster-whisper": (("faster_whisper",), build_whisper),
    "parakeet": (("onnx_asr", "onnx"), build_parakeet),
}
"""Engine -> the packages that it needs, and the builder of a model with random weights."""


def measure(spec: EngineSpec, speech: npt.NDArray[np.float32], end: float) -> Measured:
    begun = time.monotonic()
    engine = engine_factory(spec.engine).load(spec)
    found = Measured(spec.engine, spec.model, engine.device, time.monotonic() - begun)
    found.first_window_seconds = timed(engine, windows(speech, 1))
    for size in SIZES:
        try:
            found.speed[size] = speed_of(engine, speech, size, end)
        except OutOfMemoryError:
            break
        found.memory_mb[size] = memory()
        if time.monotonic() > end or (engine.device.startswith("cpu") and size >= 4):
            break
    batch = windows(speech, min(TEXTS, found.best))
    found.words = [word for result in engine.transcribe(batch) for word in words_of(result)]
    return found


def words_of(result: Recognition) -> list[str]:
    return [word.word for segment in result.segments for word in segment.words]


def speed_of(engine: Engine, speech: npt.NDArray[np.float32], size: int, end: float) -> float:
    """Audio seconds per second; batches are repeated for FEWEST seconds."""
    seconds, batches = 0.0, 0
    while not batches or (seconds < FEWEST and time.monotonic() < end):
        seconds += timed(engine, windows(speech, size, first=batches * size))
        batches += 1
    return batches * size * SECONDS / seconds


def timed(engine: Engine, batch: Sequence[Window]) -> float:
    begun = time.monotonic()
    list(engine.transcribe(batch))
    return time.monotonic() - begun


def windows(speech: npt.NDArray[np.float32], count: int, first: int = 0) -> list[Window]:
    """Windows of different sound: each begins at another place of the speech."""
    long = SECONDS * SAMPLE_RATE
    starts = [(first + number) * 7 * SAMPLE_RATE % (len(speech) - long) for number in range(count)]
    return [Window(at, 0.0, speech[start : start + long], "en") for at, start in enumerate(starts)]


def load_speech() -> npt.NDArray[np.float32]:
    """Two minutes of bundled speech, 16 kHz mono."""
    with AudioDecoder() as decoder:
        parts = [decoder.decode_all(each.read_bytes(), max_seconds=600) for each in sorted_files()]
    whole = np.concatenate(
        [part.samples if part.samples.ndim == 1 else part.samples.mean(axis=1) for part in parts]
    )
    return np.tile(whole, max(1, 120 * SAMPLE_RATE // len(whole) + 1)).astype(np.float32)


def sorted_files() -> list[Any]:
    return sorted(SPEECH.iterdir(), key=lambda each: each.name)


def hardware() -> str:
    return _nvidia("name") or f"CPU {platform.processor() or platform.machine()}"


def memory() -> float:
    """Megabytes in use on the GPU; without one, of this process."""
    if used := _nvidia("memory.used"):
        return float(used.split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _nvidia(field_name: str) -> str:
    """What nvidia-smi reports; empty without a GPU."""
    query = ["nvidia-smi", f"--query-gpu={field_name}", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
        )
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


if __name__ == "__main__":
    main()
