"""What training minimises: words, time stamps, frames, and where the alignment heads look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import vocabulary as tokens
from .samples import IGNORED

BLUR, REACH = 1.5, 4
"""A time stamp some steps off is a little right: a bell of that deviation, cut at that reach."""
TIME_WEIGHT, FRAME_WEIGHT, LOOK_WEIGHT = 0.4, 0.5, 0.4


@dataclass(frozen=True)
class Losses:
    """Mean of each part, and the share of word tokens that were the likeliest."""

    text: Tensor
    time: Tensor
    frame: Tensor
    look: Tensor
    right: float

    def total(self) -> Tensor:
        return self.text + TIME_WEIGHT * self.time + FRAME_WEIGHT * self.frame + LOOK_WEIGHT * self.look


@dataclass(frozen=True)
class Made:
    """What the network says of a batch: [B, L, tokens], [B, L, T] of each led head, [B, T, classes]."""

    logits: Tensor
    looks: list[Tensor]
    frames: Tensor


def measure(made: Made, labels: Tensor, spans: list[Tensor], frames: Tensor) -> Losses:
    """Labels and frames are those of the batch, spans those of it that each look of `made` should find."""
    used = labels != IGNORED
    wanted = labels[used]
    likely = made.logits[used].log_softmax(-1)
    is_time = wanted >= tokens.TIME_ZERO
    text = functional.nll_loss(likely[~is_time], wanted[~is_time])
    right = (likely[~is_time].argmax(-1) == wanted[~is_time]).float().mean().item()
    frame = functional.cross_entropy(made.frames.flatten(0, 1), frames.flatten())
    looking = torch.stack([_looking(*pair) for pair in zip(made.looks, spans, strict=True)]).mean()
    return Losses(text, _blurred(likely[is_time], wanted[is_time]), frame, looking, right)


def _blurred(likely: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy [N, tokens] with a bell around each of [N] time stamps."""
    if not len(wanted):
        return likely.sum()
    away = torch.arange(-REACH, REACH + 1)
    near = wanted[:, None] + away
    weight = torch.exp(-(away**2) / (2 * BLUR**2)) * ((near >= tokens.TIME_ZERO) & (near < tokens.SIZE))
    weight = weight / weight.sum(-1, keepdim=True)
    return -(likely.gather(1, near.clamp(max=tokens.SIZE - 1)) * weight).sum(-1).mean()


def _looking(look: Tensor, spans: Tensor) -> Tensor:
    """-log of the attention [B, L, T] inside each row's span, over the rows that have one."""
    rows = spans[..., 1] > spans[..., 0]
    at = torch.arange(look.shape[-1])
    chosen = spans[rows]
    inside = (at >= chosen[:, :1]) & (at < chosen[:, 1:])
    return -((look[rows] * inside).sum(-1) + 1e-4).log().mean()
