"""Decodes untrusted audio from bytes, as a stream, in a limited process.

Formats, protocols and codecs are allow-listed; decoded samples count against the limit; memory, CPU time and
files are bounded; a crash of the process costs one chunk.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from batchscribe.audio.bounded_queue import POLL_SECONDS, never
from batchscribe.audio.decoding import frames
from batchscribe.audio.levels import AudioLevel
from batchscribe.core.messages import describe_install
from batchscribe.core.text.flags import RESCALED, TRACK_MISSING
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import AudioError, InterruptedRunError, MisconfiguredError, UnsupportedAudioError

Samples = npt.NDArray[np.float32]

SILENCE_SECONDS = 120
"""A decoder without output for so long, while we wait for it, is killed."""
BASE_CPU_SECONDS = 60.0
CPU_SECONDS_PER_AUDIO_SECOND = 1 / 20
"""Decoding takes about 1/360 on an ordinary core: enough for the slowest host, but not for a bomb."""
SAMPLE = b"RIFF" + struct.pack(
    "<I4s4sIHHIIHH4sI", 1636, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 32_000, 2, 16, b"data", 1600
)
SAMPLE += bytes(1600)
"""50 ms of silence as WAV, which every decoder has to decode before its first file."""
STRANGE = "its output is invalid"
UNWANTED = "decoding was interrupted: the worker is ending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Position and format of a file's audio."""

    position: float | None
    """Time stamp of its first audio, in seconds: the chunk's position in its recording, after subtraction of
    `Repaired.delay`; about 0 for a separate recording. None if its container has no time stamps.
    """
    rate: int
    """Of the file, in Hz; decoded audio is always 16 kHz."""
    channels: int
    """Of the file, in all its tracks, sent or not."""
    codec: str
    """FFmpeg's name, such as `opus`."""
    sent: Annotated[int, msgspec.Meta(ge=1, le=frames.MAX_SENT)] = 1
    """Channels of the following pieces."""
    lead: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    """Seconds from the beginning of the file to its first audio: its video begins earlier."""
    apart: bool = False
    """The sent channels are tracks of different languages."""
    unit: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0
    """Full scale in its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conclusion:
    seconds: float
    partial: bool
    span: float | None = None
    tracks_missing: bool = False


_Answer = Samples | Beginning | _Conclusion


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A decoded file, with `samples` as in a mono piece of Decoding."""

    samples: Samples
    partial: bool

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


class _DeadError(Exception):
    """The child process is dead or unusable."""


class Decoding:
    """Iterator over the decoded pieces of one file.

    Each piece is up to 5 s of 16 kHz float32 in [-1, 1], of shape (n,), or (n, channels) if `channels` is
    more than 1. `beginning` is set before the first piece. After the last one, `seconds` is the true length,
    `partial` is True if damage or the header left audio out, `flags` are further flags, and `span` is the
    length of the file by its own clock, if its video is longer. Raises AudioError, also in the middle, and
    InterruptedRunError when the worker should end.
    """

    def __init__(self, answers: Iterator[_Answer], *, skip: float = 0.0) -> None:
        self._iterate_answers = answers
        self._skip = skip
        self._level = AudioLevel()
        self.beginning: Beginning | None = None
        self.seconds = 0.0
        self.partial = False
        self.span: float | None = None
        self.flags: frozenset[str] = frozenset()

    @property
    def channels(self) -> int:
        """Number of channels of the pieces; known when `beginning` is."""
        return self.beginning.sent if self.beginning else 1

    def __iter__(self) -> Iterator[Samples]:
        left = round(self._skip * SAMPLE_RATE)
        for answer in self._iterate_answers:
            match answer:
                case Beginning(position=at):
                    self.beginning = replace(answer, position=None if at is None else at + self._skip)
                    self._level = AudioLevel(answer.unit)
                case _Conclusion():
                    self._apply_conclusion(answer)
                case _:
                    left, piece = max(0, left - len(answer)), answer[left:]
                    if len(piece):
                        yield self._level.apply(piece)

    def _apply_conclusion(self, end: _Conclusion) -> None:
        self.seconds, self.partial = max(0.0, end.seconds - self._skip), end.partial
        self.span = None if end.span is None else max(0.0, end.span - self._skip)
        rescaled = self.beginning is not None and self.beginning.unit != 1.0
        found = {RESCALED: rescaled, TRACK_MISSING: end.tracks_missing}
        self.flags = frozenset(flag for flag, holds in found.items() if holds)


