"""NVIDIA's Parakeet through onnx-asr (ONNX Runtime), on a CUDA GPU or on the CPU.

It lives in an environment of its own: faster-whisper brings onnxruntime, which installs over the files
of onnxruntime-gpu and hides its CUDA (microsoft/onnxruntime#26996). Loading never reaches for the
network. The vendor's packages are imported when they are needed: a scheduler has none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from statistics import fmean
from typing import Any

import structlog

from batchscribe.adapters.engines.parakeet.models import (
    QUANTIZATIONS,
    fetch,
    here,
    kind,
    languages,
    model_folder,
    model_name,
    unable,
)
from batchscribe.adapters.engines.parakeet.words import Token, segments
from batchscribe.adapters.engines.problems import failing, line, out_of_memory
from batchscribe.adapters.machine import nvidia
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text import quality
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.errors import BatchscribeError, EngineError, GpuError, MisconfiguredError

LOG = structlog.get_logger()

NAME = "parakeet"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS: dict[str, list[Any]] = {
    # The default search tries every algorithm anew for each length of audio, and its arena doubles.
    "cuda": [
        (CUDA, {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}),
        CPU,
    ],
    "cpu": [CPU],
}
BATCH = {"cuda": 8, "cpu": 1}
"""Windows that are encoded at once: a GPU is idle with one, and a CPU's caches are full with one."""
SHORTEST = SAMPLE_RATE // 2
"""Samples; a shorter window is filled up, since the features of a few frames cannot be normalised."""
PACKAGES = {"onnx_asr": "onnx-asr", "onnxruntime": "onnxruntime"}
APART = "pip install 'batchscribe[parakeet-gpu]', or without a GPU [parakeet], in an environment of its own"
ALONE = "in an environment without faster-whisper, whose onnxruntime hides the CUDA of onnxruntime-gpu"


class Parakeet:
    """A loaded model. On a GPU it takes several windows at once."""

    def __init__(self, recogniser: Any, spec: EngineSpec, device: str) -> None:
        self._recogniser = recogniser
        self.model = model_name(spec.model)
        known = languages(self.model)
        self._language = next(iter(known)) if len(known) == 1 else spec.language
        self.batch = BATCH[device]
        config = recogniser.asr.config
        self._frame = recogniser.asr.window_step * config.get("subsampling_factor", 8)
        self.device = f"{device}, {QUANTIZATIONS[spec.compute_type] or 'float32'}"
        """Where it runs and how it computes, such as `cuda, float32`."""

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """One result for each window, in order, a batch at a time. Raises EngineError."""
        held: list[Window] = []
        for window in windows:
            held += [window] if window else []
            if held and (window is None or len(held) >= self.batch):
                yield from self._recognise(held)
                held = []
        if held:
            yield from self._recognise(held)

    def _recognise(self, windows: Sequence[Window]) -> list[Recognition]:
        """A batch that is too large for the memory is heard in halves, and so are those after it."""
        with _trouble("transcribing"):
            try:
                results = self._recogniser.recognize([_filled(window) for window in windows])
            except Exception as error:
                if len(windows) == 1 or not out_of_memory(error):
                    raise
            else:
                return [self._answer(*each) for each in zip(windows, results, strict=True)]
        half = len(windows) // 2
        self.batch = min(self.batch, half)
        LOG.warning("engine.batch_halved", windows=self.batch)
        return [*self._recognise(windows[:half]), *self._recognise(windows[half:])]

    def _answer(self, window: Window, result: Any) -> Recognition:
        probabilities = result.logprobs or [None] * len(result.tokens)
        tokens = [Token(*each) for each in zip(result.tokens, result.timestamps, probabilities, strict=True)]
        sure = fmean(result.logprobs) if result.logprobs else None
        heard = quality.Heard(tuple(segments(tokens, self._frame)), window.seconds, avg_logprob=sure)
        found = within(heard.segments, window.seconds)
        return Recognition(window.id, found, self._language or window.language, quality.flags(heard))


def _filled(window: Window) -> Any:
    numpy: Any = importlib.import_module("numpy")
    audio = numpy.asarray(window.audio, numpy.float32)
    return numpy.pad(audio, (0, max(0, SHORTEST - len(audio))))


@contextmanager
def _trouble(doing: str) -> Iterator[None]:
    """Whatever the vendor raises becomes an EngineError; only ONNX Runtime's own words are repeated."""
    try:
        yield
    except BatchscribeError:
        raise
    except Exception as error:
        known = type(error).__module__.startswith("onnxruntime.")
        raise EngineError(
            f"{NAME} broke while {doing}: {line(error) if known else type(error).__name__}"
        ) from error


