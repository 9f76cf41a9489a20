"""Messages to users, without secrets and without transcribed words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Message:
    title: str
    body: str
    level: Level = Level.INFO


def lead_with_note(event: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an event of the log for people: its note, if it has one, stands in the place of its name."""
    fields = dict(event)
    if note := fields.pop("note", ""):
        fields["event"] = note
    return fields
