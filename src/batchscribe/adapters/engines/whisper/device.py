"""Where Whisper runs: the GPU and its libraries, the number format, the self-test, the size of a batch."""

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

from batchscribe.adapters.engines.problems import line, out_of_memory
from batchscribe.adapters.engines.whisper.batches import ENGLISH, NAME
from batchscribe.adapters.engines.whisper.decoder import FRAMES_PER_SECOND, WhisperDecoder
from batchscribe.adapters.machine import nvidia
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import MAX_WINDOW_SECONDS, SAMPLE_RATE
from batchscribe.errors import EngineError, GpuError, MisconfiguredError

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

PREFERRED = {
    "cuda": ("float16", "int8_float16", "int8_float32", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}
"""The first that the device can do: half precision where the GPU has it, 8 bit on a CPU."""
MENDS = {
    "cuda": "install 'batchscribe[gpu]', which brings cuBLAS; see driver and free memory with nvidia-smi",
    "cpu": "install 'batchscribe[cpu]' again; see the free memory with free -h",
}
"""What to do where a model loads and does not run."""
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
"""All of CUDA's that CTranslate2's wheel opens at run time, besides the driver's libcuda.so.1: the CUDA
runtime is linked into it, and cuDNN is not named in it at all. The second needs the first."""
SELF_TEST_TOKENS = 16
PROBE_WINDOWS = 8
"""Heard once at loading, to see what a window costs of the GPU's memory."""
MAX_BATCH = 32
"""Beyond it decoding gains nothing: a batch takes as long as its longest window."""
BATCH_UNMEASURED = 8
"""Where nvidia-smi does not say what is free. What is too much is halved later."""
SPARE = 0.25
"""Part of the free memory that is left free: windows differ, and others may use the GPU, too."""
LEAST_BYTES = 32 * 1024**2
"""A window costs more than this with any model, whatever a measurement says: its features and the cache
of its decoder."""
MIB = 1024**2


def device_of(spec: EngineSpec) -> str:
    """`cuda` or `cpu`. Raises MisconfiguredError for a GPU, asked for or there, that is unusable."""
    if spec.device == "cpu":
        return "cpu"
    if spec.device not in {"auto", "cuda"}:
        raise MisconfiguredError(f"no device is called {spec.device!r}: auto, cuda or cpu")
    if cuda_devices():
        check_libraries()
        return "cuda"
    if spec.device == "cuda" or nvidia.on_the_bus():
        raise GpuError(
            "CUDA finds no usable GPU here: check the driver with nvidia-smi and install 'batchscribe[gpu]' "
            "(the device cpu must be asked for by name)"
        )
    return "cpu"


def gpu_missing(spec: EngineSpec) -> bool:
    """Whether `spec` wants a GPU, and there is no usable one here."""
    try:
        return spec.device == "cuda" and not cuda_devices()
    except ImportError:
        return False


def cuda_devices() -> int:
    """How many GPUs the driver shows."""
    ctranslate2: Any = importlib.import_module("ctranslate2")
    try:
        return int(ctranslate2.get_cuda_device_count())
    except RuntimeError:
        # A driver that is broken or too old counts as no GPU; whether that is an error is decided above.
        return 0


def check_libraries() -> None:
    """Loads cuBLAS, which CTranslate2 looks up by name when it first needs it. Raises GpuError."""
    folders = _pip_folders()
    for library in CUBLAS:
        if not any(_loads(name) for name in (*(str(folder / library) for folder in folders), library)):
            raise GpuError(
                f"{library} cannot be loaded: pip install 'batchscribe[gpu]', which brings it, "
                "or install the CUDA 12 libraries of your system"
            )


def _pip_folders() -> list[Path]:
    with suppress(ImportError):
        package = importlib.util.find_spec("nvidia.cublas.lib")
        return [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    return []


def _loads(library: str) -> bool:
    with suppress(OSError):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        return True
    return False


def compute_type(spec: EngineSpec, device: str) -> str:
    """The number format: as asked, else the best that the device has. Raises MisconfiguredError."""
    ctranslate2: Any = importlib.import_module("ctranslate2")
    able = ctranslate2.get_supported_compute_types(device)
    if spec.compute_type != "auto":
        if spec.compute_type not in able:
            raise MisconfiguredError(
                f"{device} here cannot compute in {spec.compute_type}: WHISPER_COMPUTE_TYPE may be auto, "
                f"{', '.join(sorted(able))}"
            )
        return spec.compute_type
    return next((kind for kind in PREFERRED[device] if kind in able), "default")


def self_test(decoder: WhisperDecoder, device: str) -> None:
    """One second of sound through the whole model: a library that is missing is only missed there.

    Without the padding to 30 s, which costs a CPU as much as a window, and would show no more.
    Raises EngineError with the mend.
    """
    try:
        sound = decoder.features(speech_like(1.0))
        encoded = decoder.encode([sound[:, :FRAMES_PER_SECOND]])
        if decoder.multilingual:
            decoder.languages(encoded)
        decoder.hear(encoded, [1.0], ENGLISH, limit=SELF_TEST_TOKENS)
    except Exception as error:
        raise EngineError(f"{NAME} loads, but fails its self-test: {line(error)}: {MENDS[device]}") from error


def speech_like(seconds: float) -> Samples:
    """A voice's harmonics in syllables: always the same, and no speech."""
    numpy: Any = importlib.import_module("numpy")
    at = numpy.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(numpy.sin(2 * numpy.pi * 120 * tone * at) / tone for tone in range(1, 25))
    syllables = numpy.clip(numpy.sin(2 * numpy.pi * 4 * at), 0, 1)
    found: Samples = (0.1 * voice * syllables).astype(numpy.float32)
    return found


def batch_size(decoder: WhisperDecoder, device: str) -> int:
    """How many windows at once. On a CPU one: a batch takes longer there than its windows one by one.

    Raises EngineError where not even one fits.
    """
    if device != "cuda":
        return 1
    # What a window costs grows with its text: each is filled up.
    features = decoder.features(speech_like(MAX_WINDOW_SECONDS))

    def hear(windows: int) -> None:
        encoded = decoder.encode([features] * windows)
        decoder.hear(encoded, [MAX_WINDOW_SECONDS] * windows, ENGLISH, fill=True)

    return measured_batch(hear, free_memory)


def measured_batch(hear: Callable[[int], None], free: Callable[[], int | None]) -> int:
    """The batch that fits, from how low the free memory (bytes) fell with one window, and with a few.

    Raises what `hear` raises, where one window does not fit.
    """
    one = least_free(partial(hear, 1), free)
    try:
        few = least_free(partial(hear, PROBE_WINDOWS), free)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return PROBE_WINDOWS // 4
    if one is None or few is None:
        return BATCH_UNMEASURED
    each = max((one - few) // (PROBE_WINDOWS - 1), LEAST_BYTES)
    return max(1, min(1 + int(one * (1 - SPARE)) // each, MAX_BATCH))


def least_free(work: Callable[[], None], free: Callable[[], int | None]) -> int | None:
    """The least free memory seen while `work` ran. CTranslate2 gives most of it back at once, so that
    nothing shows afterwards.
    """
    seen: list[int | None] = []
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(work)
        while not seen or not done.done():
            seen.append(free())
        done.result()
    known = [each for each in seen if each is not None]
    return min(known, default=None)


def free_memory() -> int | None:
    """Free bytes of the fullest GPU; None where nvidia-smi does not say."""
    query = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return min(int(number) for number in done.stdout.split()) * MIB
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
