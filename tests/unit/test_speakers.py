"""Who speaks when: voices of chunks, labels of a session, names by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest

from batchscribe import __version__
from batchscribe.controller.commands.redo import redo
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import assemble_session, publish_session
from batchscribe.core.objects import MIB
from batchscribe.core.run.manifest import AudioOptions, EngineSpec, Manifest, ManifestChunk
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.speakers import LABELS, HeldVoices, decode_names, label_voices, list_turns
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import AudioRef, SessionTranscript, decode_session
from batchscribe.core.text.voice_groups import BLOCK, VoiceGroup, group_voices, limit_groups, make_piece
from batchscribe.core.text.voices import ChunkVoices, decode_voices, encode_voices, make_voices
from batchscribe.errors import MisconfiguredError, PermanentError
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.speakers import SpectralSpeakers
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.pipeline import run_worker
from support.spoken import RawDecoder, find_speech, raw
from support.stores import NOW
from support.voices import Conversation, Said, SyllableEngine, converse, measure_error

CHUNK = 10.0
"""Seconds."""
SECOND = {"start": 0, "end": 1}
AUTO = Rendering(speakers="auto")
AUDIO = AudioRef(name="a", key="a", etag="e")


class Bucket:
    """A session whose chunks are transcribed by real workers."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.store = MemoryStore(self.clock)
        self.scanner = Scanner(self.store, self.store, clock=self.clock)
        self.runs = 0

    def upload(self, audio: Any, first: int = 1) -> list[int]:
        step = int(CHUNK * 16_000)
        pieces = [audio[at : at + step] for at in range(0, len(audio), step)]
        for number, piece in enumerate(pieces, first):
            self.store.replace(f"s/chunk-{number:03}.webm", raw(piece))
        return list(range(first, first + len(pieces)))

    def transcribe(self, numbers: Sequence[int], *, speakers: bool = True, split: bool = False) -> None:
        self.runs += 1
        chunks = []
        for number in numbers:
            info = next(iter(self.store.list(f"s/chunk-{number:03}.webm")))
            place = f"s/transcription-chunk-{number:03}.json"
            chunks.append(
                ManifestChunk(key=info.key, etag=info.etag, size=info.size, session="s/", transcript=place)
            )
        manifest = Manifest(
            run=f"r{self.runs}",
            worker=0,
            release=__version__,
            source=self.store.url,
            output=self.store.url,
            deadline=NOW + timedelta(days=9),
            engine=EngineSpec(engine="syllables", speakers=speakers),
            settings_hash="h",
            audio_options=AudioOptions(split_channels=split),
            chunks=tuple(chunks),
        )
        record = run_worker(
            manifest,
            source=self.store,
            output=self.store,
            load=SyllableEngine,
            find_speech=find_speech,
            speakers=SpectralSpeakers() if speakers else None,
            clock=self.clock,
            should_stop=lambda: False,
            new_decoder=RawDecoder,  # type: ignore[arg-type]
        )
        assert record.tally.done == len(numbers), record

    def voices(self, number: int) -> ChunkVoices:
        return decode_voices(self.store.get(f"s/speakers-chunk-{number:03}.json").data)

    def publish(self, rendering: Rendering = AUTO) -> SessionTranscript:
        publish_session(self.scanner, "s/", rendering)
        return decode_session(self.store.get("s/transcript.json").data)

    def count_chunks(self) -> int:
        return len(list(self.store.list("s/chunk-")))

    def text(self, kind: str) -> str:
        return self.store.get(f"s/transcript.{kind}").data.decode()


def transcribed(conversation: Conversation) -> Bucket:
    bucket = Bucket()
    bucket.transcribe(bucket.upload(conversation.audio))
    return bucket


def list_words(session: SessionTranscript) -> list[Said]:
    return [Said(str(w.speaker), w.start, w.end) for segment in session.segments for w in segment.words]


@pytest.fixture(scope="module")
def dialogue() -> Bucket:
    """Two voices, 40 s, in chunks of 10 s, some with both."""
    return transcribed(converse(2, 40, seed=3))


@pytest.mark.parametrize("voices", [2, 3, 4, 5, 6])
def test_who_speaks_when(voices: int) -> None:
    conversation = converse(voices, 12 * voices, seed=1)
    bucket = transcribed(conversation)
    held = {at: HeldVoices(bucket.voices(at + 1), "m") for at in range(bucket.count_chunks())}
    for count in (voices, None):
        labelled = label_voices(held, count)
        guess = [
            Said(turn.speaker, turn.start + CHUNK * at, turn.end + CHUNK * at)
            for at, chunk in labelled.items()
            for turn in list_turns(chunk, {})
        ]
        assert measure_error(conversation.turns, guess) < 0.05


