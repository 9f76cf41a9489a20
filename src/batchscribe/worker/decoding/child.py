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
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import IO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from batchscribe.worker.decoding.clocks import NEAR, FileClock, Stated, names, stated_length
from batchscribe.worker.decoding.ends import cut_off, mp3_cut_off
from batchscribe.worker.decoding.frames import (
    AUDIO,
    BYTES_PER_SAMPLE,
    END,
    ERROR,
    FINAL,
    HEADER,
    HELLO,
    PIECE_SAMPLES,
    SAMPLE_RATE,
    SPLIT_CHANNELS,
    START,
)
from batchscribe.worker.decoding.holes import Holes
from batchscribe.worker.decoding.resampling import Resampler
from batchscribe.worker.decoding.scale import guess_unit
from batchscribe.worker.decoding.tracks import (
    Reader,
    RefusedError,
    check_shape,
    decodable,
    group_tracks,
    of_several_languages,
    prepare_stream,
)

PIECE_BYTES = PIECE_SAMPLES * BYTES_PER_SAMPLE
MEMORY_BYTES = 2 * 1024**3
OPEN_FILES = 64
CONTAINERS = "matroska,webm,ogg,wav,w64,flac,mp3,mov,mp4,m4a,aac,avi,aiff,caf,amr,asf,au,voc,wv,ac3,eac3"
MAX_BAD_PACKETS = 10_000
TIMED = frozenset({"matroska", "mov", "ogg"})
"""Containers whose time stamps say where in its recording a piece belongs."""
NUMBERED = TIMED | {"flac"}
"""Containers whose time stamps are written down, and not counted by whoever reads them."""
SLACK_SECONDS = 0.25
"""What priming, padding and rounding may take from the stated length without anything being lost."""


LOUDEST = 2.0**31
"""No sound, whatever unit its writer had in mind; the squares of larger numbers are soon not finite."""
SANE = bytes(byte for byte in range(256) if byte & 0x7F < 0x4F)
"""Highest bytes of float32: sign and most of the exponent of what is less than LOUDEST."""


@dataclass(frozen=True)
class Order:
    """What is wanted of one input: at most so many samples of each channel, and two channels apart."""

    max_samples: int
    split: bool


@dataclass
class Progress:
    """What has been decoded of one input so far."""

    max_samples: int
    send: Callable[[bytes], None]
    channels: int = 1
    """Of what is sent. Samples are counted once for all of them, but those that are no numbers."""
    samples: int = 0
    good: int = 0
    bad: int = 0
    not_numbers: int = 0
    damaged: bool = False
    pending: bytearray = field(default_factory=bytearray)

    def add_frame(self, frame: AudioFrame) -> None:
        """Counts and sends a resampled frame. Raises RefusedError beyond the limit."""
        size = frame.samples * BYTES_PER_SAMPLE * self.channels
        self.add(frame.samples, memoryview(frame.planes[0])[:size])

    def add_silence(self, samples: int) -> None:
        """The same for a hole."""
        for begin in range(0, samples, PIECE_SAMPLES):
            some = min(PIECE_SAMPLES, samples - begin)
            self.add(some, bytes(some * BYTES_PER_SAMPLE * self.channels))

    def add(self, samples: int, data: bytes | memoryview) -> None:
        """Counts and sends samples. Raises RefusedError beyond the limit."""
        self.samples += samples
        if self.samples > self.max_samples:
            raise RefusedError(too_long(self.max_samples))
        self.pending += data
        while len(self.pending) >= PIECE_BYTES * self.channels:
            self.flush()

    def flush(self) -> None:
        """Sends one piece, or the rest."""
        size = PIECE_BYTES * self.channels
        if self.pending:
            self.send(self.finite(bytes(self.pending[:size])))
        del self.pending[:size]

    def finite(self, piece: bytes) -> bytes:
        """Silence for every sample that is no sound: one alone would spoil all 30 s around it."""
        # The highest byte tells: a sum over all samples would take as long as the resampling.
        if not piece[BYTES_PER_SAMPLE - 1 :: BYTES_PER_SAMPLE].translate(None, SANE):
            return piece
        samples = array("f", piece)
        for place, sample in enumerate(samples):
            # Turned around it would be true of what is not a number.
            if not abs(sample) < LOUDEST:
                samples[place] = 0.0
                self.not_numbers += 1
        return samples.tobytes()


