"""The tracks of one file; runs in the decoder process.

Each track is read through its own container, so that sequential tracks need no more memory than interleaved
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from av.audio.codeccontext import AudioCodecContext
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import InputContainer

CODECS = frozenset({
    "aac", "aac_latm", "ac3", "alac", "amrnb", "amrwb", "dca", "eac3", "evrc", "flac", "g723_1", "g728",
    "g729", "gsm", "gsm_ms", "ilbc", "mp1", "mp2", "mp3", "nellymoser", "opus", "qcelp", "qdm2", "qdmc",
    "sipr", "siren", "speex", "truespeech", "vorbis", "wavpack", "wmalossless", "wmapro", "wmav1", "wmav2",
    "wmavoice",
})  # fmt: skip
CODEC_FAMILIES = ("pcm_", "adpcm_", "mace")
SAMPLE_RATES = range(4_000, 768_001)
MAX_CHANNELS = 32
MAX_TRACKS = 32
UNTAGGED = frozenset({"", "und", "mis", "mul", "zxx"})
"""Language tags that name no language."""


class RefusedTrackError(Exception):
    """This input cannot be decoded; the text is for the user.

    `final`: the same decoder will always refuse it.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def check_shape(rate: int, channels: int) -> None:
    """Raises RefusedTrackError for an implausible sampling rate or number of channels."""
    if rate not in SAMPLE_RATES:
        raise RefusedTrackError(
            f"unsupported sampling rate of {rate} Hz: 4 to 768 kHz can be decoded", final=True
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise RefusedTrackError(f"{channels} channels: at most {MAX_CHANNELS} can be decoded", final=True)


def prepare_stream(stream: AudioStream) -> None:
    """Prepares a stream for decoding. Raises RefusedTrackError if it is unsupported."""
    codec: AudioCodecContext | None = stream.codec_context
    if codec is None:
        raise RefusedTrackError("unknown audio codec", final=True)
    name = codec.codec.canonical_name
    if not (name in CODECS or codec.name in CODECS or name.startswith(CODEC_FAMILIES)):
        raise RefusedTrackError(f"unsupported audio codec {name}", final=True)
    channels = _count_channels(codec)
    if codec.sample_rate:
        check_shape(codec.sample_rate, channels)
    codec.thread_count = 1


_LAYOUTS: list[AudioLayout] = []


def _count_channels(codec: AudioCodecContext) -> int:
    """Number of channels; leaves the layout of many to the decoder.

    PyAV frees a layout that the container states channel by channel once for every read of it. So the layout
    that is read here is kept alive, and replaced before any other read.
    """
    layout = codec.layout
    channels = layout.nb_channels
    if channels > 2:
        _LAYOUTS.append(layout)
        if not codec.is_open:
            codec.layout = f"{channels} channels"
    return channels


def find_decodable(container: InputContainer) -> tuple[list[int], bool]:
    """Indexes of decodable tracks, and True if there are others.

    Raises RefusedTrackError if there is none, or too many.
    """
    streams = container.streams.audio
    if not streams:
        raise RefusedTrackError("no audio track", final=True)
    if len(streams) > MAX_TRACKS:
        raise RefusedTrackError(f"{len(streams)} tracks: at most {MAX_TRACKS} can be decoded", final=True)
    places: list[int] = []
    refused: RefusedTrackError | None = None
    for place, stream in enumerate(streams):
        try:
            prepare_stream(stream)
            places.append(place)
        except RefusedTrackError as error:
            refused = refused or error
    if refused is not None and not places:
        raise refused
    return places, refused is not None


def group_tracks(languages: Sequence[str], *, split: bool) -> list[list[int]]:
    """Groups the tracks to mix: by language, or none together with `split`."""
    if split:
        return [[number] for number in range(len(languages))]
    if not has_several_languages(languages):
        return [list(range(len(languages)))]
    found: dict[str, list[int]] = {}
    for number, language in enumerate(languages):
        found.setdefault("" if language in UNTAGGED else language, []).append(number)
    return list(found.values())


def has_several_languages(languages: Sequence[str]) -> bool:
    """True if the tracks' tags name at least two languages."""
    return len(set(languages) - UNTAGGED) > 1
