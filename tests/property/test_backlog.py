"""The streaming difference against a model that holds everything in sets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.objects import ObjectInfo
from batchscribe.core.scan import backlog
from batchscribe.core.scan.backlog import ScanRules, SessionScan, scan_sessions, summarise
from batchscribe.core.scan.chunks import LAYER, TOP, AudioName, audio_name
from batchscribe.core.scan.folders import merge_listings
from support.stores import NOW, in_order, row

FOLDERS = st.lists(
    st.sampled_from(["a", "a!", "a-", "a0", "b", "layers", LAYER[:-1], "é", "😀", "_x"]), max_size=3
).map(lambda names: "".join(name + "/" for name in names))
STEMS = st.sampled_from(["chunk-001", "chunk-1", "chunk-010", "talk", "zebra", "a b", "transcript", "x.mp3"])
TYPES = st.sampled_from(["webm", "mp3", "MP3", "wav"])
AUDIO = st.builds(lambda folder, stem, kind: f"{folder}{stem}.{kind}", FOLDERS | st.just("s/"), STEMS, TYPES)
NAMES = st.sampled_from(["notes.txt", "transcript.json", "x"])
OTHER = st.builds(lambda folder, name: folder + name, FOLDERS, NAMES)
World = tuple[dict[str, ObjectInfo], dict[str, ObjectInfo]]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Source and output: any audio, some transcripts of it in either place and store, and others."""
    sizes, ages = st.sampled_from([0, 1, 40_000]), st.sampled_from([0.01, 1.0, 2.0, 99.0])
    source = {
        key: row(key, size=draw(sizes), hours_old=draw(ages)) for key in draw(st.sets(AUDIO, max_size=25))
    }
    output: dict[str, ObjectInfo] = {}
    for key in sorted(source):
        audio = audio_name(key)
        assert audio is not None
        for place in draw(st.sets(st.sampled_from(["plain", "full", "layer", "stray"]), max_size=2)):
            spoken = audio.name if place == "full" else audio.stem
            where = {
                "layer": f"{audio.folder}{LAYER}{spoken}.json",
                "stray": f"{audio.folder}s/transcription-{spoken}.json",
            }
            name = where.get(place, f"{audio.folder}transcription-{spoken}.json")
            draw(st.sampled_from([source, output]))[name] = row(name, hours_old=1.5)
    for key in draw(st.sets(OTHER, max_size=5)):
        source[key] = row(key)
    return source, output


def owner(transcript: str) -> str | None:
    """Some transcripts name a file, others none; always the same answer."""
    return (None, "talk.mp3", "chunk-001.webm", "gone.ogg")[sum(transcript.encode()) % 4]


def goes_on(source: Mapping[str, ObjectInfo], audio: AudioName) -> bool:
    """Whether the file is the last of its session, and less old than twice its distance to those before."""
    if audio.number is None:
        return False
    kin = [name for name in map(audio_name, source) if name and name.session == audio.session]
    age = {name.number: timedelta.max for name in kin if name.number is not None}
    for name in kin:
        if name.number is not None:
            age[name.number] = min(age[name.number], NOW - source[name.folder + name.name].modified)
    own = NOW - source[audio.folder + audio.name].modified
    before = [number for number in age if number < audio.number]
    after = [number for number in age if number > audio.number]
    if not before or after:
        return False
    # A longer break than any chunk lasts says nothing of when the next one comes.
    apart = age[max(before)] - age[audio.number]
    return apart <= timedelta(hours=2, minutes=30) and own < 2 * apart


def model(source: Mapping[str, ObjectInfo], output: Mapping[str, ObjectInfo]) -> dict[str, str]:
    """From every audio key to empty, done, waiting or pending: by looking up, one file at a time."""
    keys = set(source) | set(output)
    states = {}
    for key, info in source.items():
        audio = audio_name(key)
        if audio is None:
            continue
        kin = sorted(
            other.name
            for other in map(audio_name, source)
            if other and other.folder == audio.folder and other.stem == audio.stem
        )
        heard = [name for name in kin if source[audio.folder + name].size] or kin
        places = [f"{audio.folder}transcription-{{}}.json", f"{audio.folder}{LAYER}{{}}.json"]
        done = any(place.format(audio.name) in keys for place in places)
        if audio_name(audio.stem) is None:
            plain = [place.format(audio.stem) for place in places if place.format(audio.stem) in keys]
            owners = {(owner(each) or heard[0]) if len(kin) > 1 else audio.name for each in plain}
            done = done or audio.name in owners
        young = NOW - info.modified < timedelta(minutes=5) or goes_on(source, audio)
        states[key] = "empty" if not info.size else "done" if done else "waiting" if young else "pending"
    return states


def scanned(source: Mapping[str, ObjectInfo], output: Mapping[str, ObjectInfo]) -> list[SessionScan]:
    listing = merge_listings(in_order(source.values()), in_order(output.values()))
    return list(scan_sessions(listing, ScanRules(now=NOW, owner=owner)))


@given(worlds())
def test_the_difference_is_that_of_the_model(
    world: World,
) -> None:
    expected, scans = model(*world), scanned(*world)
    for name in ("pending", "waiting"):
        found = [chunk.key for scan in scans for chunk in getattr(scan, name)]
        assert sorted(found) == sorted(key for key, state in expected.items() if state == name)
    for name in ("done", "empty"):
        assert sum(getattr(scan, name) for scan in scans) == list(expected.values()).count(name)


@given(worlds())
def test_a_session_comes_once_and_holds_what_it_should(
    world: World,
) -> None:
    scans = scanned(*world)
    assert len({scan.session for scan in scans}) == len(scans)
    for scan in scans:
        for chunk in scan.pending + scan.waiting:
            folder = chunk.key.rpartition("/")[0] + "/" if "/" in chunk.key else TOP
            assert chunk.session == scan.session == (chunk.key if chunk.number is None else folder)


@given(worlds())
def test_planned_transcripts_are_free_distinct_and_end_the_wait(
    world: World,
) -> None:
    """Writing every planned transcript, each naming its file, leaves nothing pending: no loop, no loss."""
    source, output = world
    planned = {c.transcript: c.key for scan in scanned(source, output) for c in scan.pending + scan.waiting}
    assert len(planned) == sum(len(scan.pending) + len(scan.waiting) for scan in scanned(source, output))
    assert not set(planned) & (set(source) | set(output))
    written = output | {name: row(name) for name in planned}
    names = {name: key.rpartition("/")[2] for name, key in planned.items()}

    def tell(transcript: str) -> str | None:
        return names.get(transcript) or owner(transcript)

    rules = ScanRules(now=NOW, owner=tell)
    after = list(scan_sessions(merge_listings(in_order(source.values()), in_order(written.values())), rules))
    assert [chunk.key for scan in after for chunk in scan.pending + scan.waiting] == []


@given(worlds(), st.integers(1, 8))
def test_the_candidates_are_the_oldest_sessions(world: World, most: int) -> None:
    scans = scanned(*world)
    with_pending = sorted(
        (scan for scan in scans if scan.pending),
        key=lambda scan: (min(chunk.modified for chunk in scan.pending), scans.index(scan)),
    )
    expected = [chunk.key for scan in with_pending for chunk in scan.pending][:most]
    kept, backlog.MAX_CANDIDATES = backlog.MAX_CANDIDATES, most
    try:
        total = summarise(iter(scans))
    finally:
        backlog.MAX_CANDIDATES = kept
    assert [chunk.key for chunk in total.candidates] == expected
    assert total.pending == sum(len(scan.pending) for scan in scans)
