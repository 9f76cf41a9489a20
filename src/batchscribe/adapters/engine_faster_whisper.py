"""Whisper through faster-whisper (CTranslate2), on a CUDA GPU or on the CPU.

The model is a folder of this machine or a name that was fetched before; loading never reaches for
the network. The vendor's packages are imported when they are needed: a scheduler has none of them.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchscribe.core.manifest import EngineSpec
from batchscribe.core.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.timing import within
from batchscribe.core.transcripts import Segment, Word
from batchscribe.errors import EngineError, GpuError, MisconfiguredError

NAME = "faster-whisper"
DEFAULT_MODEL = "small.en"
MODEL_FILES = ("model.bin", "config.json", "tokenizer.json")
PREFERRED = {
    "cuda": ("float16", "int8_float16", "int8_float32", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}
"""The first that the device can do: half precision where the GPU has it, 8 bit on a CPU."""
BEAM_SIZE = 5
MENDS = {
    "cuda": "install 'batchscribe[gpu]', which brings cuBLAS; see driver and free memory with nvidia-smi",
    "cpu": "install 'batchscribe[cpu]' again; see the free memory with free -h",
}
"""What to do where a model loads and does not run."""
CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
PCI_DEVICES = Path("/sys/bus/pci/devices")


class FasterWhisper:
    """A loaded Whisper model; one window at a time, each on its own."""

    def __init__(self, whisper: Any, spec: EngineSpec, device: str) -> None:
        self._whisper = whisper
        self._language = spec.language
        self.model = spec.model or DEFAULT_MODEL
        self.device = device
        """Where it runs and how it computes, such as `cuda, float16`."""

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """One result for each window, in order, each before the next window is taken. Raises EngineError."""
        for window in windows:
            if window is not None:
                yield self._recognise(window)

    def _recognise(self, window: Window) -> Recognition:
        try:
            segments, info = self._whisper.transcribe(
                window.audio,
                language=window.language or self._language,
                beam_size=BEAM_SIZE,
                word_timestamps=True,
                condition_on_previous_text=False,
                vad_filter=False,
            )
            found = tuple(_segment(segment) for segment in segments if segment.text.strip())
        except Exception as error:
            raise EngineError(f"{NAME} broke while transcribing: {_safe(error)}") from error
        return Recognition(window.id, within(found, window.seconds), info.language)


def _segment(segment: Any) -> Segment:
    words = tuple(
        Word(
            word=word.word.strip(),
            start=float(word.start),
            end=float(word.end),
            probability=round(float(word.probability), 3),
        )
        for word in segment.words or ()
        if word.word.strip()
    )
    return Segment(text=segment.text.strip(), start=float(segment.start), end=float(segment.end), words=words)


class Factory:
    """Chooses device, number format and model folder, and loads the model."""

    name = NAME

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """See EngineFactory. Asks the driver how many GPUs there are, and looks for the model's files."""
        if missing := [name for name in (NAME.replace("-", "_"), "ctranslate2") if not _installed(name)]:
            return (
                f"{', '.join(missing)} not installed: pip install 'batchscribe[gpu]', or without a GPU [cpu]",
            )
        found: list[str] = []
        for check in (_device, model_folder, _language):
            try:
                check(spec)
            except MisconfiguredError as error:
                found.append(str(error))
            except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is a problem
                found.append(f"{NAME} does not run here ({_line(error)}): install it again")
        return tuple(found)

    def load(self, spec: EngineSpec) -> FasterWhisper:
        """See EngineFactory. Raises MisconfiguredError (see `problems`) and EngineError."""
        if problems := self.problems(spec):
            raise MisconfiguredError("; ".join(problems))
        device, folder = _device(spec), model_folder(spec)
        try:
            compute_type = _compute_type(spec, device)
            whisper: Any = importlib.import_module("faster_whisper")
            model = whisper.WhisperModel(
                str(folder), device=device, compute_type=compute_type, local_files_only=True
            )
        except MisconfiguredError:
            raise
        except Exception as error:
            raise EngineError(f"{NAME} cannot load {spec.model or DEFAULT_MODEL}: {_line(error)}") from error
        _check_language(spec, multilingual=model.model.is_multilingual)
        _self_test(model, device)
        return FasterWhisper(model, spec, f"{device}, {compute_type}")


def _self_test(whisper: Any, device: str) -> None:
    """One second of silence through the whole model: a library that is missing is only missed there.

    Raises EngineError with the mend.
    """
    numpy: Any = importlib.import_module("numpy")
    silence = numpy.zeros(SAMPLE_RATE, numpy.float32)
    try:
        segments, _ = whisper.transcribe(
            silence,
            language="en",
            beam_size=BEAM_SIZE,
            temperature=0.0,
            max_new_tokens=8,
            word_timestamps=True,
        )
        for _segment in segments:
            pass
    except Exception as error:
        raise EngineError(
            f"{NAME} loads, but fails its self-test: {_line(error)}: {MENDS[device]}"
        ) from error


