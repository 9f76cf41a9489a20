"""Parakeet's encoder in float16 against float32: values, tokens, and what the conversion takes.

`python -m bench.half [--layers 24] [--windows 4]`: random weights of the published 0.6b shape, 30 s of
bundled speech per window, on the CPU, where float16 is no faster: `bench/gpu.sh` measures the speed on a GPU.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import onnx_asr

from batchscribe.adapters.engines.hub_models import beside
from batchscribe.adapters.engines.parakeet.batch_decoding import use_batches
from batchscribe.adapters.engines.parakeet.half_precision import HALF
from bench.gpu import load_speech, windows
from support.fastconformer import PUBLISHED, build_model

CONVERT = """
import pathlib, sys
from batchscribe.adapters.engines.parakeet.half_precision import make_half
make_half(pathlib.Path(sys.argv[1]))
print(pathlib.Path("/proc/self/status").read_text())
"""


@dataclass(frozen=True)
class Decoded:
    encodings: np.ndarray[Any, np.dtype[np.float32]]
    tokens: list[str]
    times: list[float]

    @property
    def emitted(self) -> list[tuple[str, float]]:
        return list(zip(self.tokens, self.times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=PUBLISHED.layers)
    parser.add_argument("--windows", type=int, default=4)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / "random", replace(PUBLISHED, layers=wanted.layers))
        status = subprocess.run(
            [sys.executable, "-c", CONVERT, model], check=True, capture_output=True, text=True
        ).stdout
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024**2
        sizes = [size(model / "encoder-model.onnx"), size(beside(model, HALF) / "encoder-model.onnx")]
        print(f"conversion: {used.ru_utime + used.ru_stime:.0f} s of CPU, {peak:.1f} GB of memory at most")
        print(f"encoder {sizes[0]:.2f} GB in float32, {sizes[1]:.2f} GB in float16", flush=True)
        plain, half = (decode(place, wanted.windows) for place in (model, beside(model, HALF)))
    show(plain, half)


def size(graph: Path) -> float:
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")) / 1e9


def decode(folder: Path, count: int) -> list[Decoded]:
    """What a model makes of each window."""
    model: Any = onnx_asr.load_model("nemo-conformer-tdt", folder, providers=["CPUExecutionProvider"])
    use_batches(model.asr)
    encode, seen = model.asr._encode, []

    def keep(*given: Any) -> Any:
        seen.append(encode(*given))
        return seen[-1]

    model.asr._encode = keep
    recogniser, found = model.with_timestamps(), []
    for window in windows(load_speech(), count):
        result = recogniser.recognize(window.audio)
        found.append(Decoded(seen.pop()[0], list(result.tokens), list(result.timestamps)))
    return found


def show(plain: list[Decoded], half: list[Decoded]) -> None:
    """After one other token, all later ones may differ: each depends on those before it."""
    print(f"{'window':<8}{'tokens':>7}{'same until':>12}{'edits':>7}{'difference, rms':>17}{'largest':>9}")
    for number, (one, two) in enumerate(zip(plain, half, strict=True)):
        spread = one.encodings.std()
        difference = np.abs(one.encodings - two.encodings) / spread
        words = jiwer.process_words(" ".join(one.tokens), " ".join(two.tokens))
        edits = words.substitutions + words.deletions + words.insertions
        pairs = enumerate(zip(one.emitted, two.emitted, strict=False))
        same = next((at for at, (mine, other) in pairs if mine != other), len(one.tokens))
        rms = np.sqrt((difference**2).mean())
        print(f"{number:<8}{len(one.tokens):>7}{same:>12}{edits:>7}{rms:>17.5f}{difference.max():>9.4f}")


if __name__ == "__main__":
    main()
