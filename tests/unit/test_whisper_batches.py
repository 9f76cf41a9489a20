"""Batches, votes, memory and the guard, with a double of the model."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from batchscribe.adapters.engines.problems import out_of_memory
from batchscribe.adapters.engines.whisper.batches import FasterWhisper
from batchscribe.adapters.engines.whisper.budget import ALLOWANCE, MOST, SHARE, Budget
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.flags import LOW_CONFIDENCE, RERUN
from batchscribe.core.text.language_vote import VOTERS
from batchscribe.core.text.quality import Doubt, Recognized
from batchscribe.core.text.speech import Recognition
from batchscribe.errors import EngineError, OutOfMemoryError
from batchscribe.testing.clock import FakeClock
from support.whisper_double import ScriptedDecoder, numbered, ordinary, utterance


def engine_of(decoder: ScriptedDecoder, clock: FakeClock | None = None, **spec: Any) -> FasterWhisper:
    return FasterWhisper(
        decoder,
        EngineSpec(**{"engine": "faster-whisper", "language": "en", **spec}),
        model="double",
        device="double",
        monotonic=(clock or FakeClock()).monotonic,
    )


def texts(results: list[Recognition]) -> dict[int, str]:
    return {result.window: " ".join(part.text for part in result.segments) for result in results}


# ------------------------------------------------------------------ a batch


def test_windows_of_any_session_share_a_batch() -> None:
    decoder = ScriptedDecoder()
    results = list(engine_of(decoder).transcribe([numbered(number, f"s{number % 3}") for number in range(4)]))
    assert [windows for _, windows in decoder.heard] == [[0, 1, 2, 3]]
    assert texts(results) == {number: f"window {number}" for number in range(4)}


def test_features_that_were_prepared_are_not_computed_again() -> None:
    computed: list[int] = []
    engine = engine_of(ScriptedDecoder(ahead=computed.append))
    windows = [numbered(number) for number in range(3)]
    engine.prepare(windows[:2])
    assert computed == [0, 1]
    assert texts(list(engine.transcribe(windows))) == {number: f"window {number}" for number in range(3)}
    assert computed == [0, 1, 2]


def test_features_live_no_longer_than_their_window() -> None:
    engine = engine_of(ScriptedDecoder())
    windows = [numbered(1), numbered(2)]
    engine.prepare(windows)
    del windows[0]
    gc.collect()
    assert list(engine._features) == windows


# ------------------------------------------------------------------ memory


def test_a_batch_too_large_for_the_memory_is_an_error_of_its_own_with_the_mend() -> None:
    engine = engine_of(ScriptedDecoder(room=1))
    with pytest.raises(OutOfMemoryError, match=r"out of memory.*WHISPER_MODEL"):
        list(engine.transcribe([numbered(1), numbered(2)]))
    assert texts(list(engine.transcribe([numbered(1)]))) == {1: "window 1"}


def test_another_error_is_no_lack_of_memory() -> None:
    def broken(_number: int) -> Recognized:
        raise RuntimeError("CUDA failed with error an illegal instruction was encountered\nat line 5")

    with pytest.raises(EngineError, match=r"transcribing: CUDA.*encountered$") as error:
        list(engine_of(ScriptedDecoder(says=broken)).transcribe([numbered(1)]))
    assert not isinstance(error.value, OutOfMemoryError)
    assert out_of_memory(RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"))
    assert out_of_memory(MemoryError())


class OddError(Exception):
    """What no vendor has documented."""


@pytest.mark.parametrize("kind", [IndexError, ValueError, KeyError, OddError])
@pytest.mark.parametrize("where", ["says", "says_again", "ahead", "chances"])
def test_whatever_is_raised_is_an_engine_error_without_what_was_said(
    kind: type[Exception], where: str
) -> None:
    def broken(_number: int) -> Any:
        raise kind("a secret sentence")

    decoder = ScriptedDecoder(says=lambda _number: utterance("you " * 20, 20.0))
    setattr(decoder, where, broken)
    with pytest.raises(EngineError, match=f"transcribing: {kind.__name__}$"):
        list(engine_of(decoder, language=None).transcribe([numbered(1)]))


# ------------------------------------------------------------------ language


def test_a_session_speaks_what_its_first_windows_say_together() -> None:
    doubtful = {0: {"de": 0.6, "en": 0.4}, 1: {"de": 0.2, "en": 0.8}}
    decoder = ScriptedDecoder(chances=lambda number: doubtful.get(number, {"de": 0.1, "en": 0.2}))
    windows = [numbered(number, "talk") for number in range(9)]
    engine = engine_of(decoder, language=None)
    results = [result for at in (0, 3, 6) for result in engine.transcribe(windows[at : at + 3])]
    assert {result.language for result in results} == {"en"}
    assert decoder.asked == [[0, 1, 2], [3]]
    assert VOTERS == 4


def test_windows_in_two_languages_are_heard_apart() -> None:
    decoder = ScriptedDecoder(chances=lambda number: {"de" if number % 2 else "en": 1.0})
    windows = [numbered(number, "odd" if number % 2 else "even") for number in range(4)]
    results = list(engine_of(decoder, language=None).transcribe(windows))
    assert decoder.heard == [("en", [0, 2]), ("de", [1, 3])]
    assert [(result.window, result.language) for result in results] == [
        (0, "en"),
        (1, "de"),
        (2, "en"),
        (3, "de"),
    ]


def test_a_window_without_a_session_speaks_for_itself() -> None:
    decoder = ScriptedDecoder(chances=lambda number: {"de" if number == 2 else "en": 1.0})
    results = list(engine_of(decoder, language=None).transcribe([numbered(number) for number in range(6)]))
    assert [result.language for result in results] == ["en", "en", "de", "en", "en", "en"]


def test_nobody_is_asked_where_the_language_is_given() -> None:
    decoder = ScriptedDecoder()
    windows = [numbered(0, "a", language="fr"), numbered(1, "a")]
    results = list(engine_of(decoder, language="de").transcribe(windows))
    assert [result.language for result in results] == ["fr", "de"]
    assert decoder.asked == []


def test_an_english_model_hears_english() -> None:
    decoder = ScriptedDecoder(multilingual=False)
    results = list(engine_of(decoder, language=None).transcribe([numbered(0, "a"), numbered(1)]))
    assert [result.language for result in results] == ["en", "en"]
    assert decoder.asked == []


# ------------------------------------------------------------------ the guard


def loop(number: int) -> Recognized:
    return utterance(f"loop{number} " * 20, 20.0)


def test_what_looks_wrong_is_heard_again_and_the_better_one_kept() -> None:
    decoder = ScriptedDecoder(says=lambda number: loop(number) if number == 1 else ordinary(number))
    results = list(engine_of(decoder).transcribe([numbered(number) for number in range(3)]))
    assert [(number, language) for number, language, _ in decoder.reheard] == [(1, "en")]
    assert Doubt.LOOPING in decoder.reheard[0][2]
    assert texts(results) == {number: f"window {number}" for number in range(3)}
    assert [result.flags for result in results] == [(), (RERUN,), ()]


def test_what_looks_wrong_twice_is_kept_and_flagged() -> None:
    decoder = ScriptedDecoder(says=loop, says_again=loop)
    (result,) = engine_of(decoder).transcribe([numbered(1, seconds=20.0)])
    assert result.flags == (RERUN, LOW_CONFIDENCE)
    assert result.segments


def test_second_hearings_end_with_their_time() -> None:
    clock = FakeClock()
    takes = {"transcribe": 10.0, "transcribe_again": 20.0}
    decoder = ScriptedDecoder(says=loop, takes=lambda what: clock.sleep(takes[what]))
    engine = engine_of(decoder, clock)
    results = [result for number in range(5) for result in engine.transcribe([numbered(number)])]
    # 30 s and a fifth of what the first hearings took: 32, 14, -4 (so not the third), -2, 0.
    assert [result.flags for result in results] == [(RERUN,), (RERUN,), *[(LOW_CONFIDENCE,)] * 3]
    assert all(result.segments for result in results)


def test_the_budget_grows_with_the_work() -> None:
    clock = FakeClock()
    budget = Budget(clock.monotonic)
    assert budget.left == ALLOWANCE
    with budget.measure(SHARE):
        clock.sleep(100.0)
    assert budget.left == pytest.approx(ALLOWANCE + 100.0 * SHARE)
    with budget.measure(-1):
        clock.sleep(60.0)
    assert budget.left == pytest.approx(-10.0)


def test_silence_has_no_words() -> None:
    silence = utterance("five", avg_logprob=-1.3, no_speech_prob=0.98)
    decoder = ScriptedDecoder(says=lambda _number: silence)
    (result,) = engine_of(decoder).transcribe([numbered(1)])
    assert (result.segments, result.flags) == ((), ())
    assert decoder.reheard == []


def test_an_empty_text_is_no_segment() -> None:
    decoder = ScriptedDecoder(says=lambda _number: utterance("  "))
    (result,) = engine_of(decoder).transcribe([numbered(1)])
    assert (result.segments, result.flags) == ((), ())


def test_times_keep_to_the_window() -> None:
    decoder = ScriptedDecoder(says=lambda _number: utterance("one two", 2.4))
    (result,) = engine_of(decoder).transcribe([numbered(1, seconds=2.0)])
    assert [(word.start, word.end) for word in result.segments[0].words] == [(0.0, 1.2), (1.2, 2.0)]


def test_results_come_one_by_one_while_others_are_heard_again() -> None:
    clock = FakeClock()
    decoder = ScriptedDecoder(says=loop, says_again=loop, takes=lambda what: clock.sleep(10.0))
    results = engine_of(decoder, clock).transcribe([numbered(number) for number in range(4)])
    next(results)
    assert len(decoder.reheard) == 1


def test_who_is_to_end_hears_nothing_twice() -> None:
    decoder = ScriptedDecoder(says=loop, says_again=loop)
    engine = engine_of(decoder)
    results = engine.transcribe([numbered(number) for number in range(4)])
    assert next(results).flags == (RERUN, LOW_CONFIDENCE)
    engine.hurry()
    assert [result.flags for result in results] == [(LOW_CONFIDENCE,)] * 3
    assert len(decoder.reheard) == 1


def test_time_for_second_hearings_is_not_saved_up_for_hours() -> None:
    clock = FakeClock()
    budget = Budget(clock.monotonic)
    with budget.measure(SHARE):
        clock.sleep(3600.0)
    assert budget.left == MOST


def test_without_memory_for_a_second_hearing_the_first_is_kept() -> None:
    def again(_number: int) -> Recognized:
        raise RuntimeError("CUDA failed with error out of memory")

    decoder = ScriptedDecoder(says=loop, says_again=again)
    (result,) = engine_of(decoder).transcribe([numbered(1, seconds=20.0)])
    assert result.flags == (LOW_CONFIDENCE,)
    assert result.segments


def test_halves_of_a_batch_do_not_vote_again() -> None:
    asked: list[int] = []
    decoder = ScriptedDecoder(chances=lambda number: {"de": 0.9} if number < 2 else {"fr": 0.8})

    def transcribe(encoded: Any, seconds: Any, language: str, **_options: Any) -> list[Recognized]:
        asked.append(len(encoded))
        if len(encoded) > 1:
            raise RuntimeError("CUDA failed with error out of memory")
        return [ordinary(number) for number in encoded]

    decoder.transcribe = transcribe  # type: ignore[method-assign]
    engine = engine_of(decoder, language=None)
    windows = [numbered(number, "s") for number in range(2)]
    with pytest.raises(OutOfMemoryError):
        list(engine.transcribe(windows))
    for window in windows:
        list(engine.transcribe([window]))
    assert asked == [2, 1, 1]
    assert engine._votes.count_open_votes("s") == VOTERS - 2