def prefetch(model: str) -> Path:
    """Fetches a named model into the local cache and returns its folder; a folder is returned as it is.

    Reaches for the network. Raises MisconfiguredError for an unknown name, EngineError where it fails.
    """
    if Path(model).is_dir():
        return Path(model)
    utils: Any = importlib.import_module("faster_whisper.utils")
    try:
        return Path(utils.download_model(model))
    except ValueError as error:
        raise MisconfiguredError(_unknown_model(model)) from error
    except Exception as error:
        # The hub's client raises a family of its own for every way a download can fail.
        raise EngineError(f"the model {model} could not be fetched: {_line(error)}") from error


def model_folder(spec: EngineSpec) -> Path:
    """The folder of the model on this machine. Raises MisconfiguredError: missing, or not whole."""
    name = spec.model or DEFAULT_MODEL
    folder = Path(name) if "/" in name and Path(name).is_dir() else _cached(name)
    missing = [file for file in MODEL_FILES if not (folder / file).is_file()]
    if missing:
        raise MisconfiguredError(
            f"the Whisper model in {folder} has no {', '.join(missing)}: convert it again with its tokenizer"
        )
    return folder


def _cached(name: str) -> Path:
    if name.startswith((".", "/")):
        raise MisconfiguredError(f"there is no folder {name}: WHISPER_MODEL is a model's name or folder")
    utils: Any = importlib.import_module("faster_whisper.utils")
    try:
        return Path(utils.download_model(name, local_files_only=True))
    except ValueError as error:
        raise MisconfiguredError(_unknown_model(name)) from error
    except OSError as error:
        raise MisconfiguredError(
            f"the Whisper model {name} is not on this machine: fetch it with "
            f"`batchscribe engines --fetch {name}` (a GPU box: `batchscribe gpu setup`); or take another "
            "engine (BATCH_ENGINE), or the folder of a model (WHISPER_MODEL)"
        ) from error


def _unknown_model(name: str) -> str:
    utils: Any = importlib.import_module("faster_whisper.utils")
    return f"no Whisper model is called {name!r}: a folder, or one of {', '.join(utils.available_models())}"


def _language(spec: EngineSpec) -> None:
    if (spec.model or DEFAULT_MODEL).endswith(".en"):
        _check_language(spec, multilingual=False)


def _check_language(spec: EngineSpec, *, multilingual: bool) -> None:
    if spec.language not in {None, "en"} and not multilingual:
        raise MisconfiguredError(
            f"the model {spec.model or DEFAULT_MODEL} knows English only, and BATCH_LANGUAGE is "
            f"{spec.language}: take a model without .en"
        )


def _device(spec: EngineSpec) -> str:
    """`cuda` or `cpu`. Raises MisconfiguredError for a GPU, asked for or there, that is unusable."""
    if spec.device == "cpu":
        return "cpu"
    if spec.device not in {"auto", "cuda"}:
        raise MisconfiguredError(f"no device is called {spec.device!r}: auto, cuda or cpu")
    _preload_cublas()
    if _cuda_devices():
        return "cuda"
    if spec.device == "cuda" or _nvidia_gpu_present():
        raise GpuError(
            "CUDA finds no usable GPU here: check the driver with nvidia-smi and install 'batchscribe[gpu]' "
            "(the device cpu must be asked for by name)"
        )
    return "cpu"


def gpu_missing(spec: EngineSpec) -> bool:
    """Whether `spec` wants a GPU, and there is no usable one here."""
    try:
        return spec.device == "cuda" and not _cuda_devices()
    except ImportError:
        return False


def _cuda_devices() -> int:
    ctranslate2: Any = importlib.import_module("ctranslate2")
    try:
        return int(ctranslate2.get_cuda_device_count())
    except RuntimeError:
        # A driver that is broken or too old counts as no GPU; whether that is an error is decided above.
        return 0


def _nvidia_gpu_present() -> bool:
    """Whether an NVIDIA display or compute device is on the bus, with or without a driver."""
    for device in PCI_DEVICES.glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def _preload_cublas() -> None:
    """CTranslate2 looks cuBLAS up by name when it first needs it: pip's copy must be loaded by then."""
    with suppress(ImportError):
        package = importlib.util.find_spec("nvidia.cublas.lib")
        for folder in (package.submodule_search_locations or ()) if package else ():
            for library in CUBLAS:
                with suppress(OSError):
                    ctypes.CDLL(str(Path(folder) / library), mode=ctypes.RTLD_GLOBAL)


def _compute_type(spec: EngineSpec, device: str) -> str:
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


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _safe(error: BaseException) -> str:
    """What CTranslate2 itself says; of every other error the type only, for its text may hold speech."""
    return _line(error) if type(error) in {RuntimeError, MemoryError} else type(error).__name__


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


FACTORY = Factory()
