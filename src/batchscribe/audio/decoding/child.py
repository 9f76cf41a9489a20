"""The decoder process: bytes in, 16 kHz samples out, no other access.

Started as `python -I -m batchscribe.audio.decoding.child FD` in an empty folder and an empty environment. FD
is an anonymous file that the parent fills; each line on standard input is a request to decode its content.
Replies are frames on standard output: see `frames`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import IO

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from batchscribe.audio.decoding.clocks import NEAR, FileClock, Stated, format_names, stated_length
from batchscribe.audio.decoding.ends import LONGEST_FRAMES, is_cut_off, is_cut_through
from batchscribe.audio.decoding.frames import (
    AUDIO,
    END,
    ERROR,
    FINAL,
    HEADER,
    HELLO,
    SAMPLE_RATE,
    SPLIT_CHANNELS,
    START,
)
from batchscribe.audio.decoding.holes import Holes
from batchscribe.audio.decoding.parts import Part, find_parts, open_part
from batchscribe.audio.decoding.progress import DecodingProgress, TooLongError, check_part, conclude_input
from batchscribe.audio.decoding.resampling import Resampler
from batchscribe.audio.decoding.scale import guess_unit
from batchscribe.audio.decoding.tracks import (
    RefusedTrackError,
    check_shape,
    find_decodable,
    group_tracks,
    has_several_languages,
    prepare_stream,
)

MEMORY_BYTES = 2 * 1024**3
OPEN_FILES = 64
CONTAINERS = "matroska,webm,ogg,wav,w64,flac,mp3,mov,mp4,m4a,aac,avi,aiff,caf,amr,asf,au,voc,wv,ac3,eac3"
MAX_BAD_PACKETS = 10_000
TIMED = frozenset({"matroska", "mov", "ogg"})
"""Containers whose time stamps show the position of a piece in its recording."""
NUMBERED = TIMED | {"flac"}
"""Containers with stored time stamps, not ones that the reader counts."""
SLACK_SECONDS = 0.25
"""Difference to the stated length that priming, padding and rounding may cause without a loss."""


@dataclass(frozen=True)
class DecodeRequest:
    """Request for one input: most samples of a channel, and channel splitting."""

    max_samples: int
    split: bool


@dataclass
class Track:
    """One track during decoding: frames, and seconds of holes between them."""

    container: InputContainer
    stream: AudioStream
    sound: Iterator[AudioFrame | float]
    first: AudioFrame

    @property
    def language(self) -> str:
        return self.stream.language or ""

    @property
    def starts(self) -> float:
        """Begin of its audio, by the file's clock.

        The container states the begin of its packets, but codec or damage may leave out the first ones.
        """
        return self.first.time or 0.0 if TIMED & format_names(self.container) else 0.0


def decode_frames(
    container: InputContainer, stream: AudioStream, clock: FileClock | None, progress: DecodingProgress
) -> Iterator[AudioFrame]:
    """Yields decoded frames, skips damaged packets. Ends when the container becomes unreadable."""
    codec = stream.codec_context.codec.canonical_name
    longest = LONGEST_FRAMES.get(codec, sys.maxsize) if format_names(container) == {codec} else sys.maxsize
    last: Packet[Stream] | None = None
    try:
        for packet in container.demux(stream, *(clock.pictures if clock else ())):
            if clock is not None and packet.stream.index != stream.index:
                clock.note_picture(packet)
                continue
            if size := packet.size:
                last = packet
                progress.damaged |= size > longest
            try:
                decoded = [frame for frame in packet.decode() if isinstance(frame, AudioFrame)]
            except FFmpegError:
                progress.count_bad()
                if progress.bad > MAX_BAD_PACKETS:
                    return
                continue
            progress.good += len(decoded)
            yield from decoded
    except FFmpegError:
        progress.count_bad()
    progress.damaged |= last is not None and is_cut_through(bytes(last), codec)


def open_file(file: IO[bytes]) -> InputContainer:
    """Opens a file with the allow-lists."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": ""}
    return av.open(file, "r", container_options=options, metadata_errors="replace")


