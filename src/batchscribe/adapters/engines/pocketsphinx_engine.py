"""PocketSphinx with the English model of its package: small, offline, for demos and tests.

It holds the GIL while it works, so each core gets a process. It reports no probabilities and recognises words
in silence, so windows must contain only speech.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text import quality
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.errors import EngineError, MisconfiguredError

NAME = "pocketsphinx"
MODEL = "en-us"
FRAMES_PER_SECOND = 100
PAUSE = 0.6
"""Seconds of quiet that end a segment."""
MOMENT = 0.05
"""Seconds to wait for a result if no window is ready: no busy loop, and little delay for the next window."""
_REMEDY = "use BATCH_ENGINE=faster-whisper and a multilingual model, WHISPER_MODEL=small"
_VARIANT = re.compile(r"\(\d+\)$")
_FILLER = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")

DecodedWord = tuple[str, int, int]
"""(word in the decoder's notation, first frame, last frame)."""

_InProgress = dict[Future[list[DecodedWord]], tuple[int, float]]
"""Windows in the processes: (number, seconds)."""


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


class PocketSphinx:
    """A pool of decoder processes."""

    def __init__(self, processes: int) -> None:
        self.model = MODEL
        self._processes = processes
        self._pool = self._open_pool()
        self.device = f"cpu, {processes} processes"

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

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """Yields one result per window as it completes; several run at once. Raises EngineError."""
        in_progress: _InProgress = {}
        try:
            for window in windows:
                if window is not None:
                    in_progress[self._submit(window)] = (window.id, window.seconds)
                full = len(in_progress) >= 2 * self._processes
                idle = MOMENT if window is None else 0.0
                yield from self._collect_results(in_progress, None if full else idle)
            while in_progress:
                yield from self._collect_results(in_progress, None)
        finally:
            for unwanted in in_progress:
                unwanted.cancel()

    def _collect_results(self, in_progress: _InProgress, seconds: float | None) -> Iterator[Recognition]:
        """Yields the completed results, else waits up to `seconds` for the first; None is no limit."""
        for result in wait(in_progress, seconds, FIRST_COMPLETED).done:
            window, length = in_progress.pop(result)
            with self._engine_errors("transcribing"):
                recognition = _to_recognition(window, length, result.result())
            yield recognition

    def _submit(self, window: Window) -> Future[list[DecodedWord]]:
        with self._engine_errors("transcribing"):
            return self._pool.submit(_ProcessDecoder.transcribe, _to_pcm(window))

    @contextmanager
    def _engine_errors(self, doing: str) -> Iterator[None]:
        """Converts the vendor's errors to EngineError, without their text, which may contain speech."""
        try:
            yield
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=False)
            self._pool = self._open_pool()
            raise EngineError(f"{NAME} failed while {doing}: one of its processes ended") from error
        except Exception as error:
            raise EngineError(f"{NAME} failed while {doing}: {type(error).__name__}") from error


def _to_pcm(window: Window) -> bytes:
    pcm: bytes = (window.audio.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes()
    return pcm


def _to_recognition(window: int, seconds: float, decoded: list[DecodedWord]) -> Recognition:
    words = [word for part in decoded if (word := _to_word(*part)) is not None]
    found = quality.Recognized(tuple(_split_segments(words)), seconds)
    return Recognition(window, within(found.segments, seconds), "en", quality.flags(found))


def _to_word(name: str, first: int, last: int) -> Word | None:
    """A word without the dictionary's variant mark; None for silence and noise."""
    if _FILLER.fullmatch(name):
        return None
    return Word(
        word=_VARIANT.sub("", name), start=first / FRAMES_PER_SECOND, end=(last + 1) / FRAMES_PER_SECOND
    )


def _split_segments(words: list[Word]) -> Iterator[Segment]:
    """Groups words into segments; each pause starts a new one."""
    if not words:
        return
    ends = [index + 1 for index, (one, two) in enumerate(pairwise(words)) if two.start - one.end >= PAUSE]
    for begin, end in pairwise([0, *ends, len(words)]):
        part = tuple(words[begin:end])
        text = " ".join(word.word for word in part)
        yield Segment(text=text, start=part[0].start, end=part[-1].end, words=part)


class PocketsphinxFactory:
    """Loads the only model: English, on the CPU."""

    name = NAME

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """See EngineFactory. `spec.model` is a Whisper model and is ignored."""
        found = list(self.unable(spec))
        if importlib.util.find_spec("pocketsphinx") is None:
            found.append("pocketsphinx not installed: pip install 'batchscribe[demo]'")
        if spec.device == "cuda":
            found.append(f"{NAME} runs on the CPU only: use the device auto, or faster-whisper")
        return tuple(found)

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        """Why no machine can run `spec`; needs no package."""
        unsupported = []
        if spec.language not in {None, "en"}:
            unsupported.append(f"BATCH_LANGUAGE is {spec.language}")
        if spec.task != "transcribe":
            unsupported.append(f"BATCH_TASK is {spec.task}")
        return tuple(f"{NAME} supports English only, and {setting}: {_REMEDY}" for setting in unsupported)

    def load(self, spec: EngineSpec) -> PocketSphinx:
        """See EngineFactory."""
        if problems := self.problems(spec):
            raise MisconfiguredError("; ".join(problems))
        engine = PocketSphinx(len(os.sched_getaffinity(0)))
        engine.warm()
        return engine


FACTORY = PocketsphinxFactory()
