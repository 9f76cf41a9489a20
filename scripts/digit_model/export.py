"""Writes a trained network as a faster-whisper model: CTranslate2's format, int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import WhisperSpec
from torch import Tensor, nn

from . import vocabulary as tokens
from .network import FRAMES, GUIDED, HEADS, LAYERS, MELS, Attention, DecoderLayer, EncoderLayer, Whisper


def write(network: Whisper, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokens.tokenizer().save(str(folder / "tokenizer.json"))
    spec: Any = WhisperSpec(LAYERS, HEADS, LAYERS, HEADS)
    _encoder(spec.encoder, network)
    _decoder(spec.decoder, network)
    spec.register_vocabulary(tokens.names())
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [tokens.BLANK, tokens.EOT]
    spec.config.alignment_heads = [(GUIDED[-1], 0)]
    spec.config.lang_ids = [tokens.ENGLISH]
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
    features = {"feature_size": MELS, "chunk_length": 30, "n_fft": 400, "hop_length": 160}
    (folder / "preprocessor_config.json").write_text(json.dumps(features) + "\n")


def _encoder(spec: Any, network: Whisper) -> None:
    _weights(spec.conv1, network.conv1)
    _weights(spec.conv2, network.conv2)
    spec.position_encodings.encodings = _array(network.sinusoids[:FRAMES])
    _norm(spec.layer_norm, network.encoder_norm)
    for made, layer in zip(spec.layer, network.encoder, strict=True):
        assert isinstance(layer, EncoderLayer)
        _norm(made.self_attention.layer_norm, layer.norm)
        _self_attention(made.self_attention, layer.attention)
        _forth(made.ffn, layer)


def _decoder(spec: Any, network: Whisper) -> None:
    table = _array(network.embeddings())
    spec.embeddings.weight = table
    spec.projection.weight = table
    spec.position_encodings.encodings = _array(network.positions)
    _norm(spec.layer_norm, network.decoder_norm)
    for made, layer in zip(spec.layer, network.decoder, strict=True):
        assert isinstance(layer, DecoderLayer)
        _norm(made.self_attention.layer_norm, layer.norm)
        _self_attention(made.self_attention, layer.attention)
        _norm(made.attention.layer_norm, layer.cross_norm)
        _cross_attention(made.attention, layer.cross)
        _forth(made.ffn, layer)


def _self_attention(spec: Any, attention: Attention) -> None:
    _stacked(spec.linear[0], [attention.query, attention.key, attention.value])
    _weights(spec.linear[1], attention.out)


def _cross_attention(spec: Any, attention: Attention) -> None:
    _weights(spec.linear[0], attention.query)
    _stacked(spec.linear[1], [attention.key, attention.value])
    _weights(spec.linear[2], attention.out)


def _stacked(spec: Any, parts: list[nn.Linear]) -> None:
    """Several projections as one; the keys' missing bias is zeros."""
    width = parts[0].out_features
    spec.weight = np.concatenate([_array(part.weight) for part in parts])
    biases = [np.zeros(width, np.float32) if part.bias is None else _array(part.bias) for part in parts]
    spec.bias = np.concatenate(biases)


def _forth(spec: Any, layer: EncoderLayer | DecoderLayer) -> None:
    _norm(spec.layer_norm, layer.forth.norm)
    _weights(spec.linear_0, layer.forth.wide)
    _weights(spec.linear_1, layer.forth.narrow)


def _norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _weights(spec: Any, layer: nn.Linear | nn.Conv1d) -> None:
    spec.weight = _array(layer.weight)
    spec.bias = _array(layer.bias)


def _array(tensor: Tensor | None) -> Any:
    assert tensor is not None
    return tensor.detach().float().numpy().copy()
