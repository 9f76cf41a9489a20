"""Whisper's network in plain torch, small: B samples, T encoder frames, L decoder positions, D = 128 wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import vocabulary as tokens

WIDTH, HEADS, LAYERS, MELS = 128, 4, 3, 80
FRAMES, POSITIONS = 1500, 448
FRAME_CLASSES = 21
PLACED = 0
"""The decoder layer whose head 0 learns to look at the place of the input itself."""
GUIDED = (1, 2)
"""Decoder layers whose head 0 learns to look at the word that it predicts; the last is the alignment head."""


def sinusoids(length: int) -> Tensor:
    """[length, D]: Whisper's encoder positions; one row more serves the last time stamp."""
    half = WIDTH // 2
    rates = torch.exp(-torch.log(torch.tensor(10_000.0)) / (half - 1) * torch.arange(half))
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):
    """Multi-head attention as Whisper has it: no bias for the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, seen: Tensor, *, causal: bool = False) -> Tensor:
        """[B, L, D] that looks at [B, T, D]."""
        query = _heads(self.query(x))
        key, value = (_heads(part) for part in self._both(seen).chunk(2, dim=-1))
        made = _attended(query, key, value, causal=causal)
        return self.out(made.transpose(1, 2).flatten(2))

    def _both(self, seen: Tensor) -> Tensor:
        """Keys and values [B, T, 2 D] in one product: narrow ones are slow."""
        weight = torch.cat([self.key.weight, self.value.weight])
        return functional.linear(seen, weight, torch.cat([torch.zeros(WIDTH), self.value.bias]))

    def first_head(self, x: Tensor, seen: Tensor) -> Tensor:
        """[B, L, T]: where head 0 looks, each row summing to one."""
        width = WIDTH // HEADS
        query = functional.linear(x, self.query.weight[:width], self.query.bias[:width])
        key = functional.linear(seen, self.key.weight[:width])
        return (query @ key.transpose(1, 2) / width**0.5).float().softmax(-1)


def _attended(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """[B, heads, L, D / heads]; step by step where that is faster than the library's own, in bfloat16."""
    if causal or query.dtype != torch.bfloat16 or key.shape[2] > 600:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    scores = (query * (WIDTH // HEADS) ** -0.5) @ key.transpose(2, 3)
    return scores.softmax(-1, dtype=scores.dtype) @ value


def _heads(x: Tensor) -> Tensor:
    """[B, L, D] -> [B, heads, L, D / heads]."""
    return x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)


class Forward(nn.Module):
    """The two layers after attention, with their norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(functional.gelu(self.wide(self.norm(x))))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.forth = nn.LayerNorm(WIDTH), Attention(), Forward()

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        x = x + self.attention(normal, normal)
        return x + self.forth(x)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.cross_norm, self.cross = nn.LayerNorm(WIDTH), Attention()
        self.forth = Forward()

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The next [B, L, D], and what went into the cross attention."""
        normal = self.norm(x)
        x = x + self.attention(normal, normal, causal=True)
        asking = self.cross_norm(x)
        x = x + self.cross(asking, memory)
        return x + self.forth(x), asking


class Whisper(nn.Module):
    """Encoder, decoder, and a frame classifier that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))
        self.encoder_norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.positions = nn.Parameter(torch.randn(POSITIONS, WIDTH) * 0.02)
        self.plain = nn.Parameter(torch.randn(tokens.TIME_ZERO, WIDTH) * WIDTH**-0.5)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.frames = nn.Linear(WIDTH, FRAME_CLASSES)
        self.register_buffer("sinusoids", sinusoids(tokens.TIMESTAMPS), persistent=False)
        with torch.no_grad():
            self.time.weight.copy_(torch.eye(WIDTH) / 8 + 0.002 * torch.randn(WIDTH, WIDTH))

    def embeddings(self) -> Tensor:
        """[tokens, D], in and out: a time stamp's row is a learned map of the encoder's position there."""
        return torch.cat([self.plain, self.time(self.sinusoids)])

    def encode(self, features: Tensor, offsets: Tensor) -> Tensor:
        """[B, 80, 2T] log-mel, and the frame each window begins at -> [B, T, D]."""
        x = functional.gelu(self.conv1(features))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        at = offsets[:, None] + torch.arange(x.shape[1])
        x = x + self.sinusoids[at].to(x.dtype)
        for layer in self.encoder:
            x = layer(x)
        return self.encoder_norm(x)

    def decode(self, inputs: Tensor, positions: Tensor, memory: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, L] tokens -> [B, L, tokens] logits, and [B, L, T] of each head that is led."""
        table = self.embeddings().float()
        x = functional.embedding(inputs, table) + self.positions[positions]
        looks = []
        for number, layer in enumerate(self.decoder):
            x, asking = layer(x, memory)
            if number in (PLACED, *GUIDED):
                looks.append(layer.cross.first_head(asking, memory))
        return functional.linear(self.decoder_norm(x), table), looks
