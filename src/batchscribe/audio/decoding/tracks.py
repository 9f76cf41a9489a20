"""The tracks of one file: part of the decoder's own process.

Each track is read through a container of its own, so that tracks that lie one behind the other in the file
need no more memory than those that take turns.
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


class RefusedError(Exception):
    """This input is not decoded; the text is one line for the user.

    `final`: the same decoder will refuse it again, whatever the circumstances.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def check_shape(rate: int, channels: int) -> None:
    """Raises RefusedError for a sampling rate or a number of channels that no recorder writes."""
    if rate not in SAMPLE_RATES:
        raise RefusedError(f"a sampling rate of {rate} Hz: 4 to 768 kHz can be decoded", final=True)
    if not 1 <= channels <= MAX_CHANNELS:
        raise RefusedError(f"{channels} channels: at most {MAX_CHANNELS} can be decoded", final=True)


def prepare_stream(stream: AudioStream) -> None:
    """Makes it ready to be decoded. Raises RefusedError if it is not decoded."""
    codec: AudioCodecContext | None = stream.codec_context
    if codec is None:
        raise RefusedError("audio coded in a way that is not known here", final=True)
    name = codec.codec.canonical_name
    if not (name in CODECS or codec.name in CODECS or name.startswith(CODEC_FAMILIES)):
        raise RefusedError(f"audio coded as {name}, which is not decoded here", final=True)
    channels = _own_layout(codec)
    if codec.sample_rate:
        check_shape(codec.sample_rate, channels)
    codec.thread_count = 1


_LAYOUTS: list[AudioLayout] = []


def _own_layout(codec: AudioCodecContext) -> int:
    """The number of channels; the places of more than two are left to the decoder.

    PyAV frees a layout that the container wrote channel by channel once for every reader of it. So the one
    that is read here is kept, and replaced before anything else reads it.
    """
    layout = codec.layout
    channels = layout.nb_channels
    if channels > 2:
        _LAYOUTS.append(layout)
        if not codec.is_open:
            codec.layout = f"{channels} channels"
    return channels


def decodable(container: InputContainer) -> tuple[list[int], bool]:
    """The places of the tracks that can be decoded, and whether there are others.

    Raises RefusedError if there is none, or too many.
    """
    streams = container.streams.audio
    if not streams:
        raise RefusedError("no audio in it", final=True)
    if len(streams) > MAX_TRACKS:
        raise RefusedError(f"{len(streams)} tracks: at most {MAX_TRACKS} can be decoded", final=True)
    places: list[int] = []
    refused: RefusedError | None = None
    for place, stream in enumerate(streams):
        try:
            prepare_stream(stream)
            places.append(place)
        except RefusedError as error:
            refused = refused or error
    if refused is not None and not places:
        raise refused
    return places, refused is not None


def group_tracks(languages: Sequence[str], *, split: bool) -> list[list[int]]:
    """The tracks that are mixed with each other; languages are not mixed, with `split` no tracks are."""
    if split:
        return [[number] for number in range(len(languages))]
    if not of_several_languages(languages):
        return [list(range(len(languages)))]
    found: dict[str, list[int]] = {}
    for number, language in enumerate(languages):
        found.setdefault("" if language in UNTAGGED else language, []).append(number)
    return list(found.values())


def of_several_languages(languages: Sequence[str]) -> bool:
    """True if the tags of the tracks name at least two languages."""
    return len(set(languages) - UNTAGGED) > 1
