"""What training minimises: words, time stamps, frames, and where the alignment heads look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import vocabulary as tokens
from .samples import IGNORED

BLUR, REACH = 0.6, 3
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
    *first, last = zip(made.looks, spans, strict=True)
    looking = torch.stack([*(_looking(*pair) for pair in first), _covering(*last)]).mean()
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
    chosen, inside = _chosen(look, spans)
    return -((chosen * inside).sum(-1) + 1e-4).log().mean()


def _covering(look: Tensor, spans: Tensor) -> Tensor:
    """How far the attention is from an even one over each row's span.

    One that is only inside may be all in the middle: a path would find words to begin anywhere between two.
    """
    chosen, inside = _chosen(look, spans)
    length = inside.sum(-1)
    return (-((chosen + 1e-5).log() * inside).sum(-1) / length - length.log()).mean()


def _chosen(look: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """The N rows that have a span: their attention [N, T], and 1 where it may be."""
    rows = spans[..., 1] > spans[..., 0]
    at = torch.arange(look.shape[-1])
    begins, ends = spans[rows].unbind(-1)
    return look[rows], ((at >= begins[:, None]) & (at < ends[:, None])).float()
