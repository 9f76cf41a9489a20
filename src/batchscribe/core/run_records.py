"""A run as it is stored: in the ledger, and in the store as its record and its settlement.

Version 1 stored an intent and a settlement with fields of their own in the store, and the times of polls
beside the other fields in the ledger; all three are still read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from batchscribe.core.bounds import EARLIEST, LATEST, MOST, Count, Dated, Micros, Seconds, Time
from batchscribe.core.foreign import UNREADABLE
from batchscribe.core.manifest import NAME, Worked
from batchscribe.core.meter import Meter, Moment
from batchscribe.core.money import ZERO
from batchscribe.core.runs import VERSION, Run, RunState
from batchscribe.errors import MisconfiguredError

SLACK_SECONDS = 7200.0
"""A clock that was set while the run was open may make its life look shorter than its bill."""
_METER = (
    ("start_requested", "start_requested"),
    ("start_accepted", "start_accepted"),
    ("idle_until", "idle_until"),
    ("up_since", "seen_up"),
    ("running_since", "running_since"),
    ("running_until", "running_until"),
    ("stopped", "stopped"),
)
"""Fields of a meter, and where version 1 had them."""


class _Outcome(msgspec.Struct, frozen=True):
    outcome: str


class _Settlement1(Dated, frozen=True, kw_only=True):
    outcome: str
    detail: str
    settled: Time
    billed_seconds: Seconds
    cost_micros: Micros
    chunks_done: Count
    chunks_failed: Count
    audio_seconds: Seconds
    worked: Worked = Worked()


def encode_run(run: Run) -> bytes:
    return msgspec.json.encode(run)


@lru_cache(maxsize=128)
def decode_run(data: bytes | str) -> Run:
    """The run in `data`. Raises MisconfiguredError if it is none, or of a newer version.

    Every step reads the open runs again; the same text is decoded once.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        version = fields.get("version", 1)
        if version != VERSION:
            fields = _from_version_1(fields, version)
        run = msgspec.convert(fields, Run, strict=False)
        _check_bounds(msgspec.to_builtins(run, builtin_types=(datetime,)))
    except (*UNREADABLE, KeyError, TypeError, ValueError, OverflowError) as error:
        raise MisconfiguredError(f"not a readable run: {error}") from error
    if not NAME.fullmatch(run.id):
        raise MisconfiguredError(f"not a readable run: {run.id!r} is no name of one")
    return run


def _check_bounds(value: object) -> None:
    """Raises ValueError for a number or a time that must not be reckoned with: a store may hold anything."""
    match value:
        case dict():
            for item in value.values():
                _check_bounds(item)
        case list() | tuple():
            for item in value:
                _check_bounds(item)
        case int() | float() if not 0 <= value <= MOST:
            raise ValueError(f"the number {value} is out of bounds")
        case datetime() if not EARLIEST <= value <= LATEST:
            raise ValueError(f"the time {value} is out of bounds")


def decode_settlement(data: bytes, run: Run) -> Run:
    """The settled run in `data`; `run` is its record, which settlements of version 1 do not repeat."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        if fields.get("version") == 1 and "outcome" in fields and fields.get("run") == run.id:
            return _settled(run, msgspec.convert(fields, _Settlement1))
    except UNREADABLE as error:
        raise MisconfiguredError(f"not a readable settlement: {error}") from error
    settled = decode_run(data)
    if settled.open or settled.id != run.id:
        raise MisconfiguredError(f"not the settlement of run {run.id}")
    return settled


def decode_outcome(data: bytes) -> str:
    """The outcome in a settlement of either version."""
    try:
        return msgspec.json.decode(data, type=_Outcome).outcome
    except UNREADABLE as error:
        raise MisconfiguredError(f"not a readable settlement: {error}") from error


def is_plausible(settled: Run, run: Run) -> bool:
    """True if this scheduler may have settled `run` like this.

    The bill covers what the run's own polls prove, and no more than its life; the cost follows from it.
    """
    if (settled.id, settled.scheduler, settled.host) != (run.id, run.scheduler, run.host):
        return False
    if settled.settled is None:
        return False
    life = (settled.settled - run.created).total_seconds()
    # Clocks that contradict each other across a reboot are answered with the deadline.
    contradicted = settled.billed_seconds == (run.deadline - run.created).total_seconds()
    at_most = life + SLACK_SECONDS if life >= -SLACK_SECONDS else 0.0
    bounded = run.billed_seconds <= settled.billed_seconds and (
        settled.billed_seconds <= at_most or contradicted
    )
    retyped = settled.instance_type != run.instance_type and settled.rate.per_hour > ZERO
    return bounded and settled.cost == settled.bill() and (settled.rate == run.rate or retyped)


def _from_version_1(fields: dict[str, Any], version: object) -> dict[str, Any]:
    if version != 1:
        raise MisconfiguredError(
            f"this run has version {version}, this batchscribe reads version {VERSION}: install the same "
            "batchscribe on both sides"
        )
    document = dict(fields) if "id" in fields else _from_intent(fields)
    meter: dict[str, Any] = {name: _moment(document.pop(old, None)) for name, old in _METER}
    meter |= {name: document.pop(name, None) for name in ("launched_before", "launched")}
    moments = {name: _moment(document.get(name)) for name in ("reaching_since", "stop_requested")}
    return document | moments | {"meter": meter, "version": VERSION}


def _from_intent(fields: Mapping[str, Any]) -> dict[str, Any]:
    rate = {
        "per_hour": {"micros": fields["rate_micros"]},
        "source": fields["rate_source"],
        "as_of": fields.get("rate_as_of", ""),
    }
    renamed = {"id": fields["run"], "rate": rate, "planned_chunks": fields["chunks"]}
    return dict(fields) | renamed | {"planned_audio_seconds": fields["audio_seconds"], "audio_seconds": 0.0}


def _moment(at: object) -> dict[str, object] | None:
    return {"at": at} if at is not None else None


def _settled(run: Run, old: _Settlement1) -> Run:
    """Version 1 kept the billed seconds without the polls behind them."""
    begin = Moment(old.settled - timedelta(seconds=old.billed_seconds))
    end = Moment(old.settled)
    meter = Meter(start_requested=begin, up_since=end, stopped=end) if old.billed_seconds else Meter()
    return msgspec.convert(
        msgspec.to_builtins(run)
        | {
            "state": RunState.SETTLED,
            "outcome": old.outcome,
            "detail": old.detail,
            "settled": old.settled,
            "meter": msgspec.to_builtins(meter),
            "chunks_done": old.chunks_done,
            "chunks_failed": old.chunks_failed,
            "audio_seconds": old.audio_seconds,
            "worked": msgspec.to_builtins(old.worked),
            "cost": {"micros": old.cost_micros},
        },
        Run,
        strict=False,
    )
