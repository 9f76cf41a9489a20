"""Audio is hostile: it is decoded from bytes, in a limited process of its own, as a stream.

Formats, protocols and codecs go through allow-lists; decoded samples are counted against the limit;
memory, computing time and files are bounded; a process that crashes takes one chunk with it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from batchscribe.audio.bounded_queue import LOOK_SECONDS, never
from batchscribe.audio.decoding import frames
from batchscribe.audio.levels import Level
from batchscribe.core.text.flags import RESCALED, TRACK_MISSING
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import AudioError, InterruptedRunError, MisconfiguredError, UnsupportedAudioError

Samples = npt.NDArray[np.float32]

SILENCE_SECONDS = 120
"""A decoder that sends nothing for so long while we wait is given up."""
BASE_CPU_SECONDS = 60.0
CPU_SECONDS_PER_AUDIO_SECOND = 1 / 20
"""Decoding takes about 1/360 on an ordinary core: this is for the slowest box, not for a bomb."""
STRANGE = "it sent what no decoder sends"
UNWANTED = "decoding was given up in the middle: the worker is to end"


@cache
def decoder_version() -> str:
    """Such as `pyav 18.1.0 / ffmpeg 8.1.2 / rules 2`; empty if no decoder is installed on this machine."""
    try:
        av = importlib.import_module("av")
    except ImportError:
        return ""
    return f"pyav {av.__version__} / ffmpeg {av.ffmpeg_version_info} / rules {frames.RULES}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a file's sound begins, and what it is made of."""

    position: float | None
    """By the time stamp of its first sound, in seconds: where a piece of a recording belongs in that, once
    `Repaired.delay` is taken off; about 0 where a file is a whole of its own. None where its container
    has no time stamps.
    """
    rate: int
    """Of the file, in Hz: what is decoded is always 16 kHz."""
    channels: int
    """Of the file, in all its tracks, however many of them are sent."""
    codec: str
    """FFmpeg's name for it, such as `opus`."""
    sent: int = 1
    """Channels of the pieces that follow."""
    lead: float = 0.0
    """Seconds from the beginning of the file to its first sound: its picture begins earlier."""
    apart: bool = False
    """The channels that are sent are tracks of different languages."""
    unit: float = 1.0
    """What full scale is in its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conclusion:
    seconds: float
    partial: bool
    span: float | None = None
    tracks_missing: bool = False


_Answer = Samples | Beginning | _Conclusion


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A whole file. `samples` has shape (n,), float32 in [-1, 1], 16 kHz, mono."""

    samples: Samples
    partial: bool

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


class _DeadError(Exception):
    """The child process is gone, or as good as gone."""


class Decoding:
    """One file being decoded: iterate over its pieces, each up to 5 s of 16 kHz float32 in [-1, 1], of shape
    (n,), or (n, channels) if `channels` is more than 1.

    Before the first piece comes, `beginning` says how the sound begins. After the last one `seconds` is its
    true length, `partial` says that damage or its header left some of it out, `flags` is what else there is
    to report, and `span` is the length of the file by its own clock, if its picture lasts longer. Raises
    AudioError, also in the middle, and InterruptedRunError when the rest is not wanted.
    """

    def __init__(self, answers: Iterator[_Answer], *, skip: float = 0.0) -> None:
        self._answers = answers
        self._skip = skip
        self._level = Level()
        self.beginning: Beginning | None = None
        self.seconds = 0.0
        self.partial = False
        self.span: float | None = None
        self.flags: frozenset[str] = frozenset()

    @property
    def channels(self) -> int:
        """How many channels the pieces have; known when `beginning` is."""
        return self.beginning.sent if self.beginning else 1

    def __iter__(self) -> Iterator[Samples]:
        left = round(self._skip * SAMPLE_RATE)
        for answer in self._answers:
            match answer:
                case Beginning(position=at):
                    self.beginning = replace(answer, position=None if at is None else at + self._skip)
                    self._level = Level(answer.unit)
                case _Conclusion():
                    self._conclude(answer)
                case _:
                    left, piece = max(0, left - len(answer)), answer[left:]
                    if len(piece):
                        yield self._level.apply(piece)

    def _conclude(self, end: _Conclusion) -> None:
        self.seconds, self.partial = max(0.0, end.seconds - self._skip), end.partial
        self.span = None if end.span is None else max(0.0, end.span - self._skip)
        rescaled = self.beginning is not None and self.beginning.unit != 1.0
        found = {RESCALED: rescaled, TRACK_MISSING: end.tracks_missing}
        self.flags = frozenset(flag for flag, holds in found.items() if holds)


