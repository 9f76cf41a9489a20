"""Splits a sorted listing into folders: each audio object with its transcripts.

Everything below `prefix/` is contiguous in key order, so a folder is complete when a key outside it appears;
only the chain of open folders is held in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from itertools import repeat

import msgspec
from msgspec import structs

from batchscribe.core.keys import CONTROL
from batchscribe.core.objects import TRANSCRIPT_BYTES, ObjectInfo
from batchscribe.core.scan.chunks import (
    AudioName,
    audio_name,
    parse_transcript_key,
    transcript_key,
    transcript_name,
)


class Side(Enum):
    """The store of a listed object; `BOTH` if output is the source."""

    SOURCE = "source"
    OUTPUT = "output"
    BOTH = "both"


Tagged = tuple[Side, ObjectInfo]
Owner = Callable[[str], str | None]
"""Maps a transcript's key to the audio file name in its content; None if it has none."""


class AudioObject(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One audio object of the source."""

    info: ObjectInfo
    name: AudioName
    transcripts: tuple[Tagged, ...]
    """Its transcripts, in either store."""
    full_name: bool = False
    """Its transcript is named after the whole file name, not only after the stem."""
    blank: tuple[Tagged, ...] = ()
    """Transcripts of 0 bytes: the chunk counts as not transcribed."""
    gap: timedelta | None = None
    """Upload time of a session's last chunk after the previous one; None for all other chunks, and if nothing
    in the folder is left to do."""

    @property
    def planned(self) -> str:
        """Key of its transcript, relative to the output."""
        return transcript_key(self.name, full_name=self.full_name)

    @property
    def newest(self) -> Tagged | None:
        """The transcript for its session file."""
        if len(self.transcripts) > 1:
            return max(self.transcripts, key=lambda tagged: tagged[1].modified)
        return self.transcripts[0] if self.transcripts else None

    @property
    def stale(self) -> bool:
        """True if it is newer than each of its transcripts."""
        newest = self.newest
        return newest is not None and self.info.modified > newest[1].modified

    @property
    def oversized(self) -> bool:
        """True if its transcript is too large to be read."""
        return self.newest is not None and self.newest[1].size > TRANSCRIPT_BYTES


@dataclass(slots=True)
class _Folder:
    path: str
    audio: list[tuple[AudioName, ObjectInfo]] = field(default_factory=list)
    transcripts: dict[str, list[Tagged]] = field(default_factory=dict)
    """By the audio's stem or file name."""
    blank: dict[str, list[Tagged]] = field(default_factory=dict)
    """Transcripts of 0 bytes, likewise."""


def merge_listings(
    source: Iterable[ObjectInfo], output: Iterable[ObjectInfo] | None = None
) -> Iterator[Tagged]:
    """Merges two listings in key order; `output` is None for one store."""
    if output is None:
        return zip(repeat(Side.BOTH), source)
    return heapq.merge(
        zip(repeat(Side.SOURCE), source),
        zip(repeat(Side.OUTPUT), output),
        key=lambda tagged: tagged[1].key,
    )


def audio_folders(
    listing: Iterable[Tagged], owner: Owner, leave_out: Callable[[str], None] = lambda _key: None
) -> Iterator[list[AudioObject]]:
    """Yields each folder's audio objects, in key order, nested folders first.

    Skips control objects, and audio outside the source. `leave_out` gets every other key of the source that
    is neither audio nor a transcript.
    """
    opened: list[_Folder] = []
    for side, info in listing:
        key = info.key
        if key.startswith(CONTROL):
            continue
        audio = None if key.endswith(".json") else audio_name(key)
        subject = parse_transcript_key(key) if audio is None else None
        if (audio is None or side is Side.OUTPUT) and subject is None:
            if side is not Side.OUTPUT:
                leave_out(key)
            continue
        if opened and not key.startswith(opened[-1].path):
            yield from _close_folders(opened, key, owner)
        if audio is not None:
            _open_folder(opened, audio.folder).audio.append((audio, info))
        elif subject is not None:
            folder = _open_folder(opened, subject[0])
            kind = folder.transcripts if info.size else folder.blank
            kind.setdefault(subject[1], []).append((side, info))
    yield from _close_folders(opened, None, owner)


def _close_folders(opened: list[_Folder], key: str | None, owner: Owner) -> Iterator[list[AudioObject]]:
    while opened and (key is None or not key.startswith(opened[-1].path)):
        folder = opened.pop()
        if folder.audio:
            yield _audio_objects(folder, owner)


def _open_folder(opened: list[_Folder], path: str) -> _Folder:
    """Returns the folder of that path among the nested open ones."""
    if opened and opened[-1].path == path:
        return opened[-1]
    at = len(opened)
    while at and len(opened[at - 1].path) > len(path):
        at -= 1
    if not at or opened[at - 1].path != path:
        opened.insert(at, _Folder(path))
        at += 1
    return opened[at - 1]


def _audio_objects(folder: _Folder, owner: Owner) -> list[AudioObject]:
    stems: dict[str, list[tuple[AudioName, ObjectInfo]]] = {}
    for audio in folder.audio:
        stems.setdefault(audio[0].stem, []).append(audio)
    found: list[AudioObject] = []
    for stem, group in stems.items():
        if len(group) == 1:
            found.append(_match_only_file(folder, *group[0]))
        else:
            found += _match_stem(folder, stem, group, owner)
    if len(stems) != len(folder.audio):
        found.sort(key=lambda audio: audio.info.key)
    # Most folders of a large bucket are done, and need no gap.
    return found if all(audio.transcripts for audio in found) else _with_gap(found)


def _with_gap(found: list[AudioObject]) -> list[AudioObject]:
    """Sets the gap of the chunk with the highest number."""
    uploaded: dict[int, datetime] = {}
    for audio in found:
        if (number := audio.name.number) is not None:
            uploaded[number] = max(audio.info.modified, uploaded.get(number, audio.info.modified))
    if not uploaded:
        return found
    last = max(uploaded)
    at = uploaded.pop(last)
    gap = max(timedelta(0), at - uploaded[max(uploaded)]) if uploaded else timedelta(0)
    return [structs.replace(audio, gap=gap) if audio.name.number == last else audio for audio in found]


def _match_only_file(folder: _Folder, name: AudioName, info: ObjectInfo) -> AudioObject:
    """As `_match_stem`, for a file that shares its stem with none."""
    is_name = "." in name.stem and audio_name(name.stem) is not None
    plain = [] if is_name else _find_transcripts(folder, folder.transcripts, name.stem)
    return AudioObject(
        info=info,
        name=name,
        transcripts=(*_find_transcripts(folder, folder.transcripts, name.name), *plain),
        blank=_find_blank(folder, name, plain=not is_name) if folder.blank else (),
        full_name=is_name,
    )


def _match_stem(
    folder: _Folder, stem: str, group: list[tuple[AudioName, ObjectInfo]], owner: Owner
) -> Iterator[AudioObject]:
    """Assigns the transcripts of files that share a stem."""
    # If a stem is itself an audio file's name: `transcription-a.mp3.json` belongs to a.mp3, never to
    # a.mp3.wav, even if a.mp3 does not exist.
    is_name = "." in stem and audio_name(stem) is not None
    plain = [] if is_name else _find_transcripts(folder, folder.transcripts, stem)
    owners = [owner(tagged[1].key) or _first_filled(group) for tagged in plain]
    designated = owners[0] if owners else None if is_name else _first_filled(group)
    for name, info in group:
        own = [tagged for tagged, file in zip(plain, owners, strict=True) if file == name.name]
        yield AudioObject(
            info=info,
            name=name,
            transcripts=(*_find_transcripts(folder, folder.transcripts, name.name), *own),
            blank=_find_blank(folder, name, plain=name.name == designated) if folder.blank else (),
            full_name=name.name != designated,
        )


def _find_blank(folder: _Folder, name: AudioName, *, plain: bool) -> tuple[Tagged, ...]:
    full = _find_transcripts(folder, folder.blank, name.name)
    return (*full, *(_find_transcripts(folder, folder.blank, name.stem) if plain else ()))


def _find_transcripts(folder: _Folder, index: dict[str, list[Tagged]], text: str) -> list[Tagged]:
    """Transcripts of a stem or a file name, whole or shortened."""
    if not index:
        return []
    found, short = index.get(text, []), transcript_name(folder.path, text)
    return found if short == text else found + index.get(short, [])


def _first_filled(group: list[tuple[AudioName, ObjectInfo]]) -> str:
    """The first file by key that is not empty."""
    return next((name.name for name, info in group if info.size), group[0][0].name)
