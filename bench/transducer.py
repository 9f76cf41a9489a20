"""Decoding loop of Parakeet's transducer: whole batches against onnx-asr's one utterance after the other.

A prediction network and a joint of the published 0.6b model's shape with random weights, 30 s of random
encoder output per utterance, one thread; processor seconds for the same 16 utterances, in turn, three times
over, medians. The tokens are compared, too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from batchscribe.adapters.engines.parakeet.batch_decoding import use_batches
from support.transducer import build_joint, encodings, load_transducer

VOCABULARY, HIDDEN, ENCODED = 1025, 640, 1024
UTTERANCES = 16
FRAMES = 375
"""30 s at 80 ms."""
SIZES = (1, 2, 4, 8, 16)
TURNS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = build_joint(Path(folder) / "joint.onnx", vocabulary=VOCABULARY, hidden=HIDDEN, encoded=ENCODED)
        plain, batched = (load_transducer(file, vocabulary=VOCABULARY) for _ in range(2))
    use_batches(batched)
    found, lengths = encodings(UTTERANCES, FRAMES, ENCODED)
    lengths[:] = FRAMES
    models = {"onnx-asr": (plain, UTTERANCES), **{f"batches of {size}": (batched, size) for size in SIZES}}
    spent: dict[str, list[float]] = {name: [] for name in models}
    said: dict[str, list[Any]] = {}
    for _ in range(TURNS):
        for name, (asr, size) in models.items():
            begun = time.process_time()
            said[name] = [
                one[:2]
                for at in range(0, UTTERANCES, size)
                for one in asr._decoding(found[at : at + size], lengths[at : at + size], need_logprobs=True)
            ]
            spent[name].append(time.process_time() - begun)
    first = statistics.median(spent["onnx-asr"])
    tokens = sum(len(tokens) for tokens, _ in said["onnx-asr"])
    print(f"{UTTERANCES} utterances of 30 s, {tokens} tokens")
    for name, turns in spent.items():
        same = sum(
            list(mine) == list(other) for mine, other in zip(said[name], said["onnx-asr"], strict=True)
        )
        cpu = statistics.median(turns)
        print(f"{name:<14} CPU {cpu:6.2f} s   {first / cpu:5.2f}x   same tokens {same} of {UTTERANCES}")


if __name__ == "__main__":
    main()
