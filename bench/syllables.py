"""Words of no language, for models that say anything."""

from __future__ import annotations

import random

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def syllables(count: int) -> list[str]:
    """So many that what is said does not look like a loop, which would be heard again."""
    chance = random.Random(5)
    found: dict[str, None] = {}
    while len(found) < count:
        size = chance.randint(2, 3)
        found["".join(chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(size))] = None
    return list(found)
