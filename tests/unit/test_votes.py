from __future__ import annotations

from batchscribe.core.text.language_vote import VOTERS, Votes


def test_probabilities_are_summed_and_then_the_vote_is_over() -> None:
    votes = Votes()
    assert votes.find_language("a") is None
    assert votes.count_open_votes("a") == VOTERS
    votes.cast("a", {"de": 0.6, "en": 0.4})
    assert votes.find_language("a") == "de"
    for _ in range(VOTERS - 1):
        votes.cast("a", {"de": 0.4, "en": 0.6})
    assert votes.find_language("a") == "en"
    assert votes.count_open_votes("a") == 0
    votes.cast("a", {"fr": 100.0})
    assert votes.find_language("a") == "en"


def test_sessions_vote_apart() -> None:
    votes = Votes()
    votes.cast("a", {"de": 1.0})
    votes.cast("b", {"en": 1.0})
    assert (votes.find_language("a"), votes.find_language("b")) == ("de", "en")


def test_a_tie_is_always_decided_alike() -> None:
    for chances in ({"de": 0.5, "en": 0.5}, {"en": 0.5, "de": 0.5}):
        votes = Votes()
        votes.cast("a", chances)
        assert votes.find_language("a") == "en"


def test_the_session_asked_for_longest_ago_is_forgotten_first() -> None:
    votes = Votes(limit=2)
    votes.cast("a", {"de": 1.0})
    votes.cast("b", {"en": 1.0})
    assert votes.find_language("a") == "de"
    votes.cast("c", {"fr": 1.0})
    assert votes.find_language("b") is None
    assert (votes.find_language("a"), votes.find_language("c")) == ("de", "fr")
