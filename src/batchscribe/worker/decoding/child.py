"""The decoder's own process: bytes in, 16 kHz samples out, nothing else within reach.

Started as `python -I -m batchscribe.worker.decoding.child FD` in an empty folder and an empty
environment. FD is an anonymous file that the parent fills; each line on standard input is an order
to decode what is in it. Answers are frames on standard output: see `frames`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet

from batchscribe.worker.decoding.ends import cut_off, mp3_cut_off
from batchscribe.worker.decoding.frames import (
    AUDIO,
    END,
    ERROR,
    HEADER,
    HELLO,
    SPLIT_CHANNELS,
    START,
    channels_sent,
)
from batchscribe.worker.decoding.holes import Holes
from batchscribe.worker.decoding.parts import find_parts, open_part
from batchscribe.worker.decoding.progress import (
    SAMPLE_RATE,
    SLACK_SECONDS,
    Progress,
    RefusedError,
    TooLongError,
    check_part,
    conclude,
    too_long,
)

MEMORY_BYTES = 2 * 1024**3
OPEN_FILES = 64
CONTAINERS = "matroska,webm,ogg,wav,flac,mp3,mov,mp4,m4a,aac,avi"
CODECS = frozenset({"aac", "ac3", "alac", "amrnb", "amrwb", "eac3", "flac", "mp2", "mp3", "opus", "vorbis"})
CODEC_FAMILIES = ("pcm_", "adpcm_")
SAMPLE_RATES = range(8_000, 192_001)
MAX_CHANNELS = 8
MAX_BAD_PACKETS = 10_000
EXACT = frozenset({"matroska", "mov", "wav", "flac", "avi"})
"""Containers that state their length, rather than having it guessed from the bit rate."""
TIMED = frozenset({"matroska", "mov", "ogg"})
"""Containers whose time stamps say where in its recording a piece belongs."""
NUMBERED = TIMED | {"flac"}
"""Containers whose time stamps are written down, and not counted by whoever reads them."""


GATHERED_SAMPLES = 9600
"""So many of the file's own rate are resampled at once: a call costs more than 20 ms of sound."""


@dataclass(frozen=True)
class Order:
    """What is wanted of one input: at most so many samples of each channel, and two channels apart."""

    max_samples: int
    split: bool


class Resampler:
    """To 16 kHz float32 of one channel or two, whatever arrives; a stream may change its shape on the way.

    More channels than are wanted are mixed, not left out: the voice may be in the middle one.
    """

    def __init__(self, channels: int) -> None:
        self._layout = {1: "mono", SPLIT_CHANNELS: "stereo"}[channels]
        self._shape: tuple[object, ...] = ()
        self._inner: AudioResampler | None = None
        self._gathered = AudioFifo()

    def push(self, frame: AudioFrame) -> Iterator[AudioFrame]:
        """Raises RefusedError for a shape that is not decoded."""
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:
            check_shape(frame.sample_rate, frame.layout.nb_channels)
            yield from self.flush()
            self._shape = shape
            self._inner = AudioResampler(format="flt", layout=self._layout, rate=SAMPLE_RATE)
        # Samples are counted here: `Holes` has looked at the time stamps.
        frame.pts = None
        self._gathered.write(frame)
        if self._gathered.samples >= GATHERED_SAMPLES:
            yield from self._resampled()

    def flush(self) -> Iterator[AudioFrame]:
        if self._inner is not None:
            yield from self._resampled()
            yield from self._inner.resample(None)
        self._inner, self._shape, self._gathered = None, (), AudioFifo()

    def _resampled(self) -> list[AudioFrame]:
        gathered = self._gathered.read()
        return self._inner.resample(gathered) if self._inner and gathered else []


def check_shape(rate: int, channels: int) -> None:
    """Raises RefusedError for a sampling rate or a number of channels that no recorder writes."""
    if rate not in SAMPLE_RATES:
        raise RefusedError(f"a sampling rate of {rate} Hz: 8 to 192 kHz can be decoded")
    if not 1 <= channels <= MAX_CHANNELS:
        raise RefusedError(f"{channels} channels: at most {MAX_CHANNELS} can be decoded")


def audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream, checked. Raises RefusedError."""
    if not container.streams.audio:
        raise RefusedError("no audio in it")
    stream = container.streams.audio[0]
    codec: AudioCodecContext | None = stream.codec_context
    if codec is None:
        raise RefusedError("audio coded in a way that is not known here")
    name = codec.codec.canonical_name
    if not (name in CODECS or codec.name in CODECS or name.startswith(CODEC_FAMILIES)):
        raise RefusedError(f"audio coded as {name}, which is not decoded here")
    if codec.sample_rate:
        check_shape(codec.sample_rate, codec.channels)
    codec.thread_count = 1
    return stream


def names(container: InputContainer) -> frozenset[str]:
    """Of its format: it may have several."""
    return frozenset(container.format.name.split(","))


def stated_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The length that the container states for the audio; None where it states none."""
    if not EXACT & names(container):
        return None
    if stream.duration and stream.time_base:
        # Of a fragment FFmpeg states where its recording stands when it ends.
        return float((stream.duration - max(0, stream.start_time or 0)) * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return float(container.duration / av.time_base)
    return None


def beginning(container: InputContainer, stream: AudioStream, first: AudioFrame) -> dict[str, object]:
    """How the sound begins, by its first frame: what the container says of its start is about packets, of
    which a codec leaves out the first part, or damage all of them.
    """
    timed = TIMED & names(container)
    return {
        "position": first.time if timed else None,
        "rate": first.sample_rate,
        "channels": first.layout.nb_channels,
        "codec": stream.codec_context.codec.canonical_name,
    }


def frames(container: InputContainer, stream: AudioStream, progress: Progress) -> Iterator[AudioFrame]:
    """Decoded frames, past damaged packets. Ends where the container can be read no further."""
    last: Packet[AudioStream] | None = None
    try:
        for packet in container.demux(stream):
            last = packet if packet.size else last
            try:
                decoded = packet.decode()
            except FFmpegError:
                progress.count_bad()
                if progress.bad > MAX_BAD_PACKETS:
                    return
                continue
            progress.good += len(decoded)
            yield from decoded
    except FFmpegError:
        progress.count_bad()
    progress.damaged |= last is not None and mp3_cut_off(
        bytes(last), stream.codec_context.codec.canonical_name
    )


def decode(file: IO[bytes], order: Order, out: Callable[[bytes, bytes], None]) -> None:
    """Sends how it begins, the pieces of all its recordings, and how it ended.

    Raises RefusedError, FFmpegError.
    """
    progress = Progress(order.max_samples, lambda data: out(AUDIO, data))
    refused: list[RefusedError | FFmpegError] = []
    parts = find_parts(file)
    for part in parts:
        progress.begin_part()
        try:
            with open_part(file.fileno(), part) as opened:
                decode_part(opened, order, progress, out)
        except TooLongError:
            raise
        except (RefusedError, FFmpegError) as error:
            refused.append(error)
        progress.damaged |= part.leaves_out_sound(progress.part_seconds)
    if len(refused) == len(parts):
        raise refused[0]
    progress.damaged |= bool(refused)
    out(END, json.dumps(conclude(progress)).encode())


def decode_part(
    file: IO[bytes], order: Order, progress: Progress, out: Callable[[bytes, bytes], None]
) -> None:
    """Sends the pieces of one recording. Raises RefusedError, FFmpegError."""
    progress.damaged |= cut_off(file)
    file.seek(0)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    with av.open(file, "r", container_options=options, metadata_errors="replace") as container:
        stream = audio_stream(container)
        stated = stated_seconds(container, stream)
        if stated is not None and stated > (order.max_samples - progress.samples) / SAMPLE_RATE:
            raise TooLongError(too_long(order.max_samples))
        sound = whole(container, frames(container, stream, progress), progress, stated)
        first = next(sound, None)
        if isinstance(first, AudioFrame):
            check_shape(first.sample_rate, first.layout.nb_channels)
            if not progress.begun:
                progress.begun = True
                out(START, json.dumps(beginning(container, stream, first)).encode())
                progress.channels = channels_sent(first.layout.nb_channels, split=order.split)
            resample(chain([first], sound), progress)
    check_part(progress, stated)


def whole(
    container: InputContainer, decoded: Iterator[AudioFrame], progress: Progress, stated: float | None
) -> Iterator[AudioFrame | float]:
    """Frames, and in between the seconds of holes to be filled."""
    if not NUMBERED & names(container):
        yield from decoded
        return
    limit = progress.max_samples / SAMPLE_RATE
    holes = Holes(min(limit, limit if stated is None else stated + SLACK_SECONDS))
    for frame in decoded:
        yield from holes.push(frame)
    yield from holes.flush()
    progress.damaged |= holes.found


def resample(sound: Iterable[AudioFrame | float], progress: Progress) -> None:
    """Adds frames and holes to what is sent."""
    resampler = Resampler(progress.channels)
    for part in sound:
        if isinstance(part, AudioFrame):
            try:
                progress.add_all(resampler.push(part))
            except TooLongError:
                raise
            except RefusedError:
                # No recorder changes to such a shape: a damaged packet does.
                progress.count_bad()
        else:
            progress.add_all(resampler.flush())
            progress.add_silence(round(part * SAMPLE_RATE))
    progress.add_all(resampler.flush())


def limit(cpu_seconds: float) -> None:
    """Bounds the next file's computing time; it ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + cpu_seconds) + 1, resource.RLIM_INFINITY))


def confine() -> None:
    """Memory, files and sizes that decoding never needs are out of reach from here on."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(line: str, fd: int, out: Callable[[bytes, bytes], None]) -> None:
    """Carries out one order. Every refusal is an answer; only a crash or a limit ends the process."""
    wanted = json.loads(line)
    limit(wanted["cpu_seconds"])
    order = Order(int(wanted["max_seconds"] * SAMPLE_RATE), wanted["split"])
    try:
        with os.fdopen(os.dup(fd), "rb") as file:
            decode(file, order, out)
    except RefusedError as error:
        out(ERROR, str(error).encode())
    except MemoryError:
        out(ERROR, b"needs more memory than decoding is given")
    except BrokenPipeError:
        raise
    except EOFError:
        out(ERROR, b"it ends before any sound: empty, or only a header")
    except av.error.ArgumentError:
        # What FFmpeg answers for a format that is not on the list.
        out(ERROR, b"not in a format that is decoded here")
    except FFmpegError as error:
        out(ERROR, f"not readable as audio: {error.strerror}".encode())
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes provoke is an answer, not a crash
        out(ERROR, f"not readable as audio: {type(error).__name__} in the decoder".encode())


def main() -> None:
    fd = int(sys.argv[1])
    stdout = sys.stdout.buffer

    def out(kind: bytes, payload: bytes) -> None:
        stdout.write(HEADER.pack(kind, len(payload)) + payload)
        stdout.flush()

    confine()
    out(HELLO, f"pyav {av.__version__} / ffmpeg {av.ffmpeg_version_info}".encode())
    try:
        for line in sys.stdin:
            answer(line, fd, out)
    except (BrokenPipeError, KeyboardInterrupt):
        # The parent is gone or asked for the end: nobody is left to tell.
        os._exit(0)


if __name__ == "__main__":
    main()
