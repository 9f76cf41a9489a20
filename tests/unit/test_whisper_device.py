"""The GPU's libraries and its memory, without one."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import faster_whisper.transcribe
import numpy as np
import pytest

from batchscribe.adapters.engines.whisper import decoder as whisper_decoder
from batchscribe.adapters.engines.whisper import device
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.adapters.engines.whisper.device import (
    BATCH_UNMEASURED,
    MAX_BATCH,
    PROBE_WINDOWS,
    batch_size,
    check_libraries,
    device_of,
    free_memory,
    least_free,
    measured_batch,
)
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.errors import EngineError, GpuError
from support.whisper_model import build

GIB = 1024**3
PATIENCE = 30.0
"""Seconds that a test waits for another thread before it fails."""


class Gpu:
    """Memory that windows take while they are heard, and that is free again afterwards."""

    def __init__(self, free: int, window: int, *, room: int = 1000) -> None:
        self._idle = free
        self._window = window
        self._room = room
        self._used = 0
        self._looked = threading.Event()
        self.heard: list[int] = []

    def hear(self, windows: int) -> None:
        self.heard.append(windows)
        if windows > self._room:
            raise RuntimeError("CUDA failed with error out of memory")
        self._looked.clear()
        self._used = windows * self._window
        assert self._looked.wait(PATIENCE)
        self._used = 0

    def free(self) -> int | None:
        seen = self._idle - self._used
        if self._used:
            self._looked.set()
        return seen


@pytest.mark.parametrize(
    ("free", "window", "batch"),
    [
        (16 * GIB, GIB, 1 + int(15 * 0.75)),
        (80 * GIB, GIB, MAX_BATCH),
        (9 * GIB, GIB, 1 + 6),
        (12 * GIB, 0, MAX_BATCH),
    ],
)
def test_a_batch_fits_into_what_is_free_with_some_to_spare(free: int, window: int, batch: int) -> None:
    gpu = Gpu(free, window) if window else SimpleNamespace(hear=lambda _windows: None, free=lambda: free)
    assert measured_batch(gpu.hear, gpu.free) == batch


def test_where_few_windows_do_not_fit_fewer_are_taken() -> None:
    gpu = Gpu(2 * GIB, GIB // 4, room=3)
    assert measured_batch(gpu.hear, gpu.free) == 2
    assert gpu.heard == [1, PROBE_WINDOWS]


def test_where_nobody_says_what_is_free_the_batch_is_small() -> None:
    assert measured_batch(lambda _windows: None, lambda: None) == BATCH_UNMEASURED


@pytest.mark.parametrize("fails_at", [1, PROBE_WINDOWS])
def test_another_trouble_while_measuring_is_not_hidden(fails_at: int) -> None:
    def hear(windows: int) -> None:
        if windows == fails_at:
            raise RuntimeError("no kernel image")

    with pytest.raises(RuntimeError, match="no kernel image"):
        measured_batch(hear, lambda: GIB)


def test_the_least_free_memory_is_that_of_the_busiest_moment() -> None:
    seen = iter([9, 3, 5])
    last = threading.Event()

    def free() -> int | None:
        value = next(seen, None)
        if value is None:
            last.set()
        return value

    assert least_free(lambda: assert_true(last.wait(PATIENCE)), free) == 3


def assert_true(value: bool) -> None:
    assert value


@pytest.mark.parametrize(
    ("printed", "free"), [("15000\n", 15000), ("15000\n9000\n", 9000), ("[N/A]\n", None), ("", None)]
)
def test_nvidia_smi_is_asked_for_the_fullest_gpu(
    printed: str, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_more: SimpleNamespace(stdout=printed))
    assert free_memory() == (None if free is None else free * 1024**2)


def test_no_nvidia_smi_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_memory() is None


def test_a_missing_cublas_names_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    tried: list[str] = []

    def loads(library: str, **_more: object) -> None:
        tried.append(library)
        if not library.startswith("/pip/") or library.endswith("cublas.so.12"):
            raise OSError

    monkeypatch.setattr(ctypes, "CDLL", loads)
    monkeypatch.setattr(device, "_pip_folders", lambda: [Path("/pip")])
    with pytest.raises(GpuError, match=r"libcublas\.so\.12 cannot be loaded.*'\.\[gpu\]'"):
        device_of(EngineSpec(engine="faster-whisper"))
    assert tried == ["/pip/libcublasLt.so.12", "/pip/libcublas.so.12", "libcublas.so.12"]
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_more: None)
    check_libraries()
    assert device_of(EngineSpec(engine="faster-whisper")) == "cuda"


def test_ctranslate2_opens_no_other_library_of_cudas() -> None:
    """What check_libraries looks for is what the pinned wheel names."""
    folder = Path(ctranslate2.__file__).parent
    binaries = [*folder.glob("*.so*"), *folder.parent.glob("ctranslate2.libs/libctranslate2*")]
    named = {name for path in binaries for name in named_libraries(path.read_bytes())}
    assert named == {b"libcublas.so.12", b"libcuda.so.1"}


def named_libraries(data: bytes) -> list[bytes]:
    return re.findall(rb"lib(?:cu|nv)[A-Za-z]*\.so(?:\.[0-9]+)?", data)


def test_a_cpu_takes_one_window_at_a_time_and_a_gpu_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = faster_whisper.WhisperModel(str(build(tmp_path / "model")), device="cpu")
    decoder = WhisperDecoder(model)
    assert batch_size(decoder, "cpu") == 1
    sizes: list[int] = []
    generate = decoder._generate_tokens

    def noted(encoded: Any, prompts: list[list[int]], *more: Any) -> Any:
        found = generate(encoded, prompts, *more)
        sizes.append(len(prompts))
        # Each window is filled up to its limit: what it costs at most is what is measured.
        assert all(len(each.sequences_ids[0]) >= whisper_decoder.MAX_TOKENS // 2 for each in found)
        return found

    monkeypatch.setattr(decoder, "_generate_tokens", noted)
    monkeypatch.setattr(device, "free_memory", lambda: None)
    assert batch_size(decoder, "cuda") == BATCH_UNMEASURED
    assert sizes == [1, PROBE_WINDOWS]


def test_another_faster_whisper_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper_decoder.check_vendor()

    def other(_self: object, segments: object) -> None: ...

    monkeypatch.setattr(faster_whisper.transcribe.WhisperModel, "add_word_timestamps", other)
    with pytest.raises(EngineError, match=r"add_word_timestamps than 1\.2\.1: pip install"):
        whisper_decoder.check_vendor()
    monkeypatch.undo()
    monkeypatch.delattr(faster_whisper.transcribe, "get_suppressed_tokens")
    with pytest.raises(EngineError, match="get_suppressed_tokens"):
        whisper_decoder.check_vendor()


def test_a_window_that_is_filled_up_has_all_the_text_that_fits(tmp_path: Path) -> None:
    decoder = WhisperDecoder(faster_whisper.WhisperModel(str(build(tmp_path / "model")), device="cpu"))
    encoded = decoder.encode([decoder.features(np.zeros(24_000, np.float32))])
    (short,) = decoder.transcribe(encoded, [1.5], "en")
    (full,) = decoder.transcribe(encoded, [1.5], "en", fill=True)
    assert len(short.words) < 20
    assert len(full.words) > 100
    assert short.read_until is None
    assert full.read_until is not None