def test_words_paragraphs_and_subtitles_name_their_speakers(dialogue: Bucket) -> None:
    session = dialogue.publish()
    assert session.speakers == "auto"
    assert {word.speaker for word in list_words(session)} == {"Speaker 1", "Speaker 2"}
    for segment in session.segments:
        assert {word.speaker for word in segment.words} == {segment.speaker}
    starts = [text[:11] for text in dialogue.text("txt").strip().split("\n\n")]
    assert starts[:2] == ["Speaker 1: ", "Speaker 2: "]
    assert "[Speaker 2] la" in dialogue.text("srt")
    assert "<v Speaker 2>la" in dialogue.text("vtt")
    rows = AUTO.render(session, "tsv").decode().splitlines()
    assert rows[0].split("\t") == ["start", "end", "text", "speaker"]
    assert {row.split("\t")[3] for row in rows[1:]} == {"Speaker 1", "Speaker 2"}


def test_embeddings_are_only_beside_the_chunks(dialogue: Bucket) -> None:
    dialogue.publish()
    kept = {info.key for info in dialogue.store.list() if b'"vector"' in dialogue.store.get(info.key).data}
    assert kept == {f"s/speakers-chunk-00{n}.json" for n in range(1, dialogue.count_chunks() + 1)}


def test_a_word_at_a_change_of_speaker_goes_to_the_turn_of_its_middle() -> None:
    conversation = converse(2, 40, seed=3)
    bucket = transcribed(conversation)
    words = list_words(bucket.publish(Rendering(speakers="2")))
    wrong = 0
    names: dict[str, str] = {}
    for word in words:
        middle = (word.start + word.end) / 2
        turn = next(turn for turn in conversation.turns if turn.start <= middle <= turn.end)
        wrong += names.setdefault(word.speaker, turn.speaker) != turn.speaker
    assert wrong <= 0.03 * len(words)


def test_labels_stay_the_same_over_three_runs() -> None:
    bucket = Bucket()
    parts = [converse(4, 30, seed=7, only=only).audio for only in ([2, 3], [0, 3], [1, 2, 0])]
    numbers: list[int] = []
    before: dict[tuple[float, float], str] = {}
    for part in parts:
        numbers = bucket.upload(part, numbers[-1] + 1 if numbers else 1)
        bucket.transcribe(numbers)
        words = {(word.start, word.end): word.speaker for word in list_words(bucket.publish())}
        assert before.items() <= words.items()
        before = words
    assert set(before.values()) == {f"Speaker {n}" for n in range(1, 5)}


def test_one_speaker_is_named_only_by_hand() -> None:
    bucket = transcribed(converse(1, 15, seed=1))
    assert {word.speaker for word in list_words(bucket.publish())} == {str(msgspec.UNSET)}
    bucket.store.replace("s/transcript.speakers.json", b'{"speakers": {"Speaker 1": "Ada"}}')
    assert bucket.publish().segments[0].speaker == "Ada"


def test_another_number_of_speakers_labels_anew(dialogue: Bucket) -> None:
    assert len({word.speaker for word in list_words(dialogue.publish(Rendering(speakers="2")))}) == 2
    found = dialogue.publish(Rendering(speakers="auto"))
    assert found.speakers == "auto"
    plain = dialogue.publish(Rendering())
    assert plain.speakers is msgspec.UNSET
    assert {word.speaker for word in list_words(plain)} == {str(msgspec.UNSET)}


def test_names_by_hand_are_in_every_format_and_never_overwritten(dialogue: Bucket) -> None:
    dialogue.publish()
    names = b'{"speakers": {"Speaker 1": " Ada\\nLovelace ", "Speaker 9": "nobody here"}}'
    dialogue.store.replace("s/transcript.speakers.json", names)
    session = dialogue.publish()
    assert {word.speaker for word in list_words(session)} == {"Ada Lovelace", "Speaker 2"}
    assert "<v Ada Lovelace>" in dialogue.text("vtt")
    assert assemble_session(dialogue.scanner, "s/", AUTO).transcript == session
    assert dialogue.store.get("s/transcript.speakers.json").data == names
    assert publish_session(dialogue.scanner, "s/", AUTO) is None, "nothing changed"
    dialogue.store.delete("s/transcript.speakers.json")
    assert "Ada" not in json.dumps(msgspec.to_builtins(dialogue.publish()))


