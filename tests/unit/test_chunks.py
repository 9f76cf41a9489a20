from __future__ import annotations

import pytest

from batchscribe.core.keys import superseded
from batchscribe.core.scan.chunks import (
    AUDIO_TYPES,
    KEY_BYTES,
    NAME_BYTES,
    audio_name,
    parse_transcript_key,
    session_stems,
    split_key,
    transcript_key,
    transcript_keys,
)


@pytest.mark.parametrize("kind", sorted(AUDIO_TYPES))
def test_every_audio_type_in_either_case(kind: str) -> None:
    for name in (f"chunk-001.{kind}", f"Talk.{kind.upper()}"):
        audio = audio_name(f"u/s/{name}")
        assert audio is not None
        assert (audio.folder, audio.name, audio.type) == ("u/s/", name, kind)


@pytest.mark.parametrize(
    "key", ["", "webm", ".webm", "a.", "a.txt", "a.webm.json", "a.webm/", "a/.mp3", "a.mp3 ", "a.mp3\n"]
)
def test_what_is_not_audio(key: str) -> None:
    assert audio_name(key) is None


@pytest.mark.parametrize(
    ("key", "session", "number"),
    [
        ("users/u/audio/sessions/s/chunk-001.webm", "users/u/audio/sessions/s/", 1),
        ("chunk-042.mp3", "./", 42),
        ("a/chunk-1.mp3", "a/", 1),
        ("a/chunk-0000000001.mp3", "a/", 1),
        ("a/chunk-001-x.mp3", "a/chunk-001-x.mp3", None),
        ("a/Chunk-001.mp3", "a/Chunk-001.mp3", None),
        ("a/chunk-.mp3", "a/chunk-.mp3", None),
        ("talk.mp3", "talk.mp3", None),
        ('a b/it\'s "x"\n.mp3', 'a b/it\'s "x"\n.mp3', None),
        ("../up/chunk-002.ogg", "../up/", 2),
    ],
)
def test_sessions(key: str, session: str, number: int | None) -> None:
    audio = audio_name(key)
    assert audio is not None
    assert (audio.session, audio.number) == (session, number)


@pytest.mark.parametrize(
    ("key", "spoken"),
    [
        ("s/transcription-chunk-001.json", ("s/", "chunk-001")),
        ("transcription-a.mp3.json", ("", "a.mp3")),
        ("s/transcription-a\nb.json", ("s/", "a\nb")),
        ("s/layers/layer-0-raw-transcription/chunk-001.json", ("s/", "chunk-001")),
        ("layers/layer-0-raw-transcription/chunk-001.json", ("", "chunk-001")),
        ("s/transcription-.json", None),
        ("s/transcript.json", None),
        ("s/xlayers/layer-0-raw-transcription/chunk-001.json", None),
        ("s/layers/layer-0-raw-transcription/deep/chunk-001.json", None),
        ("s/layers/layer-1-enhanced/chunk-001.json", None),
        ("s/chunk-001.json", None),
        ("s/transcription-chunk-001.json.bak", None),
    ],
)
def test_both_places_of_transcripts(key: str, spoken: tuple[str, str] | None) -> None:
    assert parse_transcript_key(key) == spoken


@pytest.mark.parametrize("key", ["s/chunk-001.webm", "talk.mp3", "a b/x'y\n.wav"])
@pytest.mark.parametrize("full_name", [False, True])
def test_the_planned_transcript_speaks_for_its_audio(key: str, full_name: bool) -> None:
    audio = audio_name(key)
    assert audio is not None
    spoken = parse_transcript_key(transcript_key(audio, full_name=full_name))
    assert spoken == (audio.folder, audio.name if full_name else audio.stem)


@pytest.mark.parametrize(
    ("session", "stem"),
    [
        ("s/", "s/transcript"),
        ("./", "transcript"),
        ("s/talk.mp3", "s/talk"),
        ("talk.tar.mp3", "talk.tar"),
        ("s/transcript.mp3", "s/session-transcript.mp3"),
        ("s/transcription-x.mp3", "s/session-transcription-x.mp3"),
    ],
)
def test_session_files(session: str, stem: str) -> None:
    assert session_stems(session)[0] == stem
    assert parse_transcript_key(stem + ".json") is None


def test_two_single_files_of_one_stem_have_files_of_their_own() -> None:
    assert session_stems("s/talk.mp3") == ("s/talk", "s/talk.mp3", "s/talk.mp3.batchscribe")


def test_split() -> None:
    assert split_key("a/b/c") == ("a/b/", "c")
    assert split_key("c") == ("", "c")
    assert split_key("/c") == ("/", "c")


def test_wherever_a_transcript_may_be_it_speaks_for_its_audio() -> None:
    audio = audio_name("user/s/chunk-007.webm")
    assert audio is not None
    assert [parse_transcript_key(key) for key in transcript_keys(audio)] == [
        ("user/s/", "chunk-007"),
        ("user/s/", "chunk-007.webm"),
        ("user/s/", "chunk-007"),
    ]


LONG = ["a" * 251 + ".mp3", "日" * 82 + ".mp3", "é" * 125 + ".webm", "chunk-" + "1" * 240 + ".mp3"]


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("full_name", [False, True])
def test_a_name_too_long_for_the_store_is_shortened(name: str, full_name: bool) -> None:
    audio = audio_name("s/" + name)
    assert audio is not None
    key = transcript_key(audio, full_name=full_name)
    assert len(split_key(key)[1].encode()) <= NAME_BYTES
    assert key == transcript_key(audio, full_name=full_name), "the same name every time"
    assert parse_transcript_key(key) is not None
    for stem in session_stems("s/" + name):
        assert len(split_key(f"{stem}.json")[1].encode()) <= NAME_BYTES
        assert parse_transcript_key(f"{stem}.json") is None


def test_a_key_too_long_for_the_store_is_shortened() -> None:
    folder = "/".join(["f" * 200] * 4) + "/"
    one, two = (audio_name(f"{folder}{'x' * 200}{last}.mp3") for last in "ab")
    assert one is not None
    assert two is not None
    assert len(transcript_key(one).encode()) <= KEY_BYTES
    assert transcript_key(one) != transcript_key(two)
    assert transcript_key(one).startswith(f"{folder}transcription-xxx")


@pytest.mark.parametrize("stem", ["a" * 236, "chunk-001", "日" * 78])
def test_a_name_that_fits_stays_as_it_is(stem: str) -> None:
    audio = audio_name(f"s/{stem}.mp3")
    assert audio is not None
    assert transcript_key(audio) == f"s/transcription-{stem}.json"
    deep = audio_name("d/" * 500 + "chunk-001.mp3")
    assert deep is not None
    assert transcript_key(deep).endswith("/transcription-chunk-001.json")


def test_old_transcripts_with_long_names_are_kept_aside_under_keys_that_fit() -> None:
    deep = "/".join(["f" * 200] * 4) + "/transcription-" + "x" * 60 + ".json"
    kept = superseded(deep, "20260101-000000-source")
    assert len(kept.encode()) < KEY_BYTES
    assert kept.endswith("/transcription-" + "x" * 60 + ".json")
    assert superseded(deep + "l", "now") != superseded(deep, "now")
    assert superseded("s/transcription-a.json", "now") == "_batchscribe/superseded/now/s/transcription-a.json"
