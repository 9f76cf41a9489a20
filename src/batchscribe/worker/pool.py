"""Windows that wait for the engine, sorted by their amount of speech."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

Entry = tuple[int, int]
"""Samples of speech, number of the window."""


class Pool:
    """Hands out windows of similar length; the oldest is always among them."""

    def __init__(self) -> None:
        self._sorted: list[Entry] = []
        self._by_age: dict[int, tuple[int, bool]] = {}

    def __len__(self) -> int:
        return len(self._by_age)

    @property
    def oldest_alone(self) -> bool:
        """True if the oldest window must be transcribed alone."""
        return next(iter(self._by_age.values()))[1]

    def add(self, number: int, speech: int, *, alone: bool) -> None:
        insort(self._sorted, (speech, number))
        self._by_age[number] = (speech, alone)

    def take_batch(self, count: int) -> list[int]:
        """The oldest window and similar ones, at most `count`, longest first."""
        oldest = next(iter(self._by_age))
        speech, alone = self._by_age[oldest]
        at = bisect_left(self._sorted, (speech, oldest))
        low = max(0, min(at - count // 2, len(self._sorted) - count))
        chosen = [self._sorted[at]] if alone else self._sorted[low : low + count]
        # A window that must be transcribed alone joins no batch.
        taken = [entry for entry in chosen if alone or not self._by_age[entry[1]][1]]
        for entry in taken:
            self._sorted.remove(entry)
            del self._by_age[entry[1]]
        return [number for _speech, number in reversed(taken)]

    def clear(self) -> Iterator[int]:
        """Removes and yields all windows, the oldest first."""
        numbers = list(self._by_age)
        self._sorted.clear()
        self._by_age.clear()
        yield from numbers
