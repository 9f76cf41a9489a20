from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from batchscribe.audio import audio_decoder
from batchscribe.audio.audio_decoder import AudioDecoder, Beginning
from batchscribe.audio.decoding.containers import Recording, repair_chunk
from batchscribe.audio.decoding.frames import decoder_version
from batchscribe.core.scan.chunks import AUDIO_TYPES
from batchscribe.errors import AudioError, InterruptedRunError, MisconfiguredError
from support import recorder
from support.audio import (
    RATE,
    adts,
    bundled,
    corpus,
    encode,
    float_wav,
    silent_film,
    silent_flac,
    sine,
    wav,
)
from support.recorder import at_blocks, at_clusters, at_fragments

HOUR = 3600.0


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


def refused(decoder: AudioDecoder, data: bytes, max_seconds: float = HOUR) -> str:
    with pytest.raises(AudioError) as error:
        decoder.decode_all(data, max_seconds=max_seconds)
    assert "\n" not in str(error.value)
    return str(error.value)


def loudest_hertz(samples: audio_decoder.Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.argmax(spectrum) * RATE / len(samples))


@pytest.mark.parametrize("extension", sorted(AUDIO_TYPES))
def test_every_container_is_decoded(decoder: AudioDecoder, extension: str) -> None:
    decoded = decoder.decode_all(encode(sine(7), extension), max_seconds=HOUR)
    assert decoded.samples.dtype == np.float32
    assert decoded.samples.ndim == 1
    assert decoded.seconds == pytest.approx(7, abs=0.2)
    assert loudest_hertz(decoded.samples) == pytest.approx(440, abs=2)
    assert not decoded.partial


@pytest.mark.parametrize("extension", ["avi", "m4v", "mov", "mp4"])
def test_sound_beside_a_picture_is_decoded(decoder: AudioDecoder, extension: str) -> None:
    decoded = decoder.decode_all(encode(sine(2), extension, picture=True), max_seconds=HOUR)
    assert decoded.seconds == pytest.approx(2, abs=0.2)


def test_the_bundled_speech_is_sound(decoder: AudioDecoder) -> None:
    assert {key.rpartition(".")[2] for key in corpus()} <= AUDIO_TYPES
    for key in corpus():
        decoded = decoder.decode_all(bundled(key), max_seconds=HOUR)
        assert not decoded.partial, key
        assert 1 < decoded.seconds < 10, key


def test_many_channels_and_rates_become_16_khz_mono(decoder: AudioDecoder) -> None:
    stereo = np.repeat(sine(1, hertz=1000), 2)
    decoded = decoder.decode_all(wav(stereo, rate=48_000, channels=2), max_seconds=HOUR)
    assert decoded.seconds == pytest.approx(1 / 3, abs=0.01)
    assert loudest_hertz(decoded.samples) == pytest.approx(3000, abs=5)


BEGINNINGS = {
    "webm": (0.0, 48_000, "opus"),
    "ogg": (0.0, 48_000, "opus"),
    "m4a": (0.0, RATE, "aac"),
    "mov": (0.0, RATE, "aac"),
    "mp3": (None, RATE, "mp3"),
    "aac": (None, RATE, "aac"),
    "avi": (None, RATE, "mp3"),
    "flac": (None, RATE, "flac"),
    "wav": (None, RATE, "pcm_s16le"),
}


@pytest.mark.parametrize("extension", BEGINNINGS)
def test_how_the_sound_begins_is_known_before_its_first_piece(decoder: AudioDecoder, extension: str) -> None:
    decoding = decoder.decode(encode(sine(1), extension), max_seconds=HOUR)
    assert decoding.beginning is None
    pieces = iter(decoding)
    next(pieces)
    position, rate, codec = BEGINNINGS[extension]
    assert decoding.beginning == Beginning(position=position, rate=rate, channels=1, codec=codec)
    assert list(pieces) == []


