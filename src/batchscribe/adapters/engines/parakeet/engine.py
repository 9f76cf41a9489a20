"""NVIDIA's Parakeet through onnx-asr (ONNX Runtime), on CUDA or CPU.

It needs a separate environment: faster-whisper brings onnxruntime, which overwrites files of onnxruntime-gpu
and hides its CUDA (microsoft/onnxruntime#26996). Loading never uses the network. The vendor's packages are
imported on demand, since a scheduler lacks them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import structlog
from msgspec.structs import replace

from batchscribe.adapters.engines.parakeet.half_precision import HALF
from batchscribe.adapters.engines.parakeet.models import (
    FLOAT,
    INSTALL,
    QUANTIZATIONS,
    fetch,
    find_kind,
    languages,
    list_files,
    list_models,
    model_folder,
    model_name,
    unable,
)
from batchscribe.adapters.engines.parakeet.words import Token, build_segments
from batchscribe.adapters.engines.problems import (
    choose_device,
    engine_errors,
    list_failures,
    not_installed,
    warn_if_missing,
)
from batchscribe.adapters.machine import nvidia
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text import quality
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import EngineError, GpuError, MisconfiguredError

NAME = "parakeet"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS: dict[str, list[Any]] = {
    # The default search tries all algorithms again for each length of audio, and its arena doubles.
    "cuda": [
        (CUDA, {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}),
        CPU,
    ],
    "cpu": [CPU],
}
BATCH_SIZES = {"cuda": 8, "cpu": 1}
"""Windows per batch: a single one leaves a GPU idle, but fills a CPU's caches."""
SHORTEST = SAMPLE_RATE // 2
"""Samples; shorter windows are padded, since the features of a few frames cannot be normalised."""
PACKAGES = ("onnx_asr", "onnxruntime")
APART = f"{INSTALL}, in a separate environment"
ALONE = "in an environment without faster-whisper, whose onnxruntime hides the CUDA of onnxruntime-gpu"
LOG = structlog.get_logger()


class Parakeet(Engine):
    """A loaded model. On a GPU it transcribes several windows at once."""

    def __init__(self, recogniser: Any, spec: EngineSpec, device: str) -> None:
        self._recogniser = recogniser
        self.model = model_name(spec.model)
        known = languages(self.model)
        self._language = next(iter(known)) if len(known) == 1 else spec.language
        self.batch_size = BATCH_SIZES[device]
        config = recogniser.asr.config
        self._frame = recogniser.asr.window_step * config.get("subsampling_factor", 8)
        self.device = f"{device}, {FLOAT if spec.compute_type == 'auto' else spec.compute_type}"

    def transcribe(self, batch: Sequence[Window]) -> list[Recognition]:
        with _engine_errors("transcribing"):
            results = self._recogniser.recognize([_pad_window(window) for window in batch])
            return [self._to_recognition(*pair) for pair in zip(batch, results, strict=True)]

    def _to_recognition(self, window: Window, result: Any) -> Recognition:
        probabilities = result.logprobs or [None] * len(result.tokens)
        tokens = [Token(*row) for row in zip(result.tokens, result.timestamps, probabilities, strict=True)]
        mean = fmean(result.logprobs) if result.logprobs else None
        segments = tuple(build_segments(tokens, self._frame))
        decoded = quality.Recognized(segments, window.seconds, avg_logprob=mean)
        found = within(segments, window.seconds)
        return Recognition(window.id, found, self._language or window.language, quality.find_flags(decoded))


def _pad_window(window: Window) -> Any:
    numpy: Any = importlib.import_module("numpy")
    audio = numpy.asarray(window.audio, numpy.float32)
    return numpy.pad(audio, (0, max(0, SHORTEST - len(audio))))


def _engine_errors(doing: str) -> AbstractContextManager[None]:
    """Converts vendor errors; keeps the texts of ONNX Runtime only."""
    return engine_errors(
        f"{NAME} failed while {doing}", lambda error: type(error).__module__.startswith("onnxruntime.")
    )


