"""List prices of hosted services, and savings against the first one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.prices import mark_age


@dataclass(frozen=True, slots=True)
class HostedService:
    name: str
    per_audio_hour: Usd
    as_of: str
    source: str = "the service's price page"


HOSTED = (
    HostedService("AWS Transcribe", Usd.parse("0.36"), "2026-09-22", "AWS price list, batch"),
    HostedService("AssemblyAI Universal-3.5 Pro", Usd.parse("0.21"), "2026-10-07"),
    HostedService("AssemblyAI Universal-2", Usd.parse("0.15"), "2026-10-07"),
    HostedService(
        "Groq, Whisper large-v3-turbo", Usd.parse("0.04"), "2026-09", "price table of litellm 1.109.1"
    ),
)
"""The first one is compared with each run: it needs no other provider than the GPU."""


class Savings(msgspec.Struct, frozen=True, kw_only=True):
    """Savings against a hosted service; `saved` is negative if it is cheaper."""

    against: str
    per_audio_hour: float
    as_of: str
    source: str = ""
    hosted: float
    saved: float
    """At least: the cost is an upper bound."""
    saved_micros: int


def make_savings(cost: Usd, audio_hours: float) -> Savings | None:
    """Compares a cost with HOSTED's first service; None without audio."""
    if audio_hours <= 0:
        return None
    service = HOSTED[0]
    hosted = Usd(round(service.per_audio_hour.micros * audio_hours))
    saved = hosted - cost
    return Savings(
        against=service.name,
        per_audio_hour=service.per_audio_hour.dollars,
        as_of=service.as_of,
        source=service.source,
        hosted=hosted.dollars,
        saved=saved.dollars,
        saved_micros=saved.micros,
    )


def format_savings(savings: Savings | None, now: datetime, bound: str = "at least ") -> str:
    """Text such as `at least $0.35: AWS Transcribe charges …`."""
    if savings is None:
        return "no audio"
    old = mark_age(savings.as_of, now)
    dated = f" (price as of {savings.as_of}{old})" if old else ""
    price = f"{savings.against} charges {Usd.parse(savings.hosted)} for the same audio{dated}"
    if savings.saved_micros < 0:
        return f"none, {Usd(-savings.saved_micros)} dearer: {price}"
    return f"{bound}{Usd(savings.saved_micros)}: {price}"