def too_long(max_samples: int) -> str:
    return f"longer than the limit of {max_samples / SAMPLE_RATE / 3600:g} hours of audio"


@dataclass
class Track:
    """One track of the file while it is decoded: frames, and in between the seconds of holes to be filled."""

    container: InputContainer
    stream: AudioStream
    sound: Iterator[AudioFrame | float]
    first: AudioFrame

    @property
    def language(self) -> str:
        return self.stream.language or ""

    @property
    def starts(self) -> float:
        """When its sound begins, by the file's clock. What the container states of that is about packets, of
        which a codec leaves out the first part, or damage all of them.
        """
        return self.first.time or 0.0 if TIMED & names(self.container) else 0.0


def frames(
    container: InputContainer, stream: AudioStream, clock: FileClock | None, progress: Progress
) -> Iterator[AudioFrame]:
    """Decoded frames, past damaged packets. Ends where the container can be read no further."""
    last: Packet[Stream] | None = None
    try:
        for packet in container.demux(stream, *(clock.pictures if clock else ())):
            if clock is not None and packet.stream.index != stream.index:
                clock.note(packet)
                continue
            last = packet if packet.size else last
            try:
                decoded = [frame for frame in packet.decode() if isinstance(frame, AudioFrame)]
            except FFmpegError:
                progress.bad += 1
                if progress.bad > MAX_BAD_PACKETS:
                    return
                continue
            progress.good += len(decoded)
            yield from decoded
    except FFmpegError:
        progress.bad += 1
    progress.damaged |= last is not None and mp3_cut_off(
        bytes(last), stream.codec_context.codec.canonical_name
    )


