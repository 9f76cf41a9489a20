"""One language for a session, by a vote of its first windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

VOTERS = 4
"""Windows of a session that vote; a single one may be music, or a greeting in another language."""
SESSIONS = 4096
"""Sessions that are remembered; the least recently used is forgotten first."""


@dataclass
class _Vote:
    sums: dict[str, float] = field(default_factory=dict)
    voters: int = 0


@dataclass
class Votes:
    """The language of each session, by vote.

    A window is transcribed in the language that leads after its own vote; after `VOTERS` windows the
    session's language is fixed.
    """

    limit: int = SESSIONS
    _sessions: OrderedDict[str, _Vote] = field(default_factory=OrderedDict)

    def count_open_votes(self, session: str) -> int:
        """Number of windows of this session that may still vote."""
        vote = self._sessions.get(session)
        return VOTERS - (vote.voters if vote else 0)

    def cast(self, session: str, probabilities: Mapping[str, float]) -> None:
        """Adds a window's probability of each language, until the vote is over."""
        if self.count_open_votes(session) <= 0:
            return
        vote = self._sessions.setdefault(session, _Vote())
        vote.voters += 1
        for language, probability in probabilities.items():
            vote.sums[language] = vote.sums.get(language, 0.0) + probability
        self._mark_used(session)

    def find_language(self, session: str) -> str | None:
        """The leading or fixed language; None without votes."""
        vote = self._sessions.get(session)
        if vote is None:
            return None
        self._mark_used(session)
        return max(vote.sums, key=lambda language: (vote.sums[language], language), default=None)

    def _mark_used(self, session: str) -> None:
        self._sessions.move_to_end(session)
        while len(self._sessions) > self.limit:
            self._sessions.popitem(last=False)
