"""Messages to users, without secrets and without transcribed words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchscribe.errors import MisconfiguredError


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


def describe_install(extra: str, otherwise: str = "") -> str:
    """Command that installs an extra from the sources.

    `otherwise` is the extra for a machine without a GPU.
    """
    without = f" (without a GPU '.[{otherwise}]')" if otherwise else ""
    return f"pip install --editable '.[{extra}]'{without} in the folder of the sources"


@contextmanager
def require_extra(subject: str, extra: str) -> Iterator[None]:
    """Converts a missing package of an extra into a MisconfiguredError."""
    try:
        yield
    except ImportError as error:
        raise MisconfiguredError(f"{subject}: {describe_install(extra)}") from error


def lead_with_note(event: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an event of the log for users, its note as name."""
    fields = dict(event)
    if note := fields.pop("note", ""):
        fields["event"] = note
    return fields