class ParakeetFactory(EngineFactory):
    """Chooses device, number format and model folder, and loads the model."""

    name = NAME
    extra = "parakeet-gpu"
    model_name = staticmethod(model_name)
    unable = staticmethod(unable)
    models = staticmethod(list_models)
    model_files = staticmethod(list_files)

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """Counts the driver's GPUs and checks the model's files."""
        found = unable(spec)
        if missing := not_installed(*PACKAGES):
            return (*found, f"{missing}: {APART} ({ALONE})")
        return (*found, *list_failures(NAME, spec, (_check_device, *(() if found else (_check_model,)))))

    def fetch(self, spec: EngineSpec) -> Path:
        warn_if_missing(NAME, PACKAGES, APART)
        return fetch(spec)

    def gpu_missing(self, spec: EngineSpec) -> bool:
        try:
            return spec.device == "cuda" and _choose_device(spec) != "cuda"
        except GpuError:
            return True
        except ImportError:
            return False

    def load(self, spec: EngineSpec) -> Parakeet:
        """Raises MisconfiguredError (see `problems`), GpuError and EngineError."""
        self.check(spec)
        device = _choose_device(spec)
        spec = _choose_format(spec)
        with _engine_errors(f"loading {model_name(spec.model)}"):
            recogniser = _load_model(spec, device)
            if device == "cuda":
                _check_cuda(recogniser)
        engine = Parakeet(recogniser.with_timestamps(), spec, device)
        _self_test(engine)
        return engine


def _load_model(spec: EngineSpec, device: str) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    onnx_asr: Any = importlib.import_module("onnx_asr")
    if device == "cuda":
        # pip's copies of CUDA and cuDNN are not on the library path.
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    folder = model_folder(spec)
    recogniser = onnx_asr.load_model(
        find_kind(model_name(spec.model), folder),
        folder,
        quantization=QUANTIZATIONS[spec.compute_type],
        sess_options=options,
        providers=PROVIDERS[device],
    )
    from batchscribe.adapters.engines.parakeet import batch_decoding  # noqa: PLC0415 - needs numpy

    batch_decoding.use_batches(recogniser.asr)
    if spec.compute_type == HALF:
        batch_decoding.refuse_overflow(recogniser.asr)
    return recogniser


def _check_cuda(recogniser: Any) -> None:
    """Raises GpuError if ONNX Runtime fell back to the CPU silently."""
    runtime: Any = importlib.import_module("onnxruntime")
    sessions = [
        value for value in vars(recogniser.asr).values() if isinstance(value, runtime.InferenceSession)
    ]
    if not sessions or not all(CUDA in session.get_providers() for session in sessions):
        raise GpuError(
            f"{NAME} requires the GPU, but ONNX Runtime loaded it on the CPU, since a CUDA library or the "
            f"driver is missing: {APART}; check the driver with nvidia-smi"
        )


def _self_test(engine: Parakeet) -> None:
    """Transcribes one second of silence: missing libraries show only then."""
    numpy: Any = importlib.import_module("numpy")
    window = Window(0, 0.0, numpy.zeros(SAMPLE_RATE, numpy.float32))
    try:
        engine.transcribe([window])
    except EngineError as error:
        raise EngineError(f"{NAME} loads, but fails its self-test: {error}") from error


def _check_device(spec: EngineSpec) -> None:
    if _choose_device(spec) == "cpu" and spec.compute_type == HALF:
        raise MisconfiguredError(
            f"parakeet computes in {HALF} on a GPU only: on this CPU WHISPER_COMPUTE_TYPE may be auto or int8"
        )


def _choose_format(spec: EngineSpec) -> EngineSpec:
    """Returns `spec`, changed to float32 if no float16 graph exists."""
    plain = replace(spec, compute_type=FLOAT)
    if spec.compute_type != HALF or model_folder(spec) != model_folder(plain):
        return spec
    LOG.warning(
        "model.not_converted", model=model_name(spec.model), note=f"{FLOAT} is used; `gpu setup` makes {HALF}"
    )
    return plain


def _check_model(spec: EngineSpec) -> None:
    find_kind(model_name(spec.model), model_folder(spec))


def _choose_device(spec: EngineSpec) -> str:
    return choose_device(spec, _why_no_gpu)


def _why_no_gpu() -> str:
    runtime: Any = importlib.import_module("onnxruntime")
    if CUDA not in runtime.get_available_providers():
        if {"onnxruntime", "onnxruntime-gpu"} <= _find_distributions():
            return f"onnxruntime hides the CUDA of onnxruntime-gpu here: {APART}, without faster-whisper"
        return f"the installed ONNX Runtime has no CUDA support: {APART} ({ALONE})"
    return "" if nvidia.count_usable() else "CUDA finds no usable GPU here: check the driver with nvidia-smi"


def _find_distributions() -> set[str]:
    names = ("onnxruntime", "onnxruntime-gpu")
    return {name for name in names if next(iter(metadata.distributions(name=name)), None) is not None}


FACTORY = ParakeetFactory()
