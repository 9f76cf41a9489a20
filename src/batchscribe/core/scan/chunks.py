"""Chunks and sessions: the parser and builder of their names.

A session is the numbered files `chunk-NNN.ext` of one folder; any other audio file is its own session.
Transcripts are recognised at two paths: `transcription-<stem>.json` beside the audio, and the original
system's `layers/layer-0-raw-transcription/<stem>.json` below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from batchscribe.core.keys import digest

AUDIO_TYPES = frozenset({
    "3gp", "aac", "ac3", "aif", "aifc", "aiff", "amr", "asf", "au", "avi", "caf", "flac", "m4a", "m4b", "m4v",
    "mka", "mkv", "mov", "mp2", "mp3", "mp4", "mpga", "oga", "ogg", "ogv", "opus", "qt", "spx", "w64", "wav",
    "weba", "webm", "wma", "wmv", "wv",
})  # fmt: skip
PASSED_OVER = frozenset({
    "alaw", "aob", "ape", "awb", "ds2", "dsf", "dss", "dts", "dvf", "f4a", "f4v", "flv", "g722", "g723",
    "g729", "gsm", "m2ts", "mpc", "mpeg", "mpg", "msv", "mts", "mxf", "ra", "rm", "rmvb", "sln", "snd",
    "tak", "tta", "ulaw", "vob", "voc", "vox",
})  # fmt: skip
"""Unsupported extensions of sound and video; their files are counted, so that none is missed."""
TOP = "./"
"""The session of numbered chunks at the top level."""
NAME_BYTES = 255
"""Longest file name, in bytes, on common file systems."""
KEY_BYTES = 900
"""Longest key below the store's URL. S3 allows 1,024 bytes, including its prefix and our folders."""
HASH_DIGITS = 16
LAYER = "layers/layer-0-raw-transcription/"
_NUMBERED = re.compile(r"chunk-(\d+)")
_AFFIXES = len("transcription-.json")
_SHORT, _SHORT_FOLDER = 50, 150
"""Characters of a name and of a folder that fit into all limits, at up to 4 bytes each."""
_TAKEN = re.compile(r"transcript|(transcription|speakers)-.+", re.DOTALL)
"""Stems whose session files would collide with transcripts, voices, or the folder's session files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One audio object without a transcript."""

    key: str
    size: int
    modified: datetime
    etag: str
    session: str
    number: int | None
    transcript: str
    """Key of its transcript, relative to the output."""
    failures: int = 0
    """Failed attempts of its own with this ETag."""
    previously_failed: bool = False
    """It failed before, or was unavailable: it does not count towards the threshold."""
    retry_since: datetime | None = None
    """Begin of its wait for another attempt, if it may start a GPU again."""


class AudioName(msgspec.Struct, frozen=True, gc=False):
    """Parts of an audio key; `folder` is empty or ends in `/`.

    A struct for the same reason as ObjectInfo.
    """

    folder: str
    name: str
    stem: str
    type: str
    number: int | None
    """Of `chunk-NNN`; None for any other name."""

    @property
    def session(self) -> str:
        """The folder of a numbered chunk, with `/`; else the key."""
        if self.number is None:
            return self.folder + self.name
        return self.folder or TOP


def split_key(key: str) -> tuple[str, str]:
    """Splits a key into (folder, name), the folder with its slash."""
    folder, slash, name = key.rpartition("/")
    return folder + slash, name


def audio_name(key: str) -> AudioName | None:
    """Parses an audio key; None if its extension is not audio."""
    folder, name = split_key(key)
    stem, dot, extension = name.rpartition(".")
    kind = extension.lower()
    if not (dot and stem and kind in AUDIO_TYPES):
        return None
    numbered = _NUMBERED.fullmatch(stem)
    return AudioName(folder, name, stem, kind, int(numbered[1]) if numbered else None)


