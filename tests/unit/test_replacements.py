"""Replacements: literal ones in any case and across words, expressions with groups; times are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.replacements import SECONDS, parse_replacements, replace_words
from batchscribe.core.text.spelling import spell_words
from batchscribe.core.text.stitching import stitch
from batchscribe.core.text.transcripts import Segment, SessionTranscript, Word
from batchscribe.errors import MisconfiguredError, PermanentError

RULES = """
# names
batch  scribe => batchscribe
acme => Acme Corporation
/(\\d+) euros?/ => \\1 €
uh, =>
"""


def spoken(text: str) -> Segment:
    words = tuple(
        Word(word=word.strip(",."), start=float(at), end=at + 1.0, probability=0.9 - at / 10)
        for at, word in enumerate(text.split())
    )
    return Segment(text=text, start=0.0, end=float(len(words)), words=words)


def test_words_become_one_and_keep_their_time() -> None:
    found = replace_words(spoken("The Batch Scribe, for 20 euros."), parse_replacements(RULES))
    assert found.text == "The batchscribe, for 20 €."
    assert [(word.word, word.start, word.end) for word in found.words] == [
        ("The", 0.0, 1.0),
        ("batchscribe,", 1.0, 3.0),
        ("for", 3.0, 4.0),
        ("20", 4.0, 5.0),
        ("€.", 5.0, 6.0),
    ]


def test_a_longer_text_is_divided_in_the_words_time() -> None:
    found = replace_words(spoken("at ACME now"), parse_replacements(RULES))
    assert found.text == "at Acme Corporation now"
    assert [word.word for word in found.words] == ["at", "Acme", "Corporation", "now"]
    assert found.words[1].end == found.words[2].start
    assert (found.words[1].start, found.words[2].end) == (1.0, 2.0)
    assert {word.probability for word in found.words[1:3]} == {0.8}


def test_words_that_overlap_end_after_they_began() -> None:
    long, short = Word(word="batch", start=5.0, end=8.0), Word(word="scribe", start=1.0, end=2.0)
    segment = Segment(text="batch scribe", start=1.0, end=8.0, words=(long, short))
    found = replace_words(segment, parse_replacements(RULES))
    assert [(word.word, word.start, word.end) for word in found.words] == [("batchscribe", 5.0, 8.0)]


def test_a_part_of_a_word_is_no_match_and_a_text_may_vanish() -> None:
    found = replace_words(spoken("uh, acmes"), parse_replacements(RULES))
    assert found.text.strip() == "acmes"
    assert [word.word for word in found.words] == ["acmes"]


def test_a_segment_without_words_is_replaced_too() -> None:
    segment = Segment(text="batch scribe", start=0, end=1)
    assert replace_words(segment, parse_replacements(RULES)).text == "batchscribe"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no arrow", "without =>"),
        ("=> x", "nothing to replace"),
        ("/(/ => x", "missing"),
        ("/a/ => \\2", "line 1"),
        ("/a*/ => x", "empty text"),
        (f"/{'(' * 400}a{')' * 400}/ => x", "recursion"),
        ("a" * 2000 + " => b", "too long"),
    ],
)
def test_a_line_that_is_no_rule_is_refused(line: str, reason: str) -> None:
    with pytest.raises(MisconfiguredError, match=reason):
        parse_replacements(line)


def test_an_expression_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscribe.core.text.replacements.SECONDS", 1e-4)
    with pytest.raises(PermanentError, match="simplify"):
        replace_words(Segment(text="a" * 5000 + "c", start=0, end=1), parse_replacements("/(a|aa)+b/ => c"))
    assert SECONDS == 1.0


def test_rules_that_feed_each_other_are_stopped() -> None:
    rules = parse_replacements("/a/ => aaaaaaaaaa\n" * 20)
    with pytest.raises(PermanentError, match="longer than 100,000 characters: shorten it"):
        replace_words(Segment(text="a", start=0, end=1), rules)
    assert len(replace_words(Segment(text="a", start=0, end=1), rules[:5]).text) == 10**5


@given(st.lists(st.sampled_from(["batch", "scribe", "acme", "20", "euros", "uh,"]), min_size=1, max_size=8))
def test_words_and_text_stay_equal_and_in_order(names: list[str]) -> None:
    found = replace_words(spoken(" ".join(names)), parse_replacements(RULES))
    assert "".join(spell_words(found)).split() == found.text.split()
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_session_files_change_with_the_rules_and_chunks_do_not() -> None:
    whole = SessionTranscript(
        session="s/", text="", segments=(spoken("acme"),), duration=1, parts=(), digest="d"
    )
    plain, ruled = Rendering(), Rendering(replacements=parse_replacements(RULES))
    assert plain.finish(whole).digest == "d" == plain.sign("d")
    assert ruled.finish(whole).text == "Acme Corporation"
    assert ruled.finish(whole).digest == ruled.sign("d") != "d"
    assert stitch("s/", []).digest != ruled.sign(stitch("s/", []).digest)