class Factory:
    """Chooses device, number format and model folder, and loads the model."""

    name = NAME
    model_name = staticmethod(model_name)
    unable = staticmethod(unable)
    models = staticmethod(here)
    fetch = staticmethod(fetch)

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """See EngineFactory. Asks the driver how many GPUs there are, and looks for the model's files."""
        found = unable(spec)
        if missing := _missing():
            return (*found, f"{', '.join(missing)} not installed: {APART} ({ALONE})")
        return (*found, *failing(NAME, spec, (_device, *(() if found else (_model,)))))

    def gpu_missing(self, spec: EngineSpec) -> bool:
        """Whether `spec` wants a GPU, and there is no usable one here."""
        try:
            return spec.device == "cuda" and _device(spec) != "cuda"
        except GpuError:
            return True
        except ImportError:
            return False

    def load(self, spec: EngineSpec) -> Parakeet:
        """See EngineFactory. Raises MisconfiguredError (see `problems`), GpuError and EngineError."""
        if problems := self.problems(spec):
            raise (GpuError if self.gpu_missing(spec) else MisconfiguredError)("; ".join(problems))
        device = _device(spec)
        with _trouble(f"loading {model_name(spec.model)}"):
            recogniser = _open(spec, device)
            if device == "cuda":
                _check_cuda(recogniser)
        engine = Parakeet(recogniser.with_timestamps(), spec, device)
        _self_test(engine)
        return engine


def _open(spec: EngineSpec, device: str) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    onnx_asr: Any = importlib.import_module("onnx_asr")
    if device == "cuda":
        # pip's copies of CUDA and cuDNN are on no library path.
        runtime.preload_dlls()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    folder = model_folder(spec)
    return onnx_asr.load_model(
        kind(model_name(spec.model), folder),
        folder,
        quantization=QUANTIZATIONS[spec.compute_type],
        sess_options=options,
        providers=PROVIDERS[device],
    )


def _check_cuda(recogniser: Any) -> None:
    """ONNX Runtime falls to the CPU without a word where a library of CUDA's is missing. Raises GpuError."""
    runtime: Any = importlib.import_module("onnxruntime")
    sessions = [
        value for value in vars(recogniser.asr).values() if isinstance(value, runtime.InferenceSession)
    ]
    if not sessions or not all(CUDA in session.get_providers() for session in sessions):
        raise GpuError(
            f"{NAME} was to run on the GPU, and ONNX Runtime put it on the CPU, since a library of CUDA's or "
            f"the driver is missing: {APART}; see the driver with nvidia-smi"
        )


def _self_test(engine: Parakeet) -> None:
    """One second of silence through the whole model: what is missing is only missed there."""
    numpy: Any = importlib.import_module("numpy")
    window = Window(0, 0.0, numpy.zeros(SAMPLE_RATE, numpy.float32))
    try:
        list(engine.transcribe([window]))
    except EngineError as error:
        raise EngineError(f"{NAME} loads, but fails its self-test: {error}") from error


def _model(spec: EngineSpec) -> None:
    kind(model_name(spec.model), model_folder(spec))


def _device(spec: EngineSpec) -> str:
    """`cuda` or `cpu`. Raises MisconfiguredError for a GPU, asked for or there, that is unusable."""
    if spec.device == "cpu":
        return "cpu"
    if spec.device not in {"auto", "cuda"}:
        raise MisconfiguredError(f"no device is called {spec.device!r}: auto, cuda or cpu")
    runtime: Any = importlib.import_module("onnxruntime")
    able = CUDA in runtime.get_available_providers()
    if able and nvidia.usable():
        return "cuda"
    if spec.device == "cuda" or nvidia.on_the_bus():
        raise GpuError(f"{_why_no_gpu(able=able)} (the device cpu must be asked for by name)")
    return "cpu"


def _why_no_gpu(*, able: bool) -> str:
    if able:
        return "CUDA finds no usable GPU here: check the driver with nvidia-smi"
    if {"onnxruntime", "onnxruntime-gpu"} <= _distributions():
        return f"onnxruntime hides the CUDA of onnxruntime-gpu here: {APART}, without faster-whisper"
    return f"the ONNX Runtime that is installed here knows no CUDA: {APART} ({ALONE})"


def _distributions() -> set[str]:
    names = ("onnxruntime", "onnxruntime-gpu")
    return {name for name in names if next(iter(metadata.distributions(name=name)), None) is not None}


def _missing() -> list[str]:
    return [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]


FACTORY = Factory()
