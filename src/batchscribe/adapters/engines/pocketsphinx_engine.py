"""PocketSphinx with the English model that its own package ships: small, offline, for demos and tests.

It holds the interpreter's lock while it works, so every core gets a process of its own. It knows no
probabilities, and it hears words in silence: what it is given must be speech already.
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
"""Seconds to wait for a result where no window is ready: neither a spin, nor long for the next one."""
_MEND = "take BATCH_ENGINE=faster-whisper and a model for several languages, WHISPER_MODEL=small"
_VARIANT = re.compile(r"\(\d+\)$")
_FILLER = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")

Heard = tuple[str, int, int]
"""A word as the decoder names it, its first and its last frame."""

_UnderWay = dict[Future[list[Heard]], tuple[int, float]]
"""Windows that the processes have: number and seconds."""


class _Listener:
    """The decoder of one process."""

    decoder: Any = None

    @classmethod
    def open(cls) -> None:
        """Runs once in each process of the pool."""
        # Ctrl-C is for the worker, which lets the window finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_die_with_parent, daemon=True).start()
        cls.renew()

    @classmethod
    def renew(cls) -> None:
        pocketsphinx: Any = importlib.import_module("pocketsphinx")
        cls.decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    @classmethod
    def hear(cls, pcm: bytes) -> list[Heard]:
        """What is said in 16-bit 16 kHz mono samples."""
        try:
            cls.decoder.start_utt()
            cls.decoder.process_raw(pcm, full_utt=True)
            cls.decoder.end_utt()
            return [(part.word, part.start_frame, part.end_frame) for part in cls.decoder.seg() or ()]
        except Exception:
            # A decoder that stopped in the middle of an utterance takes no other.
            cls.renew()
            raise


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ready() -> bool:
    return _Listener.decoder is not None


class PocketSphinx:
    """Decoders in as many processes as there are cores."""

    def __init__(self, processes: int) -> None:
        self.model = MODEL
        self._processes = processes
        self._pool = self._open()
        self.device = f"cpu, {processes} processes"

    def _open(self) -> ProcessPoolExecutor:
        # A fork would copy the locks of our threads; a fresh interpreter has none.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, mp_context=context, initializer=_Listener.open)

    def warm(self) -> None:
        """Starts the processes and loads the model in them. Raises EngineError."""
        with self._trouble("loading the model"):
            for ready in [self._pool.submit(_ready) for _ in range(self._processes)]:
                ready.result()

    def close(self) -> None:
        """Ends the processes, each after the window that it is at. Repeating it is harmless."""
        self._pool.shutdown(cancel_futures=True)

    def transcribe(self, windows: Iterable[Window | None]) -> Iterator[Recognition]:
        """One result for each window, when it is there; a few are under way at once. Raises EngineError."""
        under_way: _UnderWay = {}
        try:
            for window in windows:
                if window is not None:
                    under_way[self._asked(window)] = (window.id, window.seconds)
                full = len(under_way) >= 2 * self._processes
                idle = MOMENT if window is None else 0.0
                yield from self._answers(under_way, None if full else idle)
            while under_way:
                yield from self._answers(under_way, None)
        finally:
            for unwanted in under_way:
                unwanted.cancel()

    def _answers(self, under_way: _UnderWay, seconds: float | None) -> Iterator[Recognition]:
        """What is done by now, else the first within `seconds`; None is no limit."""
        for heard in wait(under_way, seconds, FIRST_COMPLETED).done:
            yield self._answer(*under_way.pop(heard), heard)

    def _asked(self, window: Window) -> Future[list[Heard]]:
        with self._trouble("transcribing"):
            return self._pool.submit(_Listener.hear, _pcm(window))

    def _answer(self, window: int, seconds: float, heard: Future[list[Heard]]) -> Recognition:
        with self._trouble("transcribing"):
            return _recognition(window, seconds, heard.result())

    @contextmanager
    def _trouble(self, doing: str) -> Iterator[None]:
        """Whatever the vendor raises becomes an EngineError; its text stays here, it may hold speech."""
        try:
            yield
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=False)
            self._pool = self._open()
            raise EngineError(f"{NAME} broke while {doing}: one of its processes ended") from error
        except Exception as error:
            raise EngineError(f"{NAME} broke while {doing}: {type(error).__name__}") from error


def _pcm(window: Window) -> bytes:
    pcm: bytes = (window.audio.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes()
    return pcm


def _recognition(window: int, seconds: float, heard: list[Heard]) -> Recognition:
    words = [word for part in heard if (word := _word(*part)) is not None]
    found = quality.Heard(tuple(_segments(words)), seconds)
    return Recognition(window, within(found.segments, seconds), "en", quality.flags(found))


def _word(name: str, first: int, last: int) -> Word | None:
    """A word without the dictionary's mark of a variant; None for silence and noise."""
    if _FILLER.fullmatch(name):
        return None
    return Word(
        word=_VARIANT.sub("", name), start=first / FRAMES_PER_SECOND, end=(last + 1) / FRAMES_PER_SECOND
    )


def _segments(words: list[Word]) -> Iterator[Segment]:
    """Words in segments, a new one after each pause."""
    if not words:
        return
    ends = [index + 1 for index, (one, two) in enumerate(pairwise(words)) if two.start - one.end >= PAUSE]
    for begin, end in pairwise([0, *ends, len(words)]):
        part = tuple(words[begin:end])
        text = " ".join(word.word for word in part)
        yield Segment(text=text, start=part[0].start, end=part[-1].end, words=part)


class Factory:
    """The one model there is, on the CPU, in English."""

    name = NAME

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        """See EngineFactory. `spec.model` names a Whisper model and is not looked at."""
        found = list(self.unable(spec))
        if importlib.util.find_spec("pocketsphinx") is None:
            found.append("pocketsphinx not installed: pip install 'batchscribe[demo]'")
        if spec.device == "cuda":
            found.append(f"{NAME} runs on the CPU only: choose the device auto, or faster-whisper")
        return tuple(found)

    def unable(self, spec: EngineSpec) -> tuple[str, ...]:
        """Why no machine could run `spec`; needs no package."""
        asked = []
        if spec.language not in {None, "en"}:
            asked.append(f"BATCH_LANGUAGE is {spec.language}")
        if spec.task != "transcribe":
            asked.append(f"BATCH_TASK is {spec.task}")
        return tuple(f"{NAME} knows English only, and {each}: {_MEND}" for each in asked)

    def load(self, spec: EngineSpec) -> PocketSphinx:
        """See EngineFactory."""
        if problems := self.problems(spec):
            raise MisconfiguredError("; ".join(problems))
        engine = PocketSphinx(len(os.sched_getaffinity(0)))
        engine.warm()
        return engine


FACTORY = Factory()
