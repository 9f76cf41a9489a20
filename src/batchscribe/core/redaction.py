"""Removes secrets and characters that manipulate a terminal from shown texts."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[hidden]"
SHORTEST_SECRET = 8
"""Characters. Shorter secrets are not redacted: they occur in ordinary words and numbers."""
SURE_SECRET = 16
"""Characters from which on a secret is redacted inside words, too."""
_TRICKS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), HIDDEN),
    (re.compile(r"(hooks\.slack[a-z-]*\.com)/[^\s'\"]+", re.IGNORECASE), rf"\1/{HIDDEN}"),
    (
        re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s'\"]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
)
"""Patterns of secrets that are not configured: logins in URLs, webhooks, signatures."""
_MARKS = re.compile(r"://|slack|x-amz|AKIA|ASIA", re.IGNORECASE)
"""Occurs in every text that one of them matches."""


def printable(text: str, *, keep: str = "") -> str:
    """Escapes control, bidirectional and invalid characters, except those in `keep`."""
    return _TRICKS.sub(lambda match: match[0] if match[0] in keep else _escape_character(match[0]), text)


def printable_json(text: str) -> str:
    """Escapes the same characters in a JSON document, whose strings stay equal."""
    return _TRICKS.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _build_pattern(secret: str) -> str:
    """Pattern of a secret; a short one matches only as a word."""
    sure = len(secret) >= SURE_SECRET
    before = "" if sure or not secret[0].isalnum() else r"(?<![^\W_])"
    behind = "" if sure or not secret[-1].isalnum() else r"(?![^\W_])"
    return f"{before}{re.escape(secret)}{behind}"


class Redactor:
    """Redacts known secrets, and texts with the pattern of a secret."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join(map(_build_pattern, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        if self._known:
            text = self._known.sub(HIDDEN, text)
        if _MARKS.search(text):
            for pattern, shown in _PATTERNS:
                text = pattern.sub(shown, text)
        return text