class AudioDecoder:
    """A decoding process that is kept for many files and replaced when one of them breaks it.

    For one thread at a time. Close it, or use it as a context manager.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None
        self._busy = False

    def decode(
        self,
        data: bytes,
        *,
        max_seconds: float,
        until: Callable[[], bool] = never,
        split: bool = False,
        skip: float = 0.0,
    ) -> Decoding:
        """Starts decoding `data`, at most `max_seconds` of audio, and lets go of it once it is copied.

        All channels of all tracks are mixed into one, but not tracks of different languages. With `split`,
        each track is a channel, or, in a file of one track, left and right are. `beginning` has their number.
        The first `skip` seconds are decoded and left out, as if the file began behind them.

        Raises MisconfiguredError where no decoder can be started at all; while iterating AudioError,
        and InterruptedRunError as soon as `until` says so and more audio would come.
        """
        if not data:
            raise AudioError("the object is empty: there is nothing to decode")
        if self._busy:
            # The last file was given up in the middle: what is left in the pipe belongs to nobody.
            self.close()
        child = self._child = self._child or _Child()
        child.fill(data)
        self._busy = True
        return Decoding(self._answers(child, max_seconds, until, split=split), skip=skip)

    def _answers(
        self, child: _Child, max_seconds: float, until: Callable[[], bool], *, split: bool
    ) -> Iterator[_Answer]:
        try:
            yield from child.decode(max_seconds, until, split=split)
        except AudioError:
            self._busy = False
            raise
        except _DeadError as error:
            reason = child.obituary() or error
            self.close()
            raise AudioError(f"the decoder broke on it: {reason}") from None
        self._busy = False

    def decode_all(self, data: bytes, *, max_seconds: float) -> Decoded:
        """The whole file at once: 64 KB for each second. Raises AudioError, MisconfiguredError."""
        decoding = self.decode(data, max_seconds=max_seconds)
        pieces = list(decoding)
        return Decoded(samples=np.concatenate(pieces), partial=decoding.partial)


_Told = TypeVar("_Told", Beginning, _Conclusion)


def _told(payload: bytes, kind: type[_Told]) -> _Told:
    """Raises _DeadError for what the child would not say if it were still itself."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.MsgspecError:
        raise _DeadError(STRANGE) from None


def _sane(beginning: Beginning) -> Beginning:
    """Raises _DeadError for numbers that no decoder sends."""
    if not (1 <= beginning.sent <= frames.MAX_SENT and beginning.unit >= 1.0 and beginning.lead >= 0.0):
        raise _DeadError(STRANGE)
    return beginning


def _shaped(payload: bytes, channels: int) -> Samples:
    """A piece of shape (n,), or (n, channels). Raises _DeadError where it is not one."""
    if len(payload) % (frames.BYTES_PER_SAMPLE * channels):
        raise _DeadError(STRANGE)
    samples: Samples = np.frombuffer(payload, dtype="<f4")
    return samples.reshape(-1, channels) if channels > 1 else samples


class _Child:
    """The process, its two pipes, and the anonymous file that holds the bytes to decode.

    The bytes do not count against the child's memory limit there, and it never sees a path.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="batchscribe-decode-")
        self._file = os.memfd_create("audio")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "batchscribe.audio.decoding.child", str(self._file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            cwd=self._folder.name,
            # One thread: a pool for each core would not fit into the child's memory.
            env={"OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(self._file,),
            # Ctrl-C in a terminal is for the worker, which ends its children in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._expect_hello()
        # It stays in its folder, which is gone for everybody else: nothing is left if we are killed.
        self._folder.cleanup()

    def _expect_hello(self) -> None:
        try:
            kind, _ = self._receive()
        except _DeadError:
            reason = self._last_line()
            self.end()
            raise MisconfiguredError(
                f"the audio decoder does not start ({reason}): install batchscribe[cpu] or batchscribe[gpu]"
            ) from None
        assert kind == frames.HELLO

    def fill(self, data: bytes) -> None:
        """Puts what is to be decoded next into the anonymous file."""
        os.ftruncate(self._file, 0)
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(self._file, view[at:], at)

    def decode(self, max_seconds: float, until: Callable[[], bool], *, split: bool) -> Iterator[_Answer]:
        """How it begins, pieces, and the conclusion. Raises AudioError, _DeadError, InterruptedRunError."""
        cpu, channels = BASE_CPU_SECONDS + max_seconds * CPU_SECONDS_PER_AUDIO_SECOND, 1
        self._order({"max_seconds": max_seconds, "cpu_seconds": cpu, "split": split})
        while True:
            kind, payload = self._receive(until)
            if kind == frames.AUDIO:
                if until():
                    raise InterruptedRunError(UNWANTED)
                yield _shaped(payload, channels)
            elif kind == frames.START:
                beginning = _told(payload, Beginning)
                channels = _sane(beginning).sent
                yield beginning
            else:
                os.ftruncate(self._file, 0)
                if kind == frames.END:
                    yield _told(payload, _Conclusion)
                    return
                refusal = UnsupportedAudioError if kind == frames.FINAL else AudioError
                raise refusal(payload.decode(errors="replace"))

    def _order(self, order: dict[str, float]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            raise _DeadError("it was gone before it began") from None

    def _receive(self, until: Callable[[], bool] = never) -> tuple[bytes, bytes]:
        kind, length = frames.HEADER.unpack(self._read(frames.HEADER.size, until))
        if length > frames.MAX_PAYLOAD:
            raise _DeadError(STRANGE)
        return kind, self._read(length, until)

    def _wait(self, until: Callable[[], bool]) -> None:
        """Returns when there is something to read."""
        for _ in range(int(SILENCE_SECONDS / LOOK_SECONDS)):
            if self._poll.poll(LOOK_SECONDS * 1000):
                return
            if until():
                raise InterruptedRunError(UNWANTED)
        raise _DeadError(f"no sound for {SILENCE_SECONDS} seconds")

    def _read(self, length: int, until: Callable[[], bool]) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait(until)
            piece = os.read(self._out, length - len(data))
            if not piece:
                raise _DeadError("it ended without an answer")
            data += piece
        return bytes(data)

    def obituary(self) -> str:
        """Why the process died; empty while it lives."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1)
            if code == -signal.SIGXCPU:
                return "it needs more computing time than decoding is given"
            if code < 0:
                return f"the decoding process was ended by {signal.Signals(-code).name}"
            return f"the decoding process ended with code {code}"
        return ""

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else self.obituary()

    def end(self) -> None:
        """Kills the process and frees everything that belongs to it; may be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._stderr.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._folder.cleanup()
