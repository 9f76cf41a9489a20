"""Speech with known word times: flite's library reports where each sound ends."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchscribe.core.text.speech import SAMPLE_RATE
from bench.speech import LEVEL, Samples

LIBRARIES = ("libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1")
FIRST, LAST = b"R:SylStructure.daughter1", b"R:SylStructure.daughtern"
BEGIN, END = b".R:Segment.p.end", b".R:Segment.end"


@dataclass(frozen=True)
class Spoken:
    """A word, in seconds."""

    word: str
    start: float
    end: float
    syllables: tuple[float, ...]
    """Begin of each."""


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("length", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class Flite:
    """One voice at 16 kHz: rms or slt."""

    def __init__(self, voice: str) -> None:
        self._flite, *_ = (ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL) for name in LIBRARIES)
        self._flite.flite_init()
        voices = ctypes.CDLL(f"libflite_cmu_us_{voice}.so.1", mode=ctypes.RTLD_GLOBAL)
        self._voice = _declare(voices, f"register_cmu_us_{voice}", ctypes.c_void_p, 1)(None)
        self._speak = _declare(self._flite, "flite_synth_text", ctypes.c_void_p, 2)
        self._wave = _declare(self._flite, "utt_wave", ctypes.c_void_p, 1)
        self._relation = _declare(self._flite, "utt_relation", ctypes.c_void_p, 2)
        self._head = _declare(self._flite, "relation_head", ctypes.c_void_p, 1)
        self._next = _declare(self._flite, "item_next", ctypes.c_void_p, 1)
        self._number = _declare(self._flite, "ffeature_float", ctypes.c_float, 2)
        self._text = _declare(self._flite, "ffeature_string", ctypes.c_char_p, 2)
        self._delete = _declare(self._flite, "delete_utterance", None, 1)

    def speak(self, text: str) -> tuple[Samples, list[Spoken]]:
        utterance = self._speak(text.encode(), self._voice)
        try:
            wave = ctypes.cast(self._wave(utterance), ctypes.POINTER(_Wave)).contents
            assert (wave.rate, wave.channels) == (SAMPLE_RATE, 1)
            audio = np.ctypeslib.as_array(wave.samples, (wave.length,)).astype(np.float32)
            return audio * np.float32(LEVEL / np.abs(audio).max()), self._list_words(utterance)
        finally:
            self._delete(utterance)

    def _list_words(self, utterance: int) -> list[Spoken]:
        begins = [self._number(item, FIRST + BEGIN) for item in self._items(utterance, b"Syllable")]
        found = []
        for item in self._items(utterance, b"Word"):
            start = self._number(item, FIRST + b".daughter1" + BEGIN)
            end = self._number(item, LAST + b".daughtern" + END)
            inside = tuple(begin for begin in begins if start - 1e-4 <= begin < end - 1e-4)
            found.append(Spoken(self._text(item, b"name").decode(), start, end, inside))
        return found

    def _items(self, utterance: int, relation: bytes) -> Iterator[int]:
        item = self._head(self._relation(utterance, relation))
        while item:
            yield item
            item = self._next(item)


def _declare(library: ctypes.CDLL, name: str, result: Any, arguments: int) -> Any:
    """A function of pointers: texts are given as bytes."""
    found = getattr(library, name)
    found.restype = result
    found.argtypes = [ctypes.c_void_p] * arguments
    return found