class AudioDecoder:
    """A decoding process for many files, replaced when it breaks.

    Not thread-safe. Close it, or use it as a context manager.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        """Starts decoding a copy of `data`, at most `max_seconds` of audio.

        Mixes all channels of all tracks into one, except tracks of different languages. With `split`, each
        track becomes a channel, or left and right in a file of one track; `beginning` has their number. The
        first `skip` seconds are decoded but left out, as if the file began after them.

        Raises MisconfiguredError if no decoder can be started; while iterating, AudioError, and
        InterruptedRunError if `until` returns True and more audio would come.
        """
        if not data:
            raise AudioError("the object is empty: there is nothing to decode")
        if self._busy:
            # The last file was abandoned in the middle: discard the rest of its output.
            self.close()
        child = self._child = self._child or _Child()
        child.fill(data)
        self._busy = True
        return Decoding(self._iterate_answers(child, max_seconds, until, split=split), skip=skip)

    def _iterate_answers(
        self, child: _Child, max_seconds: float, until: Callable[[], bool], *, split: bool
    ) -> Iterator[_Answer]:
        try:
            yield from child.decode(max_seconds, until, split=split)
        except AudioError:
            self._busy = False
            raise
        except _DeadError as error:
            reason = child.death_reason() or error
            self.close()
            raise AudioError(f"the decoder failed on it: {reason}") from None
        self._busy = False

    def decode_all(self, data: bytes, *, max_seconds: float) -> Decoded:
        """Decodes a whole file, 64 KB a second. Raises AudioError, MisconfiguredError."""
        decoding = self.decode(data, max_seconds=max_seconds)
        pieces = list(decoding)
        return Decoded(samples=np.concatenate(pieces), partial=decoding.partial)


_Payload = TypeVar("_Payload", Beginning, _Conclusion)


def _parse_payload(payload: bytes, kind: type[_Payload]) -> _Payload:
    """Raises _DeadError for a payload that an intact child would not send."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.MsgspecError:
        raise _DeadError(STRANGE) from None


def _parse_samples(payload: bytes, channels: int) -> Samples:
    """A piece of `channels` channels. Raises _DeadError for a wrong length."""
    if len(payload) % (frames.BYTES_PER_SAMPLE * channels):
        raise _DeadError(STRANGE)
    samples: Samples = np.frombuffer(payload, dtype="<f4")
    return samples.reshape(-1, channels) if channels > 1 else samples


class _Child:
    """The process, its pipes, and an anonymous file with the input.

    In that file the bytes do not count against the child's memory limit, and the child never gets a path.
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
        self._check_start()
        # The child keeps its deleted folder as working directory, so nothing is left if we are killed.
        self._folder.cleanup()

    def _check_start(self) -> None:
        """Raises MisconfiguredError for a decoder that cannot decode a sample.

        A library of another version fails on every file, and no file is at fault then.
        """
        try:
            kind, _ = self._receive_frame()
            assert kind == frames.HELLO
            self.fill(SAMPLE)
            list(self.decode(len(SAMPLE) / SAMPLE_RATE, never, split=False))
        except (AudioError, _DeadError) as error:
            reason = error if isinstance(error, AudioError) else self._last_line() or error
            self.end()
            raise MisconfiguredError(
                f"the audio decoder does not work ({reason}; {frames.decoder_version()}): "
                f"{describe_install('gpu', 'cpu')}"
            ) from None

    def fill(self, data: bytes) -> None:
        """Writes the next bytes to decode into the anonymous file."""
        os.ftruncate(self._file, 0)
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(self._file, view[at:], at)

    def decode(self, max_seconds: float, until: Callable[[], bool], *, split: bool) -> Iterator[_Answer]:
        """Yields beginning, pieces, conclusion. Raises AudioError, _DeadError, InterruptedRunError."""
        cpu, channels = BASE_CPU_SECONDS + max_seconds * CPU_SECONDS_PER_AUDIO_SECOND, 1
        self._send_request({"max_seconds": max_seconds, "cpu_seconds": cpu, "split": split})
        while True:
            kind, payload = self._receive_frame(until)
            if kind == frames.AUDIO:
                if until():
                    raise InterruptedRunError(UNWANTED)
                yield _parse_samples(payload, channels)
            elif kind == frames.START:
                beginning = _parse_payload(payload, Beginning)
                channels = beginning.sent
                yield beginning
            else:
                os.ftruncate(self._file, 0)
                if kind == frames.END:
                    yield _parse_payload(payload, _Conclusion)
                    return
                refusal = UnsupportedAudioError if kind == frames.FINAL else AudioError
                raise refusal(payload.decode(errors="replace"))

    def _send_request(self, request: dict[str, float]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise _DeadError("it ended before it began") from None

    def _receive_frame(self, until: Callable[[], bool] = never) -> tuple[bytes, bytes]:
        kind, length = frames.HEADER.unpack(self._read_bytes(frames.HEADER.size, until))
        if length > frames.MAX_PAYLOAD:
            raise _DeadError(STRANGE)
        return kind, self._read_bytes(length, until)

    def _wait_for_output(self, until: Callable[[], bool]) -> None:
        for _ in range(int(SILENCE_SECONDS / POLL_SECONDS)):
            if self._poll.poll(POLL_SECONDS * 1000):
                return
            if until():
                raise InterruptedRunError(UNWANTED)
        raise _DeadError(f"no output for {SILENCE_SECONDS} s")

    def _read_bytes(self, length: int, until: Callable[[], bool]) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait_for_output(until)
            piece = os.read(self._out, length - len(data))
            if not piece:
                raise _DeadError("it ended without a result")
            data += piece
        return bytes(data)

    def death_reason(self) -> str:
        """Reason of the process's death; empty while it runs."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1)
            if code == -signal.SIGXCPU:
                return "it needs more CPU time than decoding is allowed"
            if code < 0:
                return f"the decoding process was ended by {signal.Signals(-code).name}"
            return f"the decoding process ended with code {code}"
        return ""

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else self.death_reason()

    def end(self) -> None:
        """Kills the process and releases its resources; may be called twice."""
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
