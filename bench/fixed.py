"""Runs a program in which Whisper says three tokens for each second of sound, whatever it hears.

`python bench/fixed.py COUNTS EOT STAMPS PROGRAM...`: PROGRAM is a module's name or a script's path, with
its words. Weights at random say as much as they like; a real model says about as much as is said. So
CTranslate2 is told, for each window, how long its text is, by how many frames of it are sound and not
padding: the end of the text (the token numbered EOT) is forbidden, and the text ends where its length is
reached, with the time stamp of the window's end as Whisper does it (STAMPS is the first one's number). A
batch is as long as its longest window. COUNTS is written at the end. Nothing of this repository is imported:
other projects run in it.
"""

from __future__ import annotations

import atexit
import json
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import numpy as np

TOKENS_PER_SECOND = 3.0
FRAMES_PER_SECOND = 100
STAMPS_PER_SECOND = 50
TEST_SECONDS = 2.0
"""A shorter window is a self-test, and belongs to loading."""


class Fixed:
    """Stands before a model's `encode` and `generate`, and counts what goes through them."""

    def __init__(self, model: Any, end_of_text: int, stamps: int) -> None:
        self._encode, self._generate = model.encode, model.generate
        self._end_of_text, self._stamps = end_of_text, stamps
        self._seconds = [0.0]
        self.counts: dict[str, float] = {"windows": 0, "seconds": 0.0, "tokens": 0}
        self._begun = time.perf_counter()

    def encode(self, model: Any, features: Any, *more: Any, **named: Any) -> Any:
        """What is generated next is generated from this."""
        heard = np.array(features)
        frames = (np.abs(heard).max(axis=1) > 0).sum(axis=1)
        self._seconds = [float(count) / FRAMES_PER_SECOND for count in frames]
        if "cpu_before" not in self.counts and sum(self._seconds) > TEST_SECONDS:
            self.counts |= {"cpu_before": used(), "wall_before": time.perf_counter() - self._begun}
        self.counts["windows"] += len(frames)
        self.counts["seconds"] += sum(self._seconds)
        return self._encode(model, features, *more, **named)

    def generate(self, model: Any, features: Any, prompts: Any, **named: Any) -> Any:
        """CTranslate2 gives a text half of `max_length`."""
        length = max(1, round(TOKENS_PER_SECOND * max(self._seconds)))
        named["max_length"] = 2 * max(length, len(prompts[0]))
        unwanted = list(named.get("suppress_tokens") or ())
        if self._end_of_text in unwanted:
            # Whoever forbids it by himself measures the memory that a full window takes: that is loading.
            self.counts.pop("cpu_before", None)
        named["suppress_tokens"] = [*unwanted, self._end_of_text]
        found = self._generate(model, features, prompts, **named)
        self.counts["tokens"] += sum(len(result.sequences_ids[0]) for result in found)
        stamped = prompts[0][-1] != self._stamps - 1
        return list(map(self._ended, found, self._seconds)) if stamped else found

    def _ended(self, result: Any, seconds: float) -> Any:
        tokens = [*result.sequences_ids[0][:-1], self._stamps + round(seconds * STAMPS_PER_SECOND)]
        return SimpleNamespace(
            sequences_ids=[tokens], scores=result.scores, no_speech_prob=result.no_speech_prob
        )


def _method(act: Callable[..., Any]) -> Callable[..., Any]:
    """A function, which a class hands its instances to; a bound method it would not."""

    def method(model: Any, *given: Any, **named: Any) -> Any:
        return act(model, *given, **named)

    return method


def used() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def main() -> None:
    counts, end_of_text, stamps, program, *_ = sys.argv[1:]
    model: Any = ctranslate2.models.Whisper
    fixed = Fixed(model, int(end_of_text), int(stamps))
    model.encode, model.generate = _method(fixed.encode), _method(fixed.generate)
    atexit.register(lambda: Path(counts).write_text(json.dumps(fixed.counts)))
    sys.argv = sys.argv[4:]
    if Path(program).is_file():
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = ""
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