@pytest.mark.parametrize("data", [b"", b'{"speakers": {"Speaker 1": 5}}', b" " * (MIB + 1)])
def test_unreadable_names_are_reported_and_the_files_written_without_names(
    dialogue: Bucket, data: bytes
) -> None:
    before = dialogue.publish()
    for kind in ("srt", "vtt", "txt", "json"):
        dialogue.store.delete(f"s/transcript.{kind}")
    dialogue.store.replace("s/transcript.speakers.json", data)
    reported: list[PermanentError] = []
    try:
        assert publish_session(dialogue.scanner, "s/", AUTO, report=reported.append) == "s/transcript"
    finally:
        dialogue.store.delete("s/transcript.speakers.json")
    assert [str(error).split(":")[0] for error in reported] == ["'s/transcript.speakers.json'"]
    assert ("exceeds the limit" in str(reported[0])) == (len(data) > MIB), reported
    assert dialogue.publish() == before


def test_forged_labels_of_a_session_file_are_dropped(dialogue: Bucket) -> None:
    before = dialogue.publish()
    written = json.loads(dialogue.store.get("s/transcript.json").data)
    for at, part in enumerate(written["parts"]):
        part["speakers"]["labels"] = [f"L{at}-{n}" for n in range(len(part["speakers"]["labels"]))]
    dialogue.store.replace("s/transcript.json", json.dumps(written | {"digest": "0"}).encode())
    assert dialogue.publish() == before


def test_a_number_of_speakers_is_a_maximum_over_all_models() -> None:
    def hold(model: str, count: int) -> HeldVoices:
        pieces = [make_piece([float(n == at) for n in range(32)], 5.0, (at, at + 1)) for at in range(count)]
        return HeldVoices(make_voices(AUDIO, model, 0.5, [piece for piece in pieces if piece]), "m")

    models = {at: hold(model, 2) for at, model in enumerate("abbc")}
    found = [(at, each.labels) for at, each in label_voices(models, 3).items()]
    assert found == [(1, LABELS[:2]), (2, LABELS[:2])]
    (crowd,) = label_voices({0: hold("a", 32)}, None).values()
    assert set(crowd.labels) == set(LABELS)
    assert label_voices({0: hold("a", 0)}, 2) == {}


def test_long_work_on_voices_keeps_the_step_alive(dialogue: Bucket) -> None:
    held = {at: HeldVoices(dialogue.voices(1), "m") for at in range(3 * BLOCK)}
    keep_alive = Mock()
    label_voices(held, 2, keep_alive)
    assert keep_alive.call_count >= 3


@pytest.mark.parametrize("label", ["speaker 1", "1", "Speaker 21", "x" * 101])
def test_a_label_that_no_speaker_has_is_refused(label: str) -> None:
    with pytest.raises(PermanentError, match="is none of Speaker 1 to Speaker 20"):
        decode_names(json.dumps({"speakers": {"Speaker 1": "Ada", label: "Grace"}}).encode())


def test_a_name_has_a_limit() -> None:
    with pytest.raises(PermanentError, match="longer than 100"):
        decode_names(json.dumps({"speakers": {"Speaker 1": "x" * 101}}).encode())
    assert decode_names(b'{"speakers": {"Speaker 1": "  "}}') == {}, "the label stays"


def test_chunks_from_before_the_setting_have_no_labels_until_they_are_redone() -> None:
    bucket = Bucket()
    numbers = bucket.upload(converse(2, 30, seed=3).audio)
    bucket.transcribe(numbers[:1], speakers=False)
    bucket.transcribe(numbers[1:])
    session = bucket.publish()
    assert {word.speaker for word in list_words(session) if word.end < 9} == {str(msgspec.UNSET)}
    assert str(msgspec.UNSET) not in {word.speaker for word in list_words(session) if word.start > 11}
    chosen = [audio for audio in bucket.scanner.audio("s/") if audio.name.number == 1]
    list(redo(bucket.scanner, chosen, stamp="now"))
    bucket.transcribe(numbers[:1])
    assert str(msgspec.UNSET) not in {word.speaker for word in list_words(bucket.publish())}


def test_split_channels_are_the_speakers() -> None:
    bucket = Bucket()
    one, other = (converse(1, 12, seed=seed).audio[: 10 * SAMPLE_RATE] for seed in (1, 2))
    numbers = bucket.upload(np.stack([one, other], axis=1))
    bucket.transcribe(numbers, split=True)
    assert not list(bucket.store.list("s/speakers-"))
    session = bucket.publish()
    assert {(part.channel, part.speaker) for part in session.segments} == {(n, msgspec.UNSET) for n in (1, 2)}
    assert {text[:11] for text in bucket.text("txt").strip().split("\n\n")} == {"Channel 1: ", "Channel 2: "}


def test_voices_of_other_audio_are_not_used(dialogue: Bucket) -> None:
    before = dialogue.store.get("s/speakers-chunk-001.json").data
    voices = decode_voices(before)
    other = msgspec.structs.replace(voices, audio=msgspec.structs.replace(voices.audio, etag="other"))
    for data in (encode_voices(other), b"{}", b""):
        dialogue.store.replace("s/speakers-chunk-001.json", data)
        session = assemble_session(dialogue.scanner, "s/", AUTO).transcript
        assert session.parts[0].speakers is msgspec.UNSET
        assert session.parts[1].speakers is not msgspec.UNSET
    dialogue.store.replace("s/speakers-chunk-001.json", before)