@pytest.mark.parametrize(
    "cut",
    [
        lambda: at_clusters(recorder.webm(sine(12), cluster_seconds=2.0)),
        lambda: at_blocks(recorder.webm(sine(12), cluster_seconds=2.0), 70),
        lambda: at_fragments(recorder.fragments(sine(12), fragment_seconds=2.0)),
    ],
    ids=["clusters", "blocks", "fragments"],
)
def test_a_piece_of_a_recording_tells_its_place_in_it(
    decoder: AudioDecoder, cut: Callable[[], list[bytes]]
) -> None:
    before: Recording | None = None
    ends = 0.0
    for chunk in cut():
        part = repair_chunk(chunk, before)
        before = part.seen or before
        decoding = decoder.decode(part.data, max_seconds=HOUR, skip=part.preroll)
        assert sum(map(len, decoding)) == round(decoding.seconds * RATE)
        assert decoding.beginning is not None
        assert decoding.beginning.position is not None
        assert decoding.beginning.position - part.delay == pytest.approx(ends, abs=0.003)
        ends = decoding.beginning.position - part.delay + decoding.seconds
    assert ends == pytest.approx(12, abs=0.1)


def voices(seconds: float, *hertz: float) -> audio_decoder.Samples:
    """One tone for each channel; the channels' samples take turns."""
    return np.column_stack([sine(seconds, hertz=tone) for tone in hertz]).ravel()


def test_two_channels_are_kept_apart_where_that_is_wanted(decoder: AudioDecoder) -> None:
    data = wav(voices(12, 300, 700), channels=2)
    decoding = decoder.decode(data, max_seconds=12, split=True)
    pieces = list(decoding)
    assert decoding.channels == 2
    assert decoding.seconds == 12
    assert {piece.shape for piece in pieces[:-1]} == {(5 * RATE, 2)}
    both = np.concatenate(pieces)
    assert [loudest_hertz(both[:, channel]) for channel in (0, 1)] == [300, 700]
    assert decoder.decode_all(data, max_seconds=12).samples.shape == (12 * RATE,)
    list(mixed := decoder.decode(data, max_seconds=12))
    assert mixed.channels == 1
    assert mixed.beginning is not None
    assert mixed.beginning.channels == 2


def test_one_channel_stays_one_and_of_many_none_is_lost(decoder: AudioDecoder) -> None:
    mono = decoder.decode(wav(sine(1)), max_seconds=HOUR, split=True)
    assert {piece.ndim for piece in mono} == {1}
    assert mono.channels == 1
    silence = np.zeros(RATE, np.float32)
    back = np.column_stack([silence, silence, silence, sine(1)]).ravel()
    decoding = decoder.decode(wav(back, channels=4), max_seconds=HOUR, split=True)
    (piece,) = decoding
    assert decoding.channels == 2
    assert [loudest_hertz(piece[:, channel]) for channel in (0, 1)] == [440, 440]


def test_the_limit_and_spoilt_samples_are_counted_for_each_channel(decoder: AudioDecoder) -> None:
    def heard(spoilt: audio_decoder.Samples, limit: float) -> list[audio_decoder.Samples]:
        return list(decoder.decode(float_wav(spoilt, channels=2), max_seconds=limit, split=True))

    spoilt = voices(6, 300, 700)
    spoilt[1::2] = np.nan
    both = np.concatenate(heard(spoilt, 6))
    assert not both[:, 1].any()
    assert np.array_equal(both[:, 0], sine(6, hertz=300))
    spoilt[0] = np.nan
    with pytest.raises(AudioError, match="not numbers"):
        heard(spoilt, 6)
    with pytest.raises(AudioError, match="limit"):
        heard(voices(6, 300, 700), 5.9)


@pytest.mark.parametrize(("first", "second", "channels"), [(1, 2, 1), (2, 1, 2)])
def test_a_sound_keeps_the_shape_that_it_began_with(
    decoder: AudioDecoder, first: int, second: int, channels: int
) -> None:
    data = b"".join(adts(sine(3, hertz=300), count) for count in (first, second))
    decoding = decoder.decode(data, max_seconds=HOUR, split=True)
    both = np.concatenate(list(decoding))
    assert decoding.channels == channels
    assert both.shape[1:] == ((2,) if channels == 2 else ())
    assert decoding.seconds == pytest.approx(6, abs=0.3)
    end = both[-2 * RATE :].reshape(2 * RATE, -1)[:, -1]
    assert loudest_hertz(end) == pytest.approx(300, abs=1)


