"""A real Whisper model, as small as one can be: random weights, CTranslate2's own format, no torch.

It says words from a list of ten, at random but always the same: the code around a model is what is
tested with it, not what it hears.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import WhisperSpec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BEFORE_LANGUAGES = ("<|endoftext|>", "<|startoftranscript|>")
AFTER_LANGUAGES = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
TIMESTAMPS = 1501
MELS = 80


@dataclass(frozen=True)
class Shape:
    """How large a model is. `places` is the weight of a token's place beside that of what was heard: the
    larger it is, the less a model says the same again and again.
    """

    width: int = 32
    heads: int = 2
    layers: int = 2
    words: Sequence[str] = WORDS
    vocabulary: int = 0
    """At least so many tokens; those beyond the words are never said."""
    places: float = 1.0

    @property
    def spread(self) -> float:
        """Of the weights: sums of them are of the same size, however wide the model is."""
        return 0.3 * float(np.sqrt(32 / self.width))


TINY = Shape()


def build(folder: Path, *, seed: int = 4, shape: Shape = TINY, languages: tuple[str, ...] = ("en",)) -> Path:
    """Writes the model into an empty folder; it knows these languages alike."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(shape, languages)
    tokenizer.save(str(folder / "tokenizer.json"))
    by_number = {number: name for name, number in tokenizer.get_vocab().items()}
    names = [by_number[number] for number in sorted(by_number)]
    names += [f"<|{step * 0.02:.2f}|>" for step in range(TIMESTAMPS)]
    spec = WhisperSpec(shape.layers, shape.heads, shape.layers, shape.heads)
    _fill(spec, names, np.random.default_rng(seed), shape)
    spec.register_vocabulary(names)
    _configure(spec.config, names, languages)
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
    features = {"feature_size": MELS, "chunk_length": 30, "n_fft": 400, "hop_length": 160}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    return folder


def _tokenizer(shape: Shape, languages: tuple[str, ...]) -> Tokenizer:
    """Bytes, then each word as one token that begins with its blank, then tokens that only take up room,
    then the specials in Whisper's order.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in shape.words:
        made = "Ġ"
        for letter in word:
            if (made, letter) not in merges:
                merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    if len(languages) > 1:
        # By this token, and by nothing else, CTranslate2 knows a model of many languages.
        vocabulary[""] = len(vocabulary)
    specials = (*BEFORE_LANGUAGES, *(f"<|{language}|>" for language in languages), *AFTER_LANGUAGES)
    for number in range(len(vocabulary), shape.vocabulary - len(specials) - TIMESTAMPS):
        vocabulary[f"Ġ{number}"] = number
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


def _configure(config: Any, names: list[str], languages: tuple[str, ...]) -> None:
    config.suppress_ids = []
    config.suppress_ids_begin = [names.index("Ġ"), names.index("<|endoftext|>")]
    config.alignment_heads = [(1, 0), (1, 1)]
    config.lang_ids = [names.index(f"<|{language}|>") for language in languages]


def _fill(spec: Any, names: list[str], random: np.random.Generator, shape: Shape) -> None:
    width = shape.width

    def weights(*size: int) -> Any:
        return random.normal(0, shape.spread, size).astype(np.float32)

    def linear(layer: Any, outputs: int, inputs: int) -> None:
        layer.weight, layer.bias = weights(outputs, inputs), weights(outputs)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    def attention(layer: Any, *, crossed: bool = False) -> None:
        norm(layer.layer_norm)
        for part, outputs in zip(layer.linear, (1, 2, 1) if crossed else (3, 1), strict=True):
            linear(part, outputs * width, width)

    def forward(layer: Any) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * width, width)
        linear(layer.linear_1, width, 4 * width)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = weights(width, MELS, 3), weights(width)
    encoder.conv2.weight, encoder.conv2.bias = weights(width, width, 3), weights(width)
    encoder.position_encodings.encodings = weights(1500, width)
    decoder.position_encodings.encodings = shape.places * weights(448, width)
    decoder.embeddings.weight = weights(len(names), width)
    norm(encoder.layer_norm)
    norm(decoder.layer_norm)
    for layer in encoder.layer:
        attention(layer.self_attention)
        forward(layer.ffn)
    for layer in decoder.layer:
        attention(layer.self_attention)
        attention(layer.attention, crossed=True)
        forward(layer.ffn)
    # Strong opinions: a model in doubt is asked again and again, at ever higher temperatures.
    decoder.projection.weight = 4 * weights(len(names), width)
    decoder.projection.bias = _preferences(names, shape.words)


def _preferences(names: list[str], words: Sequence[str]) -> Any:
    """How much the model likes each token: whole words, time stamps, and now and then the end."""
    liked = np.full(len(names), -90.0, np.float32)
    for word in words:
        liked[names.index("Ġ" + word)] = 3.0
    liked[names.index("<|endoftext|>")] = 9.0
    first = names.index("<|0.00|>")
    liked[first : first + TIMESTAMPS] = -9.0
    return liked
