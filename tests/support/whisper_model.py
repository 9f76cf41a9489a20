"""A real Whisper model, as small as one can be: random weights, CTranslate2's own format, no torch.

It says words from a list of ten, at random but always the same: the code around a model is what is
tested with it, not what it hears.
"""

from __future__ import annotations

import json
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
WIDTH, HEADS, LAYERS, MELS = 32, 2, 2, 80


def build(folder: Path, *, seed: int = 4, languages: tuple[str, ...] = ("en",)) -> Path:
    """Writes the model into an empty folder; it knows these languages alike."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(languages)
    tokenizer.save(str(folder / "tokenizer.json"))
    by_number = {number: name for name, number in tokenizer.get_vocab().items()}
    names = [by_number[number] for number in sorted(by_number)]
    names += [f"<|{step * 0.02:.2f}|>" for step in range(TIMESTAMPS)]
    spec = WhisperSpec(LAYERS, HEADS, LAYERS, HEADS)
    _fill(spec, names, np.random.default_rng(seed))
    spec.register_vocabulary(names)
    _configure(spec.config, names, languages)
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
    features = {"feature_size": MELS, "chunk_length": 30, "n_fft": 400, "hop_length": 160}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    return folder


def _tokenizer(languages: tuple[str, ...]) -> Tokenizer:
    """Bytes, then each word as one token that begins with its blank, then the specials in Whisper's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        made = "Ġ"
        for letter in word:
            if (made, letter) not in merges:
                merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    if len(languages) > 1:
        # By this token, and by nothing else, CTranslate2 knows a model of many languages.
        vocabulary[""] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = (*BEFORE_LANGUAGES, *(f"<|{language}|>" for language in languages), *AFTER_LANGUAGES)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


def _configure(config: Any, names: list[str], languages: tuple[str, ...]) -> None:
    config.suppress_ids = []
    config.suppress_ids_begin = [names.index("Ġ"), names.index("<|endoftext|>")]
    config.alignment_heads = [(1, 0), (1, 1)]
    config.lang_ids = [names.index(f"<|{language}|>") for language in languages]


def _fill(spec: Any, names: list[str], random: np.random.Generator) -> None:
    def weights(*shape: int) -> Any:
        return random.normal(0, 0.3, shape).astype(np.float32)

    def linear(layer: Any, outputs: int, inputs: int) -> None:
        layer.weight, layer.bias = weights(outputs, inputs), weights(outputs)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def attention(layer: Any, *, crossed: bool = False) -> None:
        norm(layer.layer_norm)
        for part, outputs in zip(layer.linear, (1, 2, 1) if crossed else (3, 1), strict=True):
            linear(part, outputs * WIDTH, WIDTH)

    def forward(layer: Any) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * WIDTH, WIDTH)
        linear(layer.linear_1, WIDTH, 4 * WIDTH)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = weights(WIDTH, MELS, 3), weights(WIDTH)
    encoder.conv2.weight, encoder.conv2.bias = weights(WIDTH, WIDTH, 3), weights(WIDTH)
    encoder.position_encodings.encodings = weights(1500, WIDTH)
    decoder.position_encodings.encodings = weights(448, WIDTH)
    decoder.embeddings.weight = weights(len(names), WIDTH)
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
    decoder.projection.weight = 4 * weights(len(names), WIDTH)
    decoder.projection.bias = _preferences(names)


def _preferences(names: list[str]) -> Any:
    """How much the model likes each token: whole words, time stamps, and now and then the end."""
    liked = np.full(len(names), -90.0, np.float32)
    for word in WORDS:
        liked[names.index("Ġ" + word)] = 3.0
    liked[names.index("<|endoftext|>")] = 9.0
    first = names.index("<|0.00|>")
    liked[first : first + TIMESTAMPS] = -9.0
    return liked
