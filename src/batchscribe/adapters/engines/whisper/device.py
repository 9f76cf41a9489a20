"""Whisper's device: the GPU and its libraries, number format, self-test, batch size."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.engines.problems import choose_device, out_of_memory
from batchscribe.adapters.engines.whisper.batches import ENGLISH, NAME
from batchscribe.adapters.engines.whisper.decoder import FRAMES_PER_SECOND, WhisperDecoder
from batchscribe.core.messages import describe_install
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import MAX_WINDOW_SECONDS, SAMPLE_RATE
from batchscribe.errors import EngineError, GpuError, MisconfiguredError, first_line

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

PREFERRED = {
    "cuda": ("float16", "int8_float16", "int8_float32", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}
"""Number formats in order of preference: half precision on a GPU, 8 bit on a CPU."""
REMEDIES = {
    "cuda": f"{describe_install('gpu')} brings cuBLAS; check driver and free memory with nvidia-smi",
    "cpu": f"repeat {describe_install('cpu')}; check the free memory with free -h",
}
"""Remedies if a model loads but does not run."""
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
"""The CUDA libraries that CTranslate2's wheel opens at run time, besides the driver's libcuda.so.1: the CUDA
runtime is linked statically, and cuDNN is not used. The second needs the first."""
SELF_TEST_TOKENS = 16
PROBE_WINDOWS = 8
"""Windows transcribed once at loading, to measure GPU memory per window."""
MAX_BATCH = 32
"""Larger batches are not faster: a batch takes as long as its longest window."""
BATCH_UNMEASURED = 8
"""Batch size if nvidia-smi does not report free memory; halved later if it is too large."""
SPARE = 0.25
"""Part of the free memory that stays free: windows differ, and others may use the GPU."""
LEAST_BYTES = 32 * 1024**2
"""Minimum memory of a window with any model: its features and its decoder cache."""
MIB = 1024**2


def device_of(spec: EngineSpec) -> str:
    """Chooses the device. Raises GpuError for a GPU without its libraries, too."""
    return choose_device(spec, _why_no_gpu)


def _why_no_gpu() -> str:
    if not cuda_devices():
        return f"CUDA finds no usable GPU here: check the driver with nvidia-smi; {describe_install('gpu')}"
    check_libraries()
    return ""


def cuda_devices() -> int:
    """Number of GPUs that the driver shows."""
    ctranslate2: Any = importlib.import_module("ctranslate2")
    try:
        return int(ctranslate2.get_cuda_device_count())
    except RuntimeError:
        # A driver that is broken or too old counts as no GPU; `device_of` decides if that is an error.
        return 0


def check_libraries() -> None:
    """Loads cuBLAS, which CTranslate2 opens by name on first use. Raises GpuError."""
    folders = _pip_folders()
    for library in CUBLAS:
        if not any(_try_load(name) for name in (*(str(folder / library) for folder in folders), library)):
            raise GpuError(
                f"{library} cannot be loaded: {describe_install('gpu')} brings it, "
                "or install the CUDA 12 libraries of your system"
            )


def _pip_folders() -> list[Path]:
    with suppress(ImportError):
        package = importlib.util.find_spec("nvidia.cublas.lib")
        return [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    return []


def _try_load(library: str) -> bool:
    with suppress(OSError):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        return True
    return False


def compute_type(spec: EngineSpec, device: str) -> str:
    """The required number format, else the device's best one. Raises MisconfiguredError."""
    ctranslate2: Any = importlib.import_module("ctranslate2")
    able = ctranslate2.get_supported_compute_types(device)
    if spec.compute_type != "auto":
        if spec.compute_type not in able:
            raise MisconfiguredError(
                f"the {device} here does not support {spec.compute_type}: WHISPER_COMPUTE_TYPE may be auto, "
                f"{', '.join(sorted(able))}"
            )
        return spec.compute_type
    return next((kind for kind in PREFERRED[device] if kind in able), "default")


def self_test(decoder: WhisperDecoder, device: str) -> None:
    """Transcribes one second of sound: missing libraries show only then.

    Without the padding to 30 s, which costs a CPU as much as a full window and tests nothing more.
    Raises EngineError with a remedy.
    """
    try:
        sound = decoder.features(speech_like(1.0))
        encoded = decoder.encode([sound[:, :FRAMES_PER_SECOND]])
        if decoder.multilingual:
            decoder.languages(encoded)
        decoder.transcribe(encoded, [1.0], ENGLISH, limit=SELF_TEST_TOKENS)
    except Exception as error:
        raise EngineError(
            f"{NAME} loads, but fails its self-test: {first_line(error)}: {REMEDIES[device]}"
        ) from error


def speech_like(seconds: float) -> Samples:
    """A deterministic sound with a voice's harmonics and syllables, but no speech."""
    numpy: Any = importlib.import_module("numpy")
    at = numpy.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(numpy.sin(2 * numpy.pi * 120 * tone * at) / tone for tone in range(1, 25))
    syllables = numpy.clip(numpy.sin(2 * numpy.pi * 4 * at), 0, 1)
    found: Samples = (0.1 * voice * syllables).astype(numpy.float32)
    return found


def batch_size(decoder: WhisperDecoder, device: str) -> int:
    """Number of windows per batch; 1 on a CPU.

    There, a batch is slower than single windows. Raises EngineError if not even one window fits.
    """
    if device != "cuda":
        return 1
    # A window's memory grows with its text, so each one is filled.
    features = decoder.features(speech_like(MAX_WINDOW_SECONDS))

    def transcribe(windows: int) -> None:
        encoded = decoder.encode([features] * windows)
        decoder.transcribe(encoded, [MAX_WINDOW_SECONDS] * windows, ENGLISH, fill=True)

    return measured_batch(transcribe, free_memory)


def measured_batch(transcribe: Callable[[int], None], free: Callable[[], int | None]) -> int:
    """Batch size that fits into the memory.

    It follows from the least free memory (bytes) with one window and with a few. Raises the error of
    `transcribe` if one window does not fit.
    """
    one = least_free(partial(transcribe, 1), free)
    try:
        few = least_free(partial(transcribe, PROBE_WINDOWS), free)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return PROBE_WINDOWS // 4
    if one is None or few is None:
        return BATCH_UNMEASURED
    window = max((one - few) // (PROBE_WINDOWS - 1), LEAST_BYTES)
    return max(1, min(1 + int(one * (1 - SPARE)) // window, MAX_BATCH))


def least_free(work: Callable[[], None], free: Callable[[], int | None]) -> int | None:
    """Least free memory (bytes) during `work`; CTranslate2 frees most at its end."""
    observed: list[int | None] = []
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(work)
        while not observed or not done.done():
            observed.append(free())
        done.result()
    return min((memory for memory in observed if memory is not None), default=None)


def free_memory() -> int | None:
    """Free bytes of the fullest GPU; None if nvidia-smi fails."""
    query = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return min(int(number) for number in done.stdout.split()) * MIB
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