def test_voices_are_stored_before_the_transcript_which_proves_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = Bucket()
    numbers = bucket.upload(converse(2, 20, seed=3).audio)
    order: list[str] = []

    def note(write: Callable[[str, bytes], Any]) -> Callable[[str, bytes], Any]:
        def act(key: str, data: bytes) -> Any:
            order.append(key)
            return write(key, data)

        return act

    monkeypatch.setattr(bucket.store, "create", note(bucket.store.create))
    monkeypatch.setattr(bucket.store, "replace", note(bucket.store.replace))
    bucket.transcribe(numbers)
    for number in numbers:
        name = f"chunk-{number:03}.json"
        assert order.index(f"s/speakers-{name}") < order.index(f"s/transcription-{name}")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"alike": 2},
        {"voices": [{"vector": "AAAA", "spans": [SECOND]}]},
        {"voices": [{"vector": "AHwAfA==", "spans": [SECOND]}]},
        {"voices": [{"vector": "ADwAPA==", "spans": [SECOND]}, {"vector": "ADwAPAA8", "spans": [SECOND]}]},
        {"voices": [{"vector": "ADwAPA==", "spans": [{"start": 0, "end": 1e300}]}]},
        {"voices": [{"vector": "ADwAPA==", "spans": []}]},
        {"voices": [{"vector": "ADwAPA==", "spans": [SECOND]}] * 65},
        {"voices": [{"vector": "ADwA" * 2 * 171, "spans": [SECOND]}]},
    ],
)
def test_a_crafted_object_is_no_voices(dialogue: Bucket, change: dict[str, Any]) -> None:
    plain = json.loads(dialogue.store.get("s/speakers-chunk-001.json").data)
    with pytest.raises(PermanentError, match="not the voices of a chunk"):
        decode_voices(json.dumps(plain | change).encode())


def group(*vector: float, seconds: float = 10.0, label: str = "") -> VoiceGroup:
    made = make_piece(vector, seconds, vector)
    assert made is not None
    return replace(made, label=label)


def test_known_speakers_stay_apart_and_take_the_nearest_voices() -> None:
    known = [group(1, 0, label="A"), group(1, 0.1, label="B")]
    found = group_voices([*known, group(1, 0.2), group(0, 1)], 0.5, 3)
    assert [(each.label, len(each.members)) for each in found] == [("A", 1), ("B", 2), ("", 1)]


def test_a_stated_number_is_no_reason_to_split_one_voice() -> None:
    alone = [group(1, n / 100) for n in range(5)]
    assert len(group_voices(alone, 0.5, 3)) == 1


def test_a_brief_outlier_never_makes_two_speakers_one() -> None:
    outlier = group(0, 0, 1, seconds=0.7)
    found = group_voices([group(1, 0.2, 0), group(0.2, 1, 0), outlier], 0.5, 2)
    assert sorted(len(each.members) for each in found) == [1, 2]
    assert all(outlier.members[0] != each.members[0] for each in found)
    assert len(group_voices([group(1, 0, 0), group(0, 1, 0), outlier], 0.5, None)) == 2


@pytest.mark.parametrize("count", [None, 2])
def test_two_speakers_whose_voices_have_much_in_common_stay_two(count: int | None) -> None:
    # Of real voices the means have cosines of 0.40 to 0.69, their single pieces of 0.25 to 0.55.
    voices = [group(1, side * (0.45 + n / 100)) for n in range(5) for side in (-1, 1)]
    found = group_voices(voices, 0.5, count)
    assert [len(each.members) for each in found] == [5, 5]


def test_limits_and_directions() -> None:
    assert make_piece([0.0, 0.0], 1, None) is None
    assert make_piece([float("nan"), 1.0], 1, None) is None
    assert len(limit_groups([group(1, n) for n in range(9)], 4)) == 4
    assert group_voices([], 0.5, 2) == []


@pytest.mark.parametrize(
    ("text", "value"), [("off", "off"), ("AUTO", "auto"), ("2", "2"), ("020", "20"), ("", "off")]
)
def test_the_setting(text: str, value: str) -> None:
    assert load({"BATCH_SPEAKERS": text}).open_rendering().speakers == value


@pytest.mark.parametrize("text", ["0", "1", "21", "on", "-2", "2.0", "²"])
def test_a_wrong_setting_is_refused(text: str) -> None:
    with pytest.raises(MisconfiguredError, match="must be off, auto or 2 to 20"):
        load({"BATCH_SPEAKERS": text})