def decode_file(file: IO[bytes], request: DecodeRequest, out: Callable[[bytes, bytes], None]) -> None:
    """Sends beginning, pieces and conclusion. Raises RefusedTrackError, FFmpegError."""
    progress = DecodingProgress(request.max_samples, lambda data: out(AUDIO, data))
    parts, refused = find_parts(file), list[RefusedTrackError | FFmpegError]()
    ended: dict[str, object] = {"span": None, "tracks_missing": False}
    for part in parts:
        progress.begin_part()
        try:
            found = decode_part(file.fileno(), part, request, progress, out)
            ended["tracks_missing"] = ended["tracks_missing"] or found["tracks_missing"]
            # Only with a single recording: the audio of several is joined without their clocks.
            ended["span"] = found["span"] if len(parts) == 1 else None
        except TooLongError:
            raise
        except (RefusedTrackError, FFmpegError) as error:
            refused.append(error)
        progress.damaged |= part.leaves_out_sound(progress.part_seconds)
    if len(refused) == len(parts):
        raise refused[0]
    progress.damaged |= bool(refused)
    out(END, json.dumps(conclude_input(progress) | ended).encode())


def decode_part(
    descriptor: int,
    part: Part,
    request: DecodeRequest,
    progress: DecodingProgress,
    out: Callable[[bytes, bytes], None],
) -> dict[str, object]:
    """Sends the pieces of one recording. Raises RefusedTrackError, FFmpegError."""
    with ExitStack() as opened:

        def reopen() -> InputContainer:
            file = opened.enter_context(open_part(descriptor, part))
            return opened.enter_context(open_file(file))

        progress.damaged |= is_cut_off(opened.enter_context(open_part(descriptor, part)))
        container = reopen()
        clock = FileClock(container)
        places, left_out = find_decodable(container)
        tracks = list(begin_tracks(container, places, clock, progress, reopen))
        begins = min((track.starts for track in tracks), default=0.0)
        if tracks and not progress.begun:
            progress.begun = True
            opening = describe_beginning(tracks, begins - min(begins, clock.begins), request, progress)
            opening["unit"] = max(guess_unit(track.stream, reopen) for track in tracks)
            out(START, json.dumps(opening).encode())
        if tracks:
            send_tracks(tracks, begins, request, progress)
        check_part(progress)
        return {"span": clock.measure_span(begins, progress.part_seconds), "tracks_missing": left_out}


def begin_tracks(
    container: InputContainer,
    places: Sequence[int],
    clock: FileClock,
    progress: DecodingProgress,
    reopen: Callable[[], InputContainer],
) -> Iterator[Track]:
    """Yields each track with audio, decoded up to its first frame.

    The first one reads video packets, too.
    """
    for place in places:
        opened = container if place == places[0] else reopen()
        stream = opened.streams.audio[place]
        if opened is not container:
            prepare_stream(stream)
        stated = stated_length(opened, stream)
        if stated is not None and stated.least > progress.seconds_left:
            raise TooLongError(progress.max_samples)
        decoded = decode_frames(opened, stream, clock if opened is container else None, progress)
        sound = fill_holes(opened, decoded, progress, stated)
        first = next(sound, None)
        if isinstance(first, AudioFrame):
            check_shape(first.sample_rate, first.layout.nb_channels)
            yield Track(opened, stream, chain([first], sound), first)


def describe_beginning(
    tracks: Sequence[Track], lead: float, request: DecodeRequest, progress: DecodingProgress
) -> dict[str, object]:
    """Payload of START; `lead`: seconds of video before the first audio."""
    first = tracks[0]
    languages = [track.language for track in tracks]
    if len(tracks) > 1:
        progress.channels = len(group_tracks(languages, split=request.split))
    elif request.split:
        progress.channels = min(SPLIT_CHANNELS, first.first.layout.nb_channels)
    if not NEAR < lead <= progress.max_samples / SAMPLE_RATE:
        progress.damaged |= lead > NEAR
        lead = 0.0
    return {
        "position": min(track.starts for track in tracks) if TIMED & format_names(first.container) else None,
        "lead": lead,
        "rate": first.first.sample_rate,
        "channels": sum(track.first.layout.nb_channels for track in tracks),
        "sent": progress.channels,
        "apart": not request.split and has_several_languages(languages),
        "codec": first.stream.codec_context.codec.canonical_name,
    }