def open_file(file: Reader) -> InputContainer:
    """Opens it with the allow-lists."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    return av.open(file, "r", container_options=options, metadata_errors="replace")


def decode(file: IO[bytes], order: Order, out: Callable[[bytes, bytes], None]) -> None:
    """Sends how it begins, the pieces, and how it ended. Raises RefusedError, FFmpegError."""
    progress = Progress(order.max_samples, lambda data: out(AUDIO, data), damaged=cut_off(file))
    with ExitStack() as opened:

        def reopen() -> InputContainer:
            return opened.enter_context(open_file(Reader(file.fileno())))

        container = reopen()
        clock = FileClock(container)
        places, left_out = decodable(container)
        tracks = list(begin_tracks(container, places, clock, progress, reopen))
        begins = min((track.starts for track in tracks), default=0.0)
        if tracks:
            opening = beginning(tracks, begins - min(begins, clock.begins), order, progress)
            opening["unit"] = max(guess_unit(track.stream, reopen) for track in tracks)
            out(START, json.dumps(opening).encode())
            send(tracks, begins, order, progress)
        ended = conclude(progress)
        span = clock.span(begins, progress.samples / SAMPLE_RATE)
    out(END, json.dumps(ended | {"span": span, "tracks_missing": left_out}).encode())


def begin_tracks(
    container: InputContainer,
    places: Sequence[int],
    clock: FileClock,
    progress: Progress,
    reopen: Callable[[], InputContainer],
) -> Iterator[Track]:
    """Each track that has a sound, up to its first frame; the pictures pass by with the first track."""
    for place in places:
        opened = container if place == places[0] else reopen()
        stream = opened.streams.audio[place]
        if opened is not container:
            prepare_stream(stream)
        stated = stated_length(opened, stream)
        if stated is not None and stated.least > progress.max_samples / SAMPLE_RATE:
            raise RefusedError(too_long(progress.max_samples))
        decoded = frames(opened, stream, clock if opened is container else None, progress)
        sound = whole(opened, decoded, progress, stated)
        first = next(sound, None)
        if isinstance(first, AudioFrame):
            check_shape(first.sample_rate, first.layout.nb_channels)
            yield Track(opened, stream, chain([first], sound), first)


def beginning(tracks: Sequence[Track], lead: float, order: Order, progress: Progress) -> dict[str, object]:
    """What START says, see `audio.Beginning`; `lead` is how long the pictures run before the first sound."""
    first = tracks[0]
    languages = [track.language for track in tracks]
    if len(tracks) > 1:
        progress.channels = len(group_tracks(languages, split=order.split))
    elif order.split:
        progress.channels = min(SPLIT_CHANNELS, first.first.layout.nb_channels)
    if not NEAR < lead <= progress.max_samples / SAMPLE_RATE:
        progress.damaged |= lead > NEAR
        lead = 0.0
    return {
        "position": min(track.starts for track in tracks) if TIMED & names(first.container) else None,
        "lead": lead,
        "rate": first.first.sample_rate,
        "channels": sum(track.first.layout.nb_channels for track in tracks),
        "sent": progress.channels,
        "apart": not order.split and of_several_languages(languages),
        "codec": first.stream.codec_context.codec.canonical_name,
    }


def send(tracks: Sequence[Track], begins: float, order: Order, progress: Progress) -> None:
    """Sends the sound of one track, or the mix of several."""
    if len(tracks) == 1:
        resample(tracks[0].sound, progress)
        return
    from batchscribe.worker.decoding.mixing import mix_tracks, samples_of  # noqa: PLC0415 - see resampling

    groups = group_tracks([track.language for track in tracks], split=order.split)
    sounds = [samples_of(resampled(track.sound, 1), track.starts - begins) for track in tracks]
    for block in mix_tracks(sounds, groups):
        progress.add(len(block), block.tobytes())


def whole(
    container: InputContainer, decoded: Iterator[AudioFrame], progress: Progress, stated: Stated | None
) -> Iterator[AudioFrame | float]:
    """Frames, and in between the seconds of holes to be filled."""
    holes: Holes | None = None
    if NUMBERED & names(container):
        limit = progress.max_samples / SAMPLE_RATE
        holes = Holes(min(limit, limit if stated is None else stated.most + SLACK_SECONDS))
    seconds = 0.0
    for part in holes.fill(decoded) if holes else decoded:
        yield part
        seconds += part.samples / part.sample_rate if isinstance(part, AudioFrame) else part
    short = stated is not None and seconds < stated.least - SLACK_SECONDS
    progress.damaged |= short or bool(holes and holes.found)


def resampled(sound: Iterable[AudioFrame | float], channels: int) -> Iterator[AudioFrame | int]:
    """Frames of 16 kHz, and in between the samples of holes."""
    resampler = Resampler(channels)
    for part in sound:
        if isinstance(part, AudioFrame):
            yield from resampler.push(part)
        else:
            yield from resampler.flush()
            yield round(part * SAMPLE_RATE)
    yield from resampler.flush()


def resample(sound: Iterable[AudioFrame | float], progress: Progress) -> None:
    """Adds frames and holes to what is sent."""
    for part in resampled(sound, progress.channels):
        if isinstance(part, AudioFrame):
            progress.add_frame(part)
        else:
            progress.add_silence(part)


def conclude(progress: Progress) -> dict[str, object]:
    """Length in seconds, and whether some of it is lost. Raises RefusedError if nothing is sound."""
    if not progress.samples:
        raise RefusedError("no sound could be decoded from it")
    if progress.bad > progress.good:
        raise RefusedError("too damaged: more of it is broken than sound")
    progress.flush()
    if 2 * progress.not_numbers > progress.samples * progress.channels:
        raise RefusedError("too damaged: most of its samples are not numbers")
    damaged = bool(progress.damaged or progress.bad or progress.not_numbers)
    return {"seconds": progress.samples / SAMPLE_RATE, "partial": damaged}


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
        out(FINAL if error.final else ERROR, str(error).encode())
    except MemoryError:
        out(ERROR, b"needs more memory than decoding is given")
    except BrokenPipeError:
        raise
    except EOFError:
        out(ERROR, b"it ends before any sound: empty, or only a header")
    except av.error.ArgumentError:
        # What FFmpeg answers for a format that is not on the list.
        out(FINAL, b"not in a format that is decoded here")
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
