"""Stored form of a run, in the ledger and in the store.

Version 1 stored a separate intent in the store, and the times of polls beside the other fields in the ledger.
Version 2 had one instance with one meter. Both are still readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from batchscribe.core.bounds import EARLIEST, LATEST, MOST
from batchscribe.core.run.manifest import NAME
from batchscribe.core.run.runs import VERSION, Run, RunState
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import MisconfiguredError

_METER = (
    ("start_requested", "start_requested"),
    ("start_accepted", "start_accepted"),
    ("idle_until", "idle_until"),
    ("up_since", "seen_up"),
    ("running_since", "running_since"),
    ("running_until", "running_until"),
    ("stopped", "stopped"),
)
"""Fields of a meter, with their names in version 1."""


_BEFORE_LAUNCH = frozenset({RunState.PLANNED, RunState.ARMED, RunState.PROVISIONING, RunState.DISPATCHING})
"""States in which the last worker was not launched."""


class _Outcome(msgspec.Struct, frozen=True):
    outcome: str


def encode_run(run: Run) -> bytes:
    return msgspec.json.encode(run)


@lru_cache(maxsize=128)
def decode_run(data: bytes | str) -> Run:
    """Decodes a run; raises MisconfiguredError if it is unreadable or newer.

    Cached, because every step reads the open runs again.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        version = fields.get("version", 1)
        if version == 1:
            fields, version = _convert_version_1(fields), 2
        if version == 2:
            fields, version = _convert_version_2(fields), VERSION
        if version != VERSION:
            raise MisconfiguredError(
                f"this run has version {version}, this batchscribe reads version {VERSION}: install the same "
                "batchscribe on both sides"
            )
        run = msgspec.convert(fields, Run, strict=False)
        _check_bounds(msgspec.to_builtins(run, builtin_types=(datetime,)))
    except (*UNREADABLE, KeyError, TypeError, ValueError, OverflowError) as error:
        raise MisconfiguredError(f"not a readable run: {error}") from error
    if not run.machines:
        raise MisconfiguredError(f"not a readable run: {run.id} has no machine")
    if not NAME.fullmatch(run.id):
        raise MisconfiguredError(f"not a readable run: {run.id!r} is not a valid run id")
    return run


def _check_bounds(value: object) -> None:
    """Raises ValueError for a number or a time out of bounds."""
    match value:
        case str() | None:  # most values
            return
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
    """Decodes the settlement of `run`; raises MisconfiguredError for another run's."""
    settled = decode_run(data)
    if settled.open or settled.id != run.id:
        raise MisconfiguredError(f"not the settlement of run {run.id}")
    return settled


def decode_outcome(data: bytes) -> str:
    """Decodes the outcome of a settlement of either version."""
    try:
        return msgspec.json.decode(data, type=_Outcome).outcome
    except UNREADABLE as error:
        raise MisconfiguredError(f"not a readable settlement: {error}") from error


def _convert_version_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Moves what a run stored once to its machine and its workers."""
    document = dict(fields)
    first, *others = document.pop("instances")
    machine = {"id": first, "meter": document.pop("meter", {})}
    machine["reaching_since"] = document.pop("reaching_since", None)
    manifests, ended = document.pop("manifests", ()), document.pop("work_ended", None)
    workers = [{"manifest": manifest, "machine": first, "launched": True} for manifest in manifests]
    if workers:
        launched = document.get("state") not in _BEFORE_LAUNCH
        workers[-1] |= {"launched": launched, "ended": ended}
    machines = [machine, *({"id": other} for other in others)]
    return document | {"version": VERSION, "machines": machines, "workers": workers}


def _convert_version_1(fields: dict[str, Any]) -> dict[str, Any]:
    document = dict(fields) if "id" in fields else _convert_intent(fields)
    meter: dict[str, Any] = {name: _make_moment(document.pop(old, None)) for name, old in _METER}
    meter |= {name: document.pop(name, None) for name in ("launched_before", "launched")}
    moments = {name: _make_moment(document.get(name)) for name in ("reaching_since", "stop_requested")}
    return document | moments | {"meter": meter, "version": 2}


def _convert_intent(fields: Mapping[str, Any]) -> dict[str, Any]:
    rate = {
        "per_hour": {"micros": fields["rate_micros"]},
        "source": fields["rate_source"],
        "as_of": fields.get("rate_as_of", ""),
    }
    renamed = {"id": fields["run"], "rate": rate, "planned_chunks": fields["chunks"]}
    return dict(fields) | renamed | {"planned_audio_seconds": fields["audio_seconds"], "audio_seconds": 0.0}


def _make_moment(at: object) -> dict[str, object] | None:
    return {"at": at} if at is not None else None
