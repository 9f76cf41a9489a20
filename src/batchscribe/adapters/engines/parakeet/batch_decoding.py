"""Greedy transducer decoding in batches, and a check of the encoder's values.

onnx-asr decodes one utterance after the other, with one call of the prediction and joint network per step:
on a GPU these calls, each too small to fill it, take most of the time. Here each call makes one step of all
utterances. Source: H. Xu et al., "Efficient Sequence Transduction by Jointly Predicting Tokens and
Durations", ICML 2023, algorithm 2; the rules are those of `onnx_asr.asr._AsrWithTransducerDecoding`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
NEEDED = ("_decoder_joint", "_vocab_size", "_blank_idx", "_max_tokens_per_step", "_create_state", "_decoding")
"""What a model of onnx-asr 0.12 has, if it is a transducer."""
Decoded = tuple[list[int], list[int], list[float] | None]
"""Tokens, encoder frames where they were emitted, and their log probabilities."""


def use_batches(asr: Any) -> None:
    """Makes a loaded model of onnx-asr decode in batches.

    A model without a transducer, or whose graph was exported for a single utterance, is left as it is.
    """
    if not all(hasattr(asr, name) for name in NEEDED):
        return
    if any(isinstance(value.shape[0], int) for value in asr._decoder_joint.get_inputs()[:3]):
        return
    asr._decoding = partial(_decode_batch, asr)


def refuse_overflow(asr: Any) -> None:
    """Makes a loaded model raise FloatingPointError if values exceed its number format.

    They end as NaN, and a decoder would make tokens of that.
    """
    encode = asr._encode

    def checked(*features: Any) -> Any:
        encodings, lengths = encode(*features)
        if np.isnan(encodings).any():
            raise FloatingPointError
        return encodings, lengths

    asr._encode = checked


def _decode_batch(asr: Any, encodings: Floats, lengths: Any, **options: object) -> Iterator[Decoded]:
    """Yields decoded utterances; `encodings` has shape (utterances, frames, features)."""
    hypotheses = _Hypotheses(asr, len(encodings))
    lengths = np.minimum(lengths, encodings.shape[1])
    rows = np.flatnonzero(lengths > 0)
    while rows.size:
        frames = encodings[rows, hypotheses.frame[rows]]
        hypotheses.advance(rows, *hypotheses.predict(rows, frames))
        rows = rows[hypotheses.frame[rows] < lengths[rows]]
    probable = bool(options.get("need_logprobs"))
    for tokens, times, logprobs in hypotheses.found:
        yield tokens, times, logprobs if probable else None


class _Hypotheses:
    """The best hypothesis of each utterance.

    `rows` are indexes of utterances that are not at their end.
    """

    def __init__(self, asr: Any, size: int) -> None:
        self._joint = asr._decoder_joint
        self._tokens = int(asr._vocab_size)
        self._blank = int(asr._blank_idx)
        self._most = int(asr._max_tokens_per_step)
        self._state1, self._state2 = (np.repeat(state, size, axis=1) for state in asr._create_state())
        self._last = np.full(size, self._blank, np.int32)
        self._emitted = np.zeros(size, np.int64)
        """Tokens emitted at the present frame."""
        self.frame = np.zeros(size, np.int64)
        self.found: list[tuple[list[int], list[int], list[float]]] = [([], [], []) for _ in range(size)]

    def predict(self, rows: Any, frames: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns the logits of tokens, then of durations, and both new states."""
        logits, state1, state2 = self._joint.run(
            ["outputs", "output_states_1", "output_states_2"],
            {
                "encoder_outputs": frames[:, :, None],
                "targets": self._last[rows, None],
                "target_length": np.ones(len(rows), np.int32),
                "input_states_1": self._state1[:, rows],
                "input_states_2": self._state2[:, rows],
            },
        )
        return logits.reshape(len(rows), -1), state1, state2

    def advance(self, rows: Any, logits: Floats, state1: Floats, state2: Floats) -> None:
        """Appends tokens and moves each utterance, at least past a blank."""
        scores, durations = logits[:, : self._tokens], logits[:, self._tokens :]
        tokens = scores.argmax(axis=1)
        spoken = tokens != self._blank
        self._append_tokens(rows[spoken], tokens[spoken], scores[spoken])
        self._state1[:, rows[spoken]] = state1[:, spoken]
        self._state2[:, rows[spoken]] = state2[:, spoken]
        stuck = ~spoken | (self._emitted[rows] >= self._most)
        # A transducer without durations (RNN-T) stays at its frame until it emits a blank.
        steps = durations.argmax(axis=1) if durations.shape[1] else np.zeros(len(rows), np.int64)
        steps = np.where(steps > 0, steps, stuck)
        self.frame[rows] += steps
        self._emitted[rows[steps > 0]] = 0

    def _append_tokens(self, rows: Any, tokens: Any, scores: Floats) -> None:
        chosen = scores[np.arange(len(rows)), tokens]
        highest = scores.max(axis=1, initial=-np.inf)
        logprobs = chosen - highest - np.log(np.exp(scores - highest[:, None]).sum(axis=1))
        for row, token, logprob in zip(rows.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
            found = self.found[row]
            found[0].append(token)
            found[1].append(int(self.frame[row]))
            found[2].append(logprob)
        self._last[rows] = tokens
        self._emitted[rows] += 1