@pytest.mark.parametrize(
    "answers",
    [
        [(b"S", b'{"position": "here"}')],
        [(b"A", b"\0" * 7)],
        [(b"E", b"[]")],
        [(b"S", b'{"position": null, "rate": 1, "channels": 2, "sent": 2, "codec": ""}'), (b"A", b"\0" * 12)],
    ],
)
def test_a_decoder_that_is_no_longer_itself_costs_one_file(
    monkeypatch: pytest.MonkeyPatch, answers: list[tuple[bytes, bytes]]
) -> None:
    with AudioDecoder() as decoder:
        decoder.decode_all(encode(sine(1), "wav"), max_seconds=HOUR)
        assert decoder._child is not None
        said = iter(answers)
        monkeypatch.setattr(decoder._child, "_receive_frame", lambda _until: next(said))
        with pytest.raises(AudioError, match="its output is invalid"):
            list(decoder.decode(encode(sine(1), "wav"), max_seconds=HOUR, split=True))
        assert decoder.decode_all(encode(sine(2), "wav"), max_seconds=HOUR).seconds == 2


def test_a_decoder_that_prints_other_output_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho it is not a frame\nexec cat\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with AudioDecoder() as decoder, pytest.raises(MisconfiguredError, match="its output is invalid"):
        decoder.decode(b"RIFF", max_seconds=1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 4096,
        b"not audio at all " * 300,
        np.random.default_rng(7).bytes(50_000),
        b"\x1c\x53\xbb\x6b\x80",
        encode(sine(3), "webm")[:200],
        encode(sine(3), "m4a")[:4000],
        encode(sine(3), "webm")[4000:],
    ],
    ids=["empty", "zeros", "text", "random", "stub", "header", "no-index", "headerless"],
)
def test_rubbish_is_one_line(decoder: AudioDecoder, data: bytes) -> None:
    assert refused(decoder, data)


def test_a_concat_script_opens_nothing(decoder: AudioDecoder, tmp_path: os.PathLike[str]) -> None:
    neighbour = os.path.join(tmp_path, "chunk-001.wav")  # noqa: PTH118
    with open(neighbour, "wb") as file:  # noqa: PTH123
        file.write(encode(sine(3), "wav"))
    for line in ("chunk-001.wav", neighbour, "x.webm"):
        assert "not in a supported format" in refused(decoder, b"ffconcat version 1.0\nfile " + line.encode())


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        b"<MPD><Period><AdaptationSet><Representation><BaseURL>file:///etc/passwd</BaseURL></Representation>",
    ],
    ids=["hls", "dash"],
)
def test_a_playlist_opens_nothing(decoder: AudioDecoder, playlist: bytes) -> None:
    assert refused(decoder, playlist)


def test_hours_of_silence_that_say_so_are_not_even_begun(decoder: AudioDecoder) -> None:
    bomb = silent_flac(3)
    assert len(bomb) < 2_000_000
    pieces = iter(decoder.decode(bomb, max_seconds=2 * HOUR))
    with pytest.raises(AudioError, match="limit of 2 hours"):
        next(pieces)


def test_hours_of_silence_that_hide_it_are_counted(decoder: AudioDecoder) -> None:
    decoding = decoder.decode(silent_flac(3, stated=False), max_seconds=HOUR)
    heard: list[int] = []
    with pytest.raises(AudioError, match="limit of 1 hours"):
        heard.extend(map(len, decoding))
    assert 0 < sum(heard) <= HOUR * RATE


def test_long_audio_within_the_limit_arrives_in_small_pieces(decoder: AudioDecoder) -> None:
    decoding = decoder.decode(silent_flac(1), max_seconds=2 * HOUR)
    assert max(len(piece) for piece in decoding) <= 5 * RATE
    assert decoding.seconds == HOUR
    assert not decoding.partial


@pytest.mark.parametrize(
    ("rate", "channels"), [(1, 1), (3999, 1), (800_000, 1), (16_000, 33), (16_000, 60_000)]
)
def test_a_forged_header_is_refused(decoder: AudioDecoder, rate: int, channels: int) -> None:
    refused(decoder, wav(sine(10), rate=rate, channels=channels))


