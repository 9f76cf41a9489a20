"""PocketSphinx with its package's English model, for demos and tests.

It is small and works offline. It holds the GIL while it works, so each core gets a process. It reports no
probabilities and recognises words in silence, so windows must contain only speech.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from batchscribe.adapters.engines.problems import engine_errors, not_installed
from batchscribe.adapters.engines.segments import split_segments
from batchscribe.core.messages import describe_install
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text import quality
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import Word
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import EngineError

NAME = "pocketsphinx"
FRAMES_PER_SECOND = 100
_REMEDY = "use BATCH_ENGINE=faster-whisper and a multilingual model, WHISPER_MODEL=small"
_VARIANT = re.compile(r"\(\d+\)$")
_FILLER = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")

DecodedWord = tuple[str, int, int]
"""(word in the decoder's notation, first frame, last frame)."""


class _ProcessDecoder:
    """The decoder of one process."""

    decoder: Any = None

    @classmethod
    def open(cls) -> None:
        """Runs once in each process of the pool."""
        # The worker handles Ctrl-C and lets the window finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_die_with_parent, daemon=True).start()
        cls.renew()

    @classmethod
    def renew(cls) -> None:
        pocketsphinx: Any = importlib.import_module("pocketsphinx")
        cls.decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    @classmethod
    def transcribe(cls, pcm: bytes) -> list[DecodedWord]:
        """Transcribes 16-bit 16 kHz mono samples."""
        try:
            cls.decoder.start_utt()
            cls.decoder.process_raw(pcm, full_utt=True)
            cls.decoder.end_utt()
            return [(part.word, part.start_frame, part.end_frame) for part in cls.decoder.seg() or ()]
        except Exception:
            # A decoder that fails within an utterance accepts no other.
            cls.renew()
            raise


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_ready() -> bool:
    return _ProcessDecoder.decoder is not None


class PocketSphinx(Engine):
    """A pool of decoder processes."""

    model = "en-us"

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = self._open_pool()
        self.device = f"cpu, {processes} processes"
        self.batch_size = 2 * processes

    def _open_pool(self) -> ProcessPoolExecutor:
        # A fork would copy the locks of our threads.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, mp_context=context, initializer=_ProcessDecoder.open)

    def warm(self) -> None:
        """Starts the processes and loads the model in them. Raises EngineError."""
        with self._engine_errors("loading the model"):
            for ready in [self._pool.submit(_is_ready) for _ in range(self._processes)]:
                ready.result()

    def close(self) -> None:
        """Ends the processes, each after its present window. May be called again."""
        self._pool.shutdown(cancel_futures=True)

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        """Yields each result as it completes."""
        with self._engine_errors("transcribing"):
            running = {
                self._pool.submit(_ProcessDecoder.transcribe, _to_pcm(window)): window for window in batch
            }
            for done in as_completed(running):
                yield _to_recognition(running[done], done.result())

    @contextmanager
    def _engine_errors(self, doing: str) -> Iterator[None]:
        """Converts vendor errors; replaces the pool if a process ended."""
        try:
            with engine_errors(f"{NAME} failed while {doing}"):
                yield
        except EngineError as error:
            if isinstance(error.__cause__, BrokenProcessPool):
                self._pool.shutdown(wait=False)
                self._pool = self._open_pool()
            raise


def _to_pcm(window: Window) -> bytes:
    pcm: bytes = (window.audio.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes()
    return pcm


def _to_recognition(window: Window, decoded: list[DecodedWord]) -> Recognition:
    words = [word for part in decoded if (word := _to_word(*part)) is not None]
    found = quality.Recognized(tuple(split_segments(words)), window.seconds)
    return Recognition(window.id, within(found.segments, window.seconds), "en", quality.find_flags(found))


def _to_word(name: str, first: int, last: int) -> Word | None:
    """A word without the dictionary's variant mark; None for silence and noise."""
    if _FILLER.fullmatch(name):
        return None
    return Word(
        word=_VARIANT.sub("", name), start=first / FRAMES_PER_SECOND, end=(last + 1) / FRAMES_PER_SECOND
    )


class PocketsphinxFactory(EngineFactory):
    """Loads the only model: English, on the CPU."""

    name = NAME
    extra = "demo"
    needs_gpu = False

    def model_name(self, wanted: str) -> str:  # noqa: ARG002 - there is no choice of models
        return ""

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        found = list(self.unable(spec))
        if missing := not_installed(NAME):
            found.append(f"{missing}: {describe_install('demo')}")
        if spec.device == "cuda":
            found.append(f"{NAME} runs on the CPU only: use the device auto, or faster-whisper")
        return tuple(found)

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        unsupported = []
        if spec.language not in {None, "en"}:
            unsupported.append(f"BATCH_LANGUAGE is {spec.language}")
        if spec.task != "transcribe":
            unsupported.append(f"BATCH_TASK is {spec.task}")
        return tuple(f"{NAME} supports English only, and {setting}: {_REMEDY}" for setting in unsupported)

    def load(self, spec: EngineSpec) -> PocketSphinx:
        self.check(spec)
        engine = PocketSphinx(len(os.sched_getaffinity(0)))
        engine.warm()
        return engine


FACTORY = PocketsphinxFactory()