def passed_over(key: str) -> str | None:
    """The extension of an unsupported sound file; None for other keys."""
    stem, dot, extension = split_key(key)[1].rpartition(".")
    kind = extension.lower()
    return kind if dot and stem and kind in PASSED_OVER else None


def passed_over_text(counted: Mapping[str, int]) -> str:
    """Text such as `3 sound files passed over: 2 .dss, 1 .ra`."""
    total = sum(counted.values())
    each = ", ".join(
        f"{count} .{kind}" for kind, count in sorted(counted.items(), key=lambda one: (-one[1], one))
    )
    return f"{total} sound {'file' if total == 1 else 'files'} passed over: {each}" if total else ""


def parse_transcript_key(key: str) -> tuple[str, str] | None:
    """Parses a transcript key to (audio folder, stem or name)."""
    folder, name = split_key(key)
    if name.startswith("transcription-") and name.endswith(".json") and len(name) > _AFFIXES:
        return folder, name[14:-5]
    if folder.endswith("/" + LAYER) or folder == LAYER:
        stem, dot, extension = name.rpartition(".")
        if dot and extension == "json":
            return folder.removesuffix(LAYER), stem
    return None


def shorten_name(folder: str, text: str, affixes: str) -> str:
    """Shortens a text so that file name and key keep their limits.

    A shortened text ends in a hash of the whole text, so that different texts get different names.
    """
    if len(text) <= _SHORT and len(folder) <= _SHORT_FOLDER:
        return text
    room = min(NAME_BYTES, KEY_BYTES - len(folder.encode())) - len(affixes.encode())
    whole = text.encode()
    if len(whole) <= max(room, HASH_DIGITS + 1):
        return text
    mark = f"~{digest(text)[:HASH_DIGITS]}"
    return whole[: max(0, room - len(mark))].decode(errors="ignore") + mark


def transcript_name(folder: str, text: str) -> str:
    """A stem or file name as used in its transcript's name."""
    return shorten_name(folder, text, "transcription-.json")


def transcript_key(audio: AudioName, *, full_name: bool = False) -> str:
    """Key of the transcript; `full_name` if another file shares the stem."""
    name = transcript_name(audio.folder, audio.name if full_name else audio.stem)
    return f"{audio.folder}transcription-{name}.json"


def transcript_keys(audio: AudioName) -> tuple[str, ...]:
    """Possible keys of its transcript, ours or the original's; likeliest first."""
    ours = (transcript_key(audio), transcript_key(audio, full_name=True))
    return (*ours, f"{audio.folder}{LAYER}{audio.stem}.json")


def voices_key(transcript: str) -> str:
    """Key of the voices of a chunk, from its transcript's key."""
    folder, name = split_key(transcript)
    return f"{folder}speakers-{name.removeprefix('transcription-')}"


def session_stems(session: str) -> tuple[str, ...]:
    """Possible stems of a session's files, in order of preference.

    The first is `<folder>/transcript` or, for a single file, `<stem>`; the others are for names that foreign
    files have.
    """
    if session.endswith("/"):
        folder, plain, full = "" if session == TOP else session, "transcript", "transcript"
    else:
        folder, name = split_key(session)
        stem = name.rpartition(".")[0]
        plain, full = (f"session-{name}",) * 2 if _TAKEN.fullmatch(stem) else (stem, name)
    aside = shorten_name(folder, full, ".batchscribe.json") + ".batchscribe"
    stems = (shorten_name(folder, plain, ".json"), shorten_name(folder, full, ".json"), aside)
    return tuple(folder + stem for stem in dict.fromkeys(stems))


def show_session(session: str) -> str:
    """A session's name for users: a folder without its slash."""
    return "." if session == TOP else session.removesuffix("/")


def session_id(name: str) -> str:
    """Session id of a user's input: a folder gets its slash."""
    audio = audio_name(name)
    if audio is not None and audio.number is None:
        return name
    return TOP if name in {".", "./", ""} else name.rstrip("/") + "/"