def test_a_picture_without_sound_says_so(decoder: AudioDecoder) -> None:
    assert refused(decoder, silent_film()) == "no audio track"


def test_nobody_waits_for_the_rest_of_what_is_not_wanted() -> None:
    wanted = [False, False, True]
    with AudioDecoder() as decoder:
        pieces = iter(decoder.decode(silent_flac(1), max_seconds=2 * HOUR, until=lambda: wanted.pop(0)))
        next(pieces)
        next(pieces)
        with pytest.raises(InterruptedRunError):
            next(pieces)
        assert decoder.decode_all(encode(sine(2), "wav"), max_seconds=HOUR).seconds == 2


def test_nobody_waits_for_a_silent_decoder_that_is_not_wanted() -> None:
    with AudioDecoder() as decoder:
        decoder.decode_all(encode(sine(1), "wav"), max_seconds=HOUR)
        assert decoder._child is not None
        os.kill(decoder._child._process.pid, signal.SIGSTOP)
        with pytest.raises(InterruptedRunError):
            list(decoder.decode(encode(sine(1), "wav"), max_seconds=HOUR, until=lambda: True))


def test_a_crashed_decoder_costs_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with AudioDecoder() as decoder:
        good = encode(sine(2), "wav")
        first = decoder.decode(silent_flac(1), max_seconds=2 * HOUR)
        pieces = iter(first)
        next(pieces)
        assert decoder._child is not None
        os.kill(decoder._child._process.pid, signal.SIGKILL)
        with pytest.raises(AudioError, match="SIGKILL"):
            list(pieces)
        assert decoder.decode_all(good, max_seconds=HOUR).seconds == 2


def test_a_silent_decoder_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with AudioDecoder() as decoder:
        decoder.decode_all(encode(sine(1), "wav"), max_seconds=HOUR)
        assert decoder._child is not None
        os.kill(decoder._child._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(audio_decoder, "SILENCE_SECONDS", 0)
        assert "no output for" in refused(decoder, encode(sine(1), "wav"))
        monkeypatch.undo()
        assert decoder.decode_all(encode(sine(2), "wav"), max_seconds=HOUR).seconds == 2


def test_computing_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_decoder, "BASE_CPU_SECONDS", -1.0)
    monkeypatch.setattr(audio_decoder, "CPU_SECONDS_PER_AUDIO_SECOND", 0.0)
    with AudioDecoder() as decoder:
        assert "CPU time" in refused(decoder, silent_flac(30, stated=False), 200 * HOUR)


def test_an_abandoned_file_does_not_spoil_the_next() -> None:
    with AudioDecoder() as decoder:
        next(iter(decoder.decode(silent_flac(1), max_seconds=2 * HOUR)))
        assert decoder.decode_all(encode(sine(2), "wav"), max_seconds=HOUR).seconds == 2


def test_the_child_sees_neither_environment_nor_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with AudioDecoder() as decoder:
        decoder.decode_all(encode(sine(1), "wav"), max_seconds=HOUR)
        assert decoder._child is not None
        place = f"/proc/{decoder._child._process.pid}"
        with open(f"{place}/environ", "rb") as file:  # noqa: PTH123
            assert b"canary" not in file.read()
        assert os.listdir(f"{place}/cwd") == []  # noqa: PTH208
        with open(f"{place}/limits") as file:  # noqa: PTH123
            limits = {line[:25].strip(): line[26:].split()[0] for line in file}
        assert limits["Max address space"] == str(2 * 1024**3)
        assert limits["Max open files"] == "64"
        assert limits["Max file size"] == "0"


def test_nothing_is_left_behind() -> None:
    with AudioDecoder() as decoder:
        decoder.decode_all(encode(sine(1), "wav"), max_seconds=HOUR)
        assert decoder._child is not None
        process, folder = decoder._child._process, decoder._child._folder.name
    assert process.returncode is not None
    assert not os.path.exists(folder)  # noqa: PTH110


def test_the_decoder_says_its_version() -> None:
    assert decoder_version().startswith("pyav ")
    assert " / ffmpeg " in decoder_version()
