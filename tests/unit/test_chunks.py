from __future__ import annotations

import pytest

from batchscribe.core.chunks import (
    AUDIO_TYPES,
    audio_name,
    session_files,
    split,
    transcribed,
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
    assert transcribed(key) == spoken


@pytest.mark.parametrize("key", ["s/chunk-001.webm", "talk.mp3", "a b/x'y\n.wav"])
@pytest.mark.parametrize("full_name", [False, True])
def test_the_planned_transcript_speaks_for_its_audio(key: str, full_name: bool) -> None:
    audio = audio_name(key)
    assert audio is not None
    spoken = transcribed(transcript_key(audio, full_name=full_name))
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
    assert session_files(session) == stem
    assert transcribed(stem + ".json") is None


def test_two_single_files_of_one_stem_have_files_of_their_own() -> None:
    assert session_files("s/talk.mp3", full_name=True) == "s/talk.mp3"


def test_split() -> None:
    assert split("a/b/c") == ("a/b/", "c")
    assert split("c") == ("", "c")
    assert split("/c") == ("/", "c")


def test_wherever_a_transcript_may_be_it_speaks_for_its_audio() -> None:
    audio = audio_name("user/s/chunk-007.webm")
    assert audio is not None
    assert [transcribed(key) for key in transcript_keys(audio)] == [
        ("user/s/", "chunk-007"),
        ("user/s/", "chunk-007.webm"),
        ("user/s/", "chunk-007"),
    ]