def send_tracks(
    tracks: Sequence[Track], begins: float, request: DecodeRequest, progress: DecodingProgress
) -> None:
    """Sends the audio of one track, or the mix of several."""
    if len(tracks) == 1 and progress.channels <= SPLIT_CHANNELS:
        send_track(tracks[0].sound, progress)
        return
    from batchscribe.audio.decoding.mixing import mix_tracks, read_samples  # noqa: PLC0415 - see resampling

    groups = group_tracks([track.language for track in tracks], split=request.split)
    if len(groups) != progress.channels:
        # The previous recording of the file had other tracks.
        groups = [[*range(len(tracks))]] * progress.channels
    sounds = [
        read_samples(resample_track(track.sound, 1, progress), track.starts - begins) for track in tracks
    ]
    for block in mix_tracks(sounds, groups):
        progress.add(len(block), block.tobytes())


def fill_holes(
    container: InputContainer,
    decoded: Iterator[AudioFrame],
    progress: DecodingProgress,
    stated: Stated | None,
) -> Iterator[AudioFrame | float]:
    """Yields frames and seconds of holes; marks missing audio as damage."""
    holes: Holes | None = None
    if NUMBERED & format_names(container):
        limit = progress.max_samples / SAMPLE_RATE
        holes = Holes(min(limit, limit if stated is None else stated.most + SLACK_SECONDS))
    seconds = 0.0
    for part in holes.fill(decoded) if holes else decoded:
        yield part
        seconds += part.samples / part.sample_rate if isinstance(part, AudioFrame) else part
    short = stated is not None and seconds < stated.least - SLACK_SECONDS
    progress.damaged |= short or bool(holes and holes.found)


def resample_track(
    sound: Iterable[AudioFrame | float], channels: int, progress: DecodingProgress
) -> Iterator[AudioFrame | int]:
    """Yields frames of 16 kHz, and in between the samples of holes."""
    resampler = Resampler(channels)
    for part in sound:
        if isinstance(part, AudioFrame):
            try:
                yield from resampler.push(part)
            except RefusedTrackError:
                # Only a damaged packet changes to such a shape, no recorder.
                progress.count_bad()
        else:
            yield from resampler.flush()
            yield round(part * SAMPLE_RATE)
    yield from resampler.flush()


def send_track(sound: Iterable[AudioFrame | float], progress: DecodingProgress) -> None:
    """Sends frames and holes of one track."""
    for part in resample_track(sound, progress.channels, progress):
        if isinstance(part, AudioFrame):
            progress.add_frame(part)
        else:
            progress.add_silence(part)


def limit_cpu(cpu_seconds: float) -> None:
    """Limits CPU time for the next file; the kernel enforces it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + cpu_seconds) + 1, resource.RLIM_INFINITY))


def confine_process() -> None:
    """Limits memory, open files and file sizes to what decoding needs."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def handle_request(line: str, fd: int, out: Callable[[bytes, bytes], None]) -> None:
    """Handles one request. Errors become replies; crashes and limits do not."""
    wanted = json.loads(line)
    limit_cpu(wanted["cpu_seconds"])
    request = DecodeRequest(int(wanted["max_seconds"] * SAMPLE_RATE), wanted["split"])
    try:
        with os.fdopen(os.dup(fd), "rb") as file:
            decode_file(file, request, out)
    except RefusedTrackError as error:
        out(FINAL if error.final else ERROR, str(error).encode())
    except MemoryError:
        out(ERROR, b"needs more memory than decoding is allowed")
    except BrokenPipeError:
        raise
    except EOFError:
        out(ERROR, b"it ends before any audio: empty, or only a header")
    except av.error.ArgumentError:
        # FFmpeg's error for a format that is not allow-listed.
        out(FINAL, b"not in a supported format")
    except FFmpegError as error:
        out(ERROR, f"not readable as audio: {error.strerror}".encode())
    except Exception as error:  # noqa: BLE001 - errors from hostile bytes are replies, not crashes
        out(ERROR, f"not readable as audio: {type(error).__name__} in the decoder".encode())


def main() -> None:
    fd = int(sys.argv[1])
    stdout = sys.stdout.buffer

    def out(kind: bytes, payload: bytes) -> None:
        stdout.write(HEADER.pack(kind, len(payload)) + payload)
        stdout.flush()

    confine_process()
    out(HELLO, f"pyav {av.__version__} / ffmpeg {av.ffmpeg_version_info}".encode())
    try:
        for line in sys.stdin:
            handle_request(line, fd, out)
    except (BrokenPipeError, KeyboardInterrupt):
        # The parent is gone or requested the end: no reply is possible.
        os._exit(0)


if __name__ == "__main__":
    main()
