"""Whisper through faster-whisper (CTranslate2), on a CUDA GPU or on the CPU.

The model is a folder or the name of a model that was fetched before; loading never uses the network. The
vendor's packages are imported on demand, since a scheduler lacks them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import structlog

from batchscribe.adapters.engines.problems import engine_errors, list_failures, not_installed, warn_if_missing
from batchscribe.adapters.engines.whisper.batches import NAME, FasterWhisper
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder, check_vendor
from batchscribe.adapters.engines.whisper.device import (
    batch_size,
    compute_type,
    cuda_devices,
    device_of,
    self_test,
)
from batchscribe.adapters.engines.whisper.models import (
    INSTALL,
    MODELS,
    check_languages,
    fetch_model,
    list_files,
    model_folder,
    model_name,
    unable,
)
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.engine import EngineFactory
from batchscribe.errors import MisconfiguredError

LOG = structlog.get_logger()
PACKAGES = ("faster_whisper", "ctranslate2")


class WhisperFactory(EngineFactory):
    """Chooses device, number format and model folder, and loads the model."""

    name = NAME
    takes_vocabulary = True
    unable = staticmethod(unable)

    def gpu_missing(self, spec: EngineSpec) -> bool:
        try:
            return spec.device == "cuda" and not cuda_devices()
        except ImportError:
            return False

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """Counts the driver's GPUs and checks the model's files."""
        found = unable(spec)
        if missing := not_installed(*PACKAGES):
            return (*found, f"{missing}: {INSTALL}")
        model = () if found else (model_folder,)
        return (*found, *list_failures(NAME, spec, (device_of, *model, _check_code)))

    def load(self, spec: EngineSpec) -> FasterWhisper:
        """Raises MisconfiguredError (see `problems`) and EngineError."""
        decoder, device, kind = self.load_decoder(spec)
        with engine_errors(f"{NAME} cannot load {model_name(spec)}", lambda _error: True):
            self_test(decoder, device)
            size = batch_size(decoder, device)
        return FasterWhisper(
            decoder,
            spec,
            model=model_name(spec),
            device=f"{device}, {kind}",
            monotonic=SystemClock().monotonic,
            batch_size=size,
        )

    def load_decoder(self, spec: EngineSpec) -> tuple[WhisperDecoder, str, str]:
        """Loads model, device and number format, untested. Raises as `load` does."""
        self.check(spec)
        check_vendor()
        device = device_of(spec)
        with engine_errors(f"{NAME} cannot load {model_name(spec)}", lambda _error: True):
            kind = compute_type(spec, device)
            whisper: Any = importlib.import_module("faster_whisper")
            model = whisper.WhisperModel(
                str(model_folder(spec)), device=device, compute_type=kind, local_files_only=True
            )
            decoder = WhisperDecoder(model, spec.task, spec.vocabulary or ())
            if left := len(spec.vocabulary or ()) - len(decoder.vocabulary):
                LOG.warning("vocabulary.shortened", terms=len(decoder.vocabulary), left_out=left)
            check_languages(spec, multilingual=decoder.multilingual)
        return decoder, device, kind

    def models(self) -> dict[str, bool]:
        return {name: _is_here(name) for name in MODELS}

    def model_files(self, spec: EngineSpec) -> tuple[Path, ...]:
        return list_files(model_folder(spec))

    def fetch(self, spec: EngineSpec) -> Path:
        warn_if_missing(NAME, PACKAGES, INSTALL)
        return fetch_model(model_name(spec))


def _is_here(name: str) -> bool:
    try:
        model_folder(EngineSpec(engine=NAME, model=name))
    except MisconfiguredError:
        return False
    return True


def _check_code(spec: EngineSpec) -> None:
    """Raises MisconfiguredError for a language that Whisper does not support."""
    tokens: Any = importlib.import_module("faster_whisper.tokenizer")
    if spec.language is not None and spec.language not in tokens._LANGUAGE_CODES:  # noqa: SLF001 - no other list
        raise MisconfiguredError(
            f"Whisper does not support the language {spec.language!r}: set BATCH_LANGUAGE to a code, e.g. en"
        )


FACTORY = WhisperFactory()
