"""All sound of a file is decoded: every track, every channel, at its time, within [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from batchscribe.audio.audio_decoder import AudioDecoder, Beginning, Decoding, Samples
from batchscribe.audio.decoding.mixing import Mix, group_by_side, mix_tracks
from batchscribe.audio.decoding.tracks import group_tracks
from batchscribe.audio.levels import AudioLevel
from batchscribe.core.text.flags import RESCALED, TRACK_MISSING
from batchscribe.errors import AudioError, UnsupportedAudioError
from support.audio import RATE, aiff, encode, float_wav, sine, wav
from support.films import Track, film, together

HOUR = 3600.0
FILMS = ("mp4", "mov", "webm", "mkv")
SILENCE = np.zeros(3 * RATE, np.float32)


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


def decoded(decoder: AudioDecoder, data: bytes, *, split: bool = False) -> tuple[Samples, Decoding]:
    decoding = decoder.decode(data, max_seconds=HOUR, split=split)
    samples = np.concatenate(list(decoding))
    assert np.abs(samples).max() <= 1.0
    return samples, decoding


def begun(decoding: Decoding) -> Beginning:
    assert decoding.beginning is not None
    return decoding.beginning


def level(samples: Samples, hertz: float) -> float:
    """Amplitude of one tone."""
    at = np.arange(len(samples)) / RATE
    return float(2 * abs(np.mean(samples * np.exp(-2j * np.pi * hertz * at))))


# Several tracks


@pytest.mark.parametrize("extension", FILMS)
@pytest.mark.parametrize("second_is_default", [False, True])
def test_all_tracks_are_mixed(decoder: AudioDecoder, extension: str, second_is_default: bool) -> None:
    tracks = [Track(samples=sine(3, hertz=tone), default=tone == 900) for tone in (300, 900)]
    if not second_is_default:
        tracks = [Track(samples=track.samples) for track in tracks]
    samples, decoding = decoded(decoder, film(extension, *tracks, picture=(0, 3)))
    assert [level(samples, tone) > 0.15 for tone in (300, 900)] == [True, True]
    assert decoding.channels == 1
    assert decoding.seconds == pytest.approx(3, abs=0.1)
    assert not decoding.partial


@pytest.mark.parametrize("extension", FILMS)
def test_a_silent_track_costs_nothing_of_the_others(decoder: AudioDecoder, extension: str) -> None:
    samples, _ = decoded(decoder, film(extension, Track(samples=SILENCE), Track(samples=sine(3))))
    assert level(samples[RATE : 2 * RATE], 440) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("extension", FILMS)
def test_with_split_each_track_is_a_channel(decoder: AudioDecoder, extension: str) -> None:
    tones = (300, 600, 900)
    data = film(extension, *(Track(samples=sine(3, hertz=tone)) for tone in tones))
    samples, decoding = decoded(decoder, data, split=True)
    assert decoding.channels == samples.shape[1] == 3
    assert not begun(decoding).apart
    for number, tone in enumerate(tones):
        heard = [level(samples[:, number], other) for other in tones]
        assert int(np.argmax(heard)) == number, tone
        assert sum(heard) - max(heard) < 0.02


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_tracks_of_different_languages_are_not_mixed(decoder: AudioDecoder, extension: str) -> None:
    tracks = [
        Track(samples=sine(3, hertz=tone), language=language)
        for tone, language in ((300, "eng"), (600, "deu"), (900, "eng"))
    ]
    samples, decoding = decoded(decoder, film(extension, *tracks))
    assert decoding.channels == 2
    assert begun(decoding).apart
    first, second = samples[:, 0], samples[:, 1]
    assert min(level(first, 300), level(first, 900), level(second, 600)) > 0.15
    assert max(level(first, 600), level(second, 300), level(second, 900)) < 0.02


def test_one_language_among_untagged_tracks_is_mixed_with_them() -> None:
    assert group_tracks(["eng", "und", ""], split=False) == [[0, 1, 2]]
    assert group_tracks(["eng", "", "deu", "eng", "und"], split=False) == [[0, 3], [1, 4], [2]]
    assert group_tracks(["eng", "deu"], split=True) == [[0], [1]]


@pytest.mark.parametrize("extension", ["mp4", "webm", "mkv"])
@pytest.mark.parametrize("split", [False, True])
def test_tracks_keep_their_offset(decoder: AudioDecoder, extension: str, split: bool) -> None:
    late = Track(samples=sine(2, hertz=900), begins=2.0)
    data = film(extension, late, Track(samples=sine(3, hertz=300)))
    samples, decoding = decoded(decoder, data, split=split)
    assert decoding.seconds == pytest.approx(4, abs=0.1)
    mixed = samples.sum(axis=1) if split else samples
    parts = [mixed[at * RATE : (at + 1) * RATE] for at in range(4)]
    assert [level(part, 900) > 0.1 for part in parts] == [False, False, True, True]
    assert [level(part, 300) > 0.1 for part in parts] == [True, True, True, False]


def test_a_track_that_is_not_decoded_is_flagged(decoder: AudioDecoder) -> None:
    data = film("mkv", Track(samples=sine(3)), Track(samples=sine(3, hertz=900), codec="tta"))
    samples, decoding = decoded(decoder, data)
    assert level(samples, 440) > 0.4
    assert decoding.flags == {TRACK_MISSING}
    assert decoded(decoder, film("mkv", Track(samples=sine(3))))[1].flags == frozenset()


def test_a_track_behind_the_other_in_the_file_is_not_lost() -> None:
    blocks = mix_tracks(
        [iter([sine(1.3)]), iter([sine(0.2), np.zeros(0, np.float32), sine(2.0)])], [[0], [1]]
    )
    whole = np.concatenate(list(blocks))
    assert whole.shape == (round(2.2 * RATE), 2)
    assert np.array_equal(whole[: round(1.3 * RATE), 0], sine(1.3))
    assert not whole[round(1.3 * RATE) :, 0].any()


# Channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 12, 32])
@pytest.mark.parametrize("split", [False, True])
def test_no_layout_leaves_full_scale(decoder: AudioDecoder, channels: int, split: bool) -> None:
    noise = np.random.default_rng(channels).uniform(-1, 1, 2 * RATE).astype(np.float32)
    samples, _ = decoded(decoder, wav(np.repeat(noise, channels), channels=channels), split=split)
    assert np.allclose(samples.reshape(len(samples), -1)[:, 0], noise, atol=1e-3)


def test_a_layout_that_is_written_channel_by_channel_is_decoded(decoder: AudioDecoder) -> None:
    """Eight channels in AIFF: an order that has no name."""
    noise = np.random.default_rng(8).uniform(-1, 1, 2 * RATE).astype(np.float32)
    samples, _ = decoded(decoder, aiff(np.repeat(noise, 8), channels=8))
    assert np.allclose(samples, noise, atol=1e-3)


def test_a_full_scale_square_wave_stays_in_scale_at_another_rate(decoder: AudioDecoder) -> None:
    square = np.sign(sine(3, hertz=1000)) * np.float32(0.9999)
    samples, _ = decoded(decoder, wav(square, rate=11_025))
    assert np.abs(samples).max() > 0.9


@pytest.mark.parametrize("strength", [1.0, 0.9])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_an_inverted_channel_does_not_silence_the_other(
    decoder: AudioDecoder, strength: float, offset: float
) -> None:
    voice = sine(3, hertz=300)
    both = together([offset + voice, offset - strength * voice])
    samples, _ = decoded(decoder, wav(both, channels=2))
    assert level(samples, 300) == pytest.approx(0.5, abs=0.05)


def test_two_inverted_channels_of_many_are_not_lost(decoder: AudioDecoder) -> None:
    voice = sine(3, hertz=300)
    silence = np.zeros_like(voice)
    samples, _ = decoded(decoder, wav(together([silence, voice, silence, -voice]), channels=4))
    assert level(samples, 300) == pytest.approx(0.5, abs=0.05)


def test_tracks_that_cancel_each_other_are_not_lost(decoder: AudioDecoder) -> None:
    samples, _ = decoded(decoder, film("mkv", Track(samples=sine(3)), Track(samples=-sine(3))))
    assert level(samples[RATE:], 440) > 0.4


def test_a_voice_on_the_other_channel_ends_what_was_taken_for_a_loss() -> None:
    voice, quiet = sine(1, hertz=300), np.zeros(RATE, np.float32)
    mix = Mix(2)
    inverted, second = np.column_stack([voice, -voice]), np.column_stack([quiet, voice])
    assert np.abs(mix.push(inverted)).max() == pytest.approx(0.5, abs=0.01)
    assert np.abs(mix.push(second)[RATE // 2 :]).max() == pytest.approx(0.25, abs=0.01)


def test_a_change_of_the_mix_makes_no_click() -> None:
    tone = np.full((RATE, 1), 0.5, np.float32) * np.sin(np.arange(RATE) / 50)[:, None].astype(np.float32)
    quiet = np.zeros_like(tone)
    mix = Mix(2)
    ends = np.concatenate([mix.push(np.hstack([tone, quiet])), mix.push(np.hstack([tone[:], tone]))])
    steps = np.abs(np.diff(ends))
    assert steps[RATE : RATE + 256].max() < 0.02


def test_independent_channels_are_mixed_and_not_chosen_from(decoder: AudioDecoder) -> None:
    samples, _ = decoded(decoder, wav(together([sine(3, hertz=300), sine(3, hertz=900)]), channels=2))
    assert level(samples, 300) == pytest.approx(level(samples, 900), abs=0.01)
    assert level(samples, 300) == pytest.approx(0.25, abs=0.01)


def test_sides_of_layouts() -> None:
    assert group_by_side(["FL", "FR", "FC", "LFE", "BL", "BR"]) == ([0, 2, 3, 4], [1, 2, 3, 5])
    assert group_by_side(["FLC", "FRC", "BC"]) == ([0, 2], [1, 2])
    assert group_by_side(["NONE"] * 4) == ([0, 2, 3], [1, 2, 3])


# Levels


@pytest.mark.parametrize("factor", [1.0, 8.0, 2.0**15, 2.0**23])
@pytest.mark.parametrize("channels", [1, 2])
def test_float_samples_beyond_full_scale_keep_their_shape(
    decoder: AudioDecoder, factor: float, channels: int
) -> None:
    voice = np.concatenate([sine(6) / 1000, sine(6)])
    data = float_wav(np.repeat(voice * np.float32(factor), channels), channels=channels)
    samples, decoding = decoded(decoder, data)
    assert decoding.flags == ({RESCALED} if factor > 8 else set())
    loud = samples[8 * RATE : 9 * RATE]
    assert level(loud, 440) > 0.45
    assert level(loud, 3 * 440) < 0.01, "not clipped"
    if factor != 8.0:
        assert level(samples[2 * RATE : 4 * RATE], 440) == pytest.approx(0.0005, rel=0.1)


def test_a_few_spoilt_samples_do_not_change_the_level(decoder: AudioDecoder) -> None:
    voice = sine(12)
    voice[[5, 7 * RATE]] = [30_000.0, -3e8]
    samples, decoding = decoded(decoder, float_wav(voice))
    assert decoding.flags == frozenset()
    assert np.abs(np.delete(samples - sine(12), [5, 7 * RATE])).max() < 1e-6


def test_a_burst_of_noise_lowers_the_level_for_a_while() -> None:
    level_of, loud = AudioLevel(), sine(5) * np.float32(1000)
    assert np.abs(level_of.apply(loud)).max() == 1.0
    after = [float(np.abs(level_of.apply(sine(5))).max()) for _ in range(6)]
    assert after == sorted(after)
    assert after[-1] == 0.5


@pytest.mark.parametrize("channels", [1, 2])
def test_an_offset_is_removed(channels: int) -> None:
    piece = np.repeat((sine(5) * 0.5 + 0.5)[:, None], channels, axis=1)
    piece = piece[:, 0] if channels == 1 else piece
    tidy = AudioLevel().apply(piece)
    assert abs(float(tidy.mean())) < 1e-3
    assert np.abs(tidy).max() == pytest.approx(0.25, abs=0.01)
    untouched = sine(5)
    assert AudioLevel().apply(untouched) is untouched


# Clocks


@pytest.mark.parametrize("extension", ["mp4", "mov", "webm", "mkv"])
def test_sound_that_begins_behind_the_picture_leads(decoder: AudioDecoder, extension: str) -> None:
    data = film(extension, Track(samples=sine(4), begins=3.0), picture=(0, 8))
    _, decoding = decoded(decoder, data)
    assert begun(decoding).lead == pytest.approx(3, abs=0.07)
    assert decoding.seconds == pytest.approx(4, abs=0.1)
    assert not decoding.partial


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
def test_sound_that_begins_with_or_before_the_picture_does_not_lead(
    decoder: AudioDecoder, extension: str
) -> None:
    for begins in (0.0, 1.0):
        data = film(extension, Track(samples=sine(4)), picture=(begins, 8))
        assert begun(decoded(decoder, data)[1]).lead == 0.0


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("epoch", [3600.0, 1_700_000_000.0])
def test_a_lone_track_with_absolute_time_stamps_begins_at_0(
    decoder: AudioDecoder, extension: str, epoch: float
) -> None:
    data = film(extension, Track(samples=sine(6), begins=epoch))
    _, decoding = decoded(decoder, data)
    assert (begun(decoding).lead, decoding.partial, decoding.span) == (0.0, False, None)
    assert decoding.seconds == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("extension", ["mp4", "mov", "webm", "mkv", "avi"])
def test_a_picture_that_lasts_longer_gives_the_length_of_the_file(
    decoder: AudioDecoder, extension: str
) -> None:
    _, decoding = decoded(decoder, film(extension, Track(samples=sine(4)), picture=(0, 12)))
    assert decoding.span == pytest.approx(12, abs=0.3)
    assert decoding.seconds == pytest.approx(4, abs=0.2)
    _, longer = decoded(decoder, film(extension, Track(samples=sine(4)), picture=(0, 2)))
    assert longer.span is None


def test_the_length_of_a_live_recording_is_a_difference(decoder: AudioDecoder) -> None:
    epoch = 1_700_000_000.0
    track = Track(samples=sine(4), begins=epoch + 1)
    for options in ({"live": "1"}, {}):
        data = film("webm", track, picture=(epoch, epoch + 9), options=options)
        _, decoding = decoded(decoder, data)
        assert begun(decoding).lead == pytest.approx(1, abs=0.06)
        assert decoding.span == pytest.approx(9, abs=0.3)
        assert not decoding.partial


# Codecs and rates


@pytest.mark.parametrize("rate", [4000, 6000, 7350, 384_000, 768_000])
def test_rates_from_4_to_768_khz(decoder: AudioDecoder, rate: int) -> None:
    samples, _ = decoded(decoder, wav(sine(2 * max(1, rate // RATE)), rate=rate))
    assert len(samples) > RATE


def test_a_codec_off_the_list_is_refused_for_good(decoder: AudioDecoder) -> None:
    with pytest.raises(UnsupportedAudioError, match="tta"):
        decoded(decoder, film("mkv", Track(samples=sine(1), codec="tta")))
    with pytest.raises(UnsupportedAudioError, match="format"):
        decoded(decoder, b"ffconcat version 1.0\nfile x.webm\n")
    with pytest.raises(AudioError) as error:
        decoded(decoder, encode(sine(3), "webm")[:200])
    assert not isinstance(error.value, UnsupportedAudioError)
