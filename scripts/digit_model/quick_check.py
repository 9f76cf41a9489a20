"""A look at a model in training: the real faster-whisper on a few scenes that training never sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel

from . import bank
from .scenes import Scene, Stage, Word
from .vocabulary import WORDS


def distance(wanted: list[str], said: list[str]) -> int:
    """Words to put in, take out or change."""
    row = list(range(len(said) + 1))
    for at, word in enumerate(wanted, 1):
        before, row[0] = row[0], at
        for column, other in enumerate(said, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (word != other)),
            )
    return row[-1]


def spoken(words: tuple[Word, ...]) -> list[str]:
    return [WORDS[digit] for digit, *_ in words]


class QuickCheck:
    """Twelve short scenes, three dense windows of 30 s, and one in which each digit comes in runs."""

    def __init__(self, path: Path) -> None:
        stage = Stage(*bank.load(path))
        random = np.random.default_rng(1_000_003)
        short = [stage.scene(random, float(random.uniform(3, 6)), dense=0.5) for _ in range(12)]
        dense = [stage.scene(random, 30.0, dense=1.0) for _ in range(3)]
        self._kinds = {"short": short, "dense": dense, "runs": [_runs(stage, random)]}

    def run(self, folder: Path) -> str:
        """Word error rates, greedy, with time stamps."""
        model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
        return ", ".join(f"{kind} {_rate(model, scenes):.3f}" for kind, scenes in self._kinds.items())


def _runs(stage: Stage, random: np.random.Generator) -> Scene:
    """The densest in repeated digits of some dense windows."""
    scenes = [stage.scene(random, 30.0, dense=1.0) for _ in range(20)]
    return max(
        scenes,
        key=lambda scene: sum(a[0] == b[0] for a, b in zip(scene.words, scene.words[1:], strict=False)),
    )


def _rate(model: WhisperModel, scenes: list[Scene]) -> float:
    wrong = total = 0
    for scene in scenes:
        segments, _ = model.transcribe(scene.sound, language="en", beam_size=1, temperature=0.0)
        said = " ".join(segment.text for segment in segments).split()
        wrong += distance(spoken(scene.words), said)
        total += len(scene.words)
    return wrong / max(1, total)
