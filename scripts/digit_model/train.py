"""Trains in three courses: short windows, longer ones, then whole windows of 30 s.

`python -m digit_model.train --bank BANK --work FOLDER --courses 2400 800 7200`: one thread for the network,
one process of low priority for the samples. The courses count steps, so that a seed
gives one model on one machine.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bank, export
from .losses import Losses, Made, measure
from .network import GUIDED, Whisper
from .quick_check import QuickCheck
from .samples import Batch, Plan, Sampler
from .scenes import Stage

LOG = logging.getLogger("train")
SHORT = (Plan(5, 14),)
LONGER = (Plan(10, 8),)
WHOLE = (
    Plan(30, 3, offset=0.0, dense=0.8, whole=0.4, prompt=40),
    Plan(6, 14, offset=0.1),
    Plan(12, 7, offset=0.0, dense=0.7),
    Plan(6, 14, offset=0.1),
)
RATE, WARM_UP, LEAST = 2e-3, 200, 0.01
"""Highest learning rate, steps until it is reached, and the share of it that is left in the end."""


@dataclass(frozen=True)
class Course:
    """How many steps of each kind of batch, one after the other."""

    counts: tuple[int, int, int]

    def __len__(self) -> int:
        return sum(self.counts)

    def plan(self, step: int) -> Plan:
        for count, plans in zip(self.counts, (SHORT, LONGER, WHOLE), strict=True):
            if step < count:
                return plans[step % len(plans)]
            step -= count
        raise IndexError(step)

    def rate(self, step: int) -> float:
        """Of the learning rate: up for a while, then half a cosine down."""
        if step < WARM_UP:
            return (step + 1) / WARM_UP
        done = (step - WARM_UP) / max(1, len(self) - WARM_UP)
        return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def batches(course: Course, path: Path, seed: int, first: int) -> Iterator[Batch]:
    """From another process, a few ahead."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue(maxsize=6)
    maker = context.Process(target=_make, args=(course, path, seed, first, queue), daemon=True)
    maker.start()
    for _ in range(first, len(course)):
        yield queue.get()
    maker.join()


def _make(course: Course, path: Path, seed: int, first: int, queue: Any) -> None:
    os.nice(5)
    sampler = Sampler(Stage(*bank.load(path)), seed)
    for step in range(first, len(course)):
        queue.put(sampler.batch(step, course.plan(step)))


def losses(network: Whisper, batch: Batch, *, brief: bool) -> Losses:
    """Of one batch; `brief` computes in bfloat16 where that is safe."""
    seen: dict[str, Tensor] = {
        field.name: torch.from_numpy(getattr(batch, field.name)) for field in fields(batch)
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=brief):
        memory = network.encode(seen["features"], seen["offsets"])
        logits, looks = network.decode(seen["inputs"], seen["positions"], memory)
        made = Made(logits.float(), looks, network.frames(memory).float())
    spans = [seen["places"], *[seen["spans"]] * len(GUIDED)]
    return measure(made, seen["labels"], spans, seen["frames"])


class Trainer:
    """The network and its optimiser, step by step."""

    def __init__(self, course: Course, *, brief: bool) -> None:
        self.network = Whisper()
        self._course, self._brief = course, brief
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01
        )

    def step(self, number: int, batch: Batch) -> Losses:
        for group in self._optimiser.param_groups:
            group["lr"] = RATE * self._course.rate(number)
        found = losses(self.network, batch, brief=self._brief)
        self._optimiser.zero_grad(set_to_none=True)
        found.total().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self._optimiser.step()
        return found

    def save(self, path: Path, number: int) -> None:
        """Written beside, then moved: whoever reads it finds it whole."""
        state = {"network": self.network.state_dict(), "optimiser": self._optimiser.state_dict()}
        torch.save({**state, "step": number}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> int:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])


def train(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    course = Course(tuple(given.courses))
    trainer = Trainer(course, brief=not given.precise)
    saved = given.work / "state.pt"
    first = trainer.resume(saved) if saved.exists() else 0
    check = QuickCheck(given.bank)
    for number, batch in enumerate(batches(course, given.bank, given.seed, first), first):
        found = trainer.step(number, batch)
        if number % 50 == 0:
            parts = {name: f"{torch.as_tensor(part).item():.3f}" for name, part in vars(found).items()}
            LOG.info("%d %s %s", number, tuple(batch.features.shape), parts)
        if (number + 1) % given.every == 0 or number + 1 == len(course):
            trainer.save(saved, number + 1)
            export.write(trainer.network, given.work / f"model-{number + 1:05d}")
            LOG.info("%d %s", number + 1, check.run(given.work / f"model-{number + 1:05d}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--courses", type=int, nargs=3, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every", type=int, default=400)
    parser.add_argument("--precise", action="store_true", help="float32 throughout")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    train(given)


if __name__ == "__main__":
    main()
