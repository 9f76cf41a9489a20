"""A sorted listing, folder by folder: each audio object with the transcripts that speak for it.

Everything below `prefix/` is contiguous in key order, so a folder is whole as soon as a key outside
it appears; what is held is the chain of folders that are still open.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from batchscribe.core.keys import CONTROL
from batchscribe.core.objects import TRANSCRIPT_BYTES, ObjectInfo
from batchscribe.core.scan.chunks import AudioName, audio_name, transcribed, transcript_key, transcript_name


class Side(Enum):
    """Which store an object was listed in; `BOTH` where source and output are the same one."""

    SOURCE = "source"
    OUTPUT = "output"
    BOTH = "both"


Tagged = tuple[Side, ObjectInfo]
Owner = Callable[[str], str | None]
"""From a transcript's key to the name of the audio file inside it; None where it names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioObject:
    """One audio object of the source."""

    info: ObjectInfo
    name: AudioName
    transcripts: tuple[Tagged, ...]
    """Those that speak for it, wherever they lie."""
    planned: str
    """Where its transcript would go, relative to the output."""
    blank: tuple[Tagged, ...] = ()
    """Those of 0 bytes, which are none: the chunk counts as not transcribed."""
    gap: timedelta | None = None
    """Of a session's last chunk: by how much it was uploaded after the one before it; None for all others,
    and where nothing of the folder is left to do."""

    @property
    def newest(self) -> Tagged | None:
        """The transcript that its session is assembled from."""
        return max(self.transcripts, key=lambda tagged: tagged[1].modified, default=None)

    @property
    def stale(self) -> bool:
        """Newer than each of its transcripts."""
        return bool(self.transcripts) and all(
            self.info.modified > transcript.modified for _side, transcript in self.transcripts
        )

    @property
    def oversized(self) -> bool:
        """True if its transcript exceeds the size that is read."""
        return self.newest is not None and self.newest[1].size > TRANSCRIPT_BYTES


@dataclass(slots=True)
class _Folder:
    path: str
    audio: list[tuple[AudioName, ObjectInfo]] = field(default_factory=list)
    transcripts: dict[str, list[Tagged]] = field(default_factory=dict)
    """By what they speak for: a stem or a file name."""
    blank: dict[str, list[Tagged]] = field(default_factory=dict)
    """Those of 0 bytes, likewise."""


def merged(source: Iterable[ObjectInfo], output: Iterable[ObjectInfo] | None = None) -> Iterator[Tagged]:
    """One listing of two stores, in key order; `output` is None where it is the same store."""
    if output is None:
        return ((Side.BOTH, info) for info in source)
    return heapq.merge(
        ((Side.SOURCE, info) for info in source),
        ((Side.OUTPUT, info) for info in output),
        key=lambda tagged: tagged[1].key,
    )


def audio_folders(
    listing: Iterable[Tagged], owner: Owner, leave_out: Callable[[str], None] = lambda _key: None
) -> Iterator[list[AudioObject]]:
    """The audio objects of each folder that has any, in key order, a nested folder before its parent.

    Control objects are passed over; audio counts on the source's side only. `leave_out` gets every other
    key of the source that is neither audio nor a transcript.
    """
    opened: list[_Folder] = []
    for side, info in listing:
        key = info.key
        if key.startswith(CONTROL):
            continue
        audio = audio_name(key)
        spoken = transcribed(key) if audio is None else None
        if (audio is None or side is Side.OUTPUT) and spoken is None:
            if side is not Side.OUTPUT:
                leave_out(key)
            continue
        yield from _closed(opened, key, owner)
        if audio is not None:
            _open(opened, audio.folder).audio.append((audio, info))
        elif spoken is not None:
            folder = _open(opened, spoken[0])
            kind = folder.transcripts if info.size else folder.blank
            kind.setdefault(spoken[1], []).append((side, info))
    yield from _closed(opened, None, owner)


def _closed(opened: list[_Folder], key: str | None, owner: Owner) -> Iterator[list[AudioObject]]:
    while opened and (key is None or not key.startswith(opened[-1].path)):
        folder = opened.pop()
        if folder.audio:
            yield _audio_objects(folder, owner)


def _open(opened: list[_Folder], path: str) -> _Folder:
    """The open folder of that path; all open ones hold the current key, so they nest in each other."""
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
    found = [audio for stem, group in stems.items() for audio in _of_stem(folder, stem, group, owner)]
    if len(stems) != len(folder.audio):
        found.sort(key=lambda audio: audio.info.key)
    # A folder that is done needs no gap, and most folders of a large bucket are.
    return found if all(audio.transcripts for audio in found) else _with_gap(found)


def _with_gap(found: list[AudioObject]) -> list[AudioObject]:
    """The folder's audio, its last chunk with its gap: by number, in whatever order they came."""
    uploaded: dict[int, datetime] = {}
    for audio in found:
        if (number := audio.name.number) is not None:
            uploaded[number] = max(audio.info.modified, uploaded.get(number, audio.info.modified))
    if not uploaded:
        return found
    last = max(uploaded)
    at = uploaded.pop(last)
    gap = max(timedelta(0), at - uploaded[max(uploaded)]) if uploaded else timedelta(0)
    return [replace(audio, gap=gap) if audio.name.number == last else audio for audio in found]


def _of_stem(
    folder: _Folder, stem: str, group: list[tuple[AudioName, ObjectInfo]], owner: Owner
) -> Iterator[AudioObject]:
    """The files that share a stem. `transcription-<stem>.json` speaks for one of them only."""
    # A stem that is itself an audio file's name: `transcription-a.mp3.json` speaks for a.mp3, never
    # for a.mp3.wav, whether a.mp3 is there today or not.
    plain = [] if audio_name(stem) else _named(folder, folder.transcripts, stem)
    owners = [_owner_of(tagged[1].key, group, owner) for tagged in plain]
    designated = owners[0] if owners else None if audio_name(stem) else _first(group)
    for name, info in group:
        own = [tagged for tagged, who in zip(plain, owners, strict=True) if who == name.name]
        yield AudioObject(
            info=info,
            name=name,
            transcripts=(*_named(folder, folder.transcripts, name.name), *own),
            blank=tuple(_blank(folder, name, plain=name.name == designated)),
            planned=transcript_key(name, full_name=name.name != designated),
        )


def _blank(folder: _Folder, name: AudioName, *, plain: bool) -> Iterator[Tagged]:
    yield from _named(folder, folder.blank, name.name)
    if plain:
        yield from _named(folder, folder.blank, name.stem)


def _named(folder: _Folder, index: dict[str, list[Tagged]], text: str) -> list[Tagged]:
    """What speaks for a stem or a file name, be it whole or shortened to fit the store."""
    if not index:
        return []
    names = dict.fromkeys((text, transcript_name(folder.path, text)))
    return [tagged for name in names for tagged in index.get(name, ())]


def _owner_of(transcript: str, group: list[tuple[AudioName, ObjectInfo]], owner: Owner) -> str:
    """Asked only where there is a choice. A transcript that names a file which is gone is nobody's here."""
    return _first(group) if len(group) == 1 else owner(transcript) or _first(group)


def _first(group: list[tuple[AudioName, ObjectInfo]]) -> str:
    """The first by key that has anything to hear."""
    return next((name.name for name, info in group if info.size), group[0][0].name)
