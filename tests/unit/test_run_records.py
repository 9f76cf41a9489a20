"""A run as it is stored: of this version, of version 1, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.run.manifest import EngineTimeSummary
from batchscribe.core.run.meter import Meter
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import (
    decode_outcome,
    decode_run,
    decode_settlement,
    encode_run,
)
from batchscribe.core.run.runs import Machine, Run, RunState, RunWorker
from batchscribe.errors import MisconfiguredError
from support.values import INSTANCE, NOW, RATE, moment, run, workers

MINUTE = timedelta(minutes=1)
LEDGER_1: dict[str, Any] = {
    "id": "20261123-120000-abcdef",
    "state": "transcribing",
    "outcome": None,
    "detail": "",
    "provider": "ec2",
    "instances": [INSTANCE],
    "region": "us-east-2",
    "source": "s3://bucket/audio",
    "output": "s3://bucket/audio",
    "borrowed": False,
    "policy": "threshold",
    "reason": "120 chunks pending, threshold 100 reached",
    "created": "2026-11-23T12:00:00Z",
    "deadline": "2026-11-23T14:00:00Z",
    "rate": {"per_hour": {"micros": 526000}, "source": "test", "as_of": "2026-11-01"},
    "instance_type": "g4dn.xlarge",
    "wanted_type": "",
    "own_type": "g4dn.xlarge",
    "tried_types": [],
    "trouble": "",
    "launch": "boot",
    "by_hand": False,
    "limit": None,
    "planned_chunks": 120,
    "planned_audio_seconds": 3600.0,
    "planned_seconds": 400.0,
    "manifests": ["_batchscribe/runs/20261123-120000-abcdef/workers/0/manifest.json"],
    "launched_before": "2026-11-22T12:00:00Z",
    "launched": "2026-11-23T12:01:05Z",
    "start_requested": "2026-11-23T12:01:00Z",
    "start_accepted": "2026-11-23T12:01:02Z",
    "seen_up": "2026-11-23T12:01:10Z",
    "idle_until": "2026-11-23T12:01:15Z",
    "running_since": "2026-11-23T12:01:30Z",
    "running_until": "2026-11-23T12:20:00Z",
    "reaching_since": "2026-11-23T12:01:30Z",
    "dispatched": "2026-11-23T12:02:00Z",
    "worker_since": None,
    "first_window": None,
    "work_ended": None,
    "stop_requested": "2026-11-23T12:21:00Z",
    "stopped": "2026-11-23T12:22:15Z",
    "abandoned_gpu": False,
    "settled": None,
    "chunks_done": 0,
    "chunks_failed": 0,
    "audio_seconds": 0.0,
    "worked": {"workers": 0, "load": 0.0},
    "cost": {"micros": 0},
}
"""A run in the ledger of version 0.1.0."""
LEDGER_2: dict[str, Any] = {
    "version": 2,
    "id": "20261123-120000-abcdef",
    "scheduler": "this",
    "host": "laptop",
    "state": "releasing",
    "outcome": None,
    "detail": "worker 1 finished",
    "provider": "ec2",
    "instances": [INSTANCE],
    "region": "us-east-2",
    "source": "s3://bucket/audio",
    "output": "s3://bucket/audio",
    "guard": "eventbridge",
    "control": "",
    "borrowed": False,
    "policy": "threshold",
    "reason": "120 chunks pending, threshold 100 reached",
    "created": "2026-11-23T12:00:00Z",
    "deadline": "2026-11-23T14:00:00Z",
    "rate": {"per_hour": {"micros": 526000}, "source": "test", "as_of": "2026-11-01"},
    "instance_type": "g4dn.xlarge",
    "own_type": "g4dn.xlarge",
    "launch": "boot",
    "planned_chunks": 120,
    "manifests": [
        "_batchscribe/runs/20261123-120000-abcdef/workers/0/manifest.json",
        "_batchscribe/runs/20261123-120000-abcdef/workers/1/manifest.json",
    ],
    "meter": {
        "launched_before": None,
        "start_requested": {"at": "2026-11-23T12:01:00Z", "uptime": 50.5, "boot": "a"},
        "launched": "2026-11-23T12:01:05Z",
        "up_since": {"at": "2026-11-23T12:01:10Z", "uptime": None, "boot": ""},
        "running_until": {"at": "2026-11-23T12:20:00Z", "uptime": None, "boot": ""},
        "stopped": None,
    },
    "reaching_since": {"at": "2026-11-23T12:01:30Z", "uptime": None, "boot": ""},
    "dispatched": "2026-11-23T12:02:00Z",
    "work_ended": "2026-11-23T12:19:00Z",
    "stop_requested": {"at": "2026-11-23T12:20:01Z", "uptime": None, "boot": ""},
    "cost": {"micros": 0},
}
"""A run in the ledger of version 2."""
INTENT_1: dict[str, Any] = {
    "version": 1,
    "run": "20261123-120000-abcdef",
    "scheduler": "this",
    "created": "2026-11-23T12:00:00Z",
    "deadline": "2026-11-23T14:00:00Z",
    "provider": "ec2",
    "region": "us-east-2",
    "source": "s3://bucket/audio",
    "output": "s3://bucket/audio",
    "instances": [INSTANCE],
    "borrowed": False,
    "policy": "threshold",
    "reason": "120 chunks pending, threshold 100 reached",
    "chunks": 120,
    "audio_seconds": 3600.0,
    "rate_micros": 526000,
    "rate_source": "test",
    "rate_as_of": "2026-11-01",
    "instance_type": "g4dn.xlarge",
    "own_type": "g4dn.xlarge",
    "launched_before": "2026-11-22T12:00:00Z",
}
SETTLEMENT_1: dict[str, Any] = {
    "version": 1,
    "run": "20261123-120000-abcdef",
    "outcome": "completed",
    "detail": "worker 0 finished",
    "settled": "2026-11-23T12:25:00Z",
    "billed_seconds": 900.0,
    "cost_micros": 131500,
    "chunks_done": 118,
    "chunks_failed": 2,
    "audio_seconds": 3540.0,
    "worked": {"workers": 1, "load": 4.0, "flags": {"repaired": 3}},
}
SETTLED = run(
    state=RunState.SETTLED,
    outcome=Outcome.COMPLETED,
    settled=NOW + 20 * MINUTE,
    start_requested=NOW,
    up_since=NOW,
    stopped=NOW + 15 * MINUTE,
)
SETTLED = replace(SETTLED, cost=SETTLED.bill())
OPEN = replace(SETTLED, state=RunState.VERIFYING, outcome=None, settled=None, cost=Usd(0))


def stored(fields: dict[str, Any], **changes: Any) -> bytes:
    return msgspec.json.encode(fields | changes)


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


# This version.


def test_a_run_comes_back_as_it_was_stored() -> None:
    begin, end = moment(uptime=50.5, boot="a"), moment(60, uptime=110.0, boot="a")
    whole = replace(
        SETTLED.with_machine(
            INSTANCE,
            meter=Meter(launched=NOW, start_requested=begin, up_since=begin, stopped=end),
            reaching_since=begin,
        ),
        workers=workers("first", "second"),
        stop_requested=end,
        worked=EngineTimeSummary(workers=1, flags={"repaired": 3}),
    )
    assert decode_run(encode_run(whole)) == whole
    assert decode_run(encode_run(whole).decode()) == whole
    assert decode_settlement(encode_run(whole), OPEN) == whole
    assert decode_outcome(encode_run(whole)) == "completed"


def test_a_run_without_newer_fields_takes_their_defaults() -> None:
    fields = msgspec.to_builtins(SETTLED)
    assert decode_run(stored(without(fields, "worked", "host", "tried_types"))) == SETTLED


@pytest.mark.parametrize(
    "change",
    [lambda settled: replace(settled, id="another"), lambda _settled: OPEN],
    ids=["another run", "an open run"],
)
def test_what_is_no_settlement_of_this_run_is_refused(change: Callable[[Run], Run]) -> None:
    with pytest.raises(MisconfiguredError, match=f"not the settlement of run {OPEN.id}"):
        decode_settlement(encode_run(change(SETTLED)), OPEN)


# Version 2.


def test_a_run_of_version_2_keeps_its_meter_and_its_workers() -> None:
    """A document as version 2 stored it: one instance, one meter, manifests beside it."""
    found = decode_run(stored(LEDGER_2))
    (machine,) = found.machines
    assert (machine.id, machine.reaching_since) == (INSTANCE, moment(90))
    assert machine.meter == Meter(
        launched=NOW + timedelta(seconds=65),
        start_requested=moment(60, uptime=50.5, boot="a"),
        up_since=moment(70),
        running_until=moment(1200),
    )
    keys = [f"_batchscribe/runs/20261123-120000-abcdef/workers/{number}/manifest.json" for number in (0, 1)]
    assert found.workers == (
        RunWorker(manifest=keys[0], machine=INSTANCE, launched=True),
        RunWorker(manifest=keys[1], machine=INSTANCE, launched=True, ended=NOW + 19 * MINUTE),
    )
    assert (found.version, found.manifests, found.work_ended) == (3, tuple(keys), NOW + 19 * MINUTE)
    assert decode_run(encode_run(found)) == found


@pytest.mark.parametrize(("state", "launched"), [("dispatching", False), ("transcribing", True)])
def test_the_state_of_version_2_shows_if_its_last_worker_was_launched(state: str, launched: bool) -> None:
    found = decode_run(stored(LEDGER_2, state=state, work_ended=None))
    assert [worker.launched for worker in found.workers] == [True, launched]
    assert bool(found.undispatched) is not launched


def test_a_planned_run_of_version_2_has_a_machine_without_polls() -> None:
    bare = without(LEDGER_2, "meter", "manifests", "reaching_since", "work_ended")
    found = decode_run(stored(bare, state="planned"))
    assert (found.machines, found.workers) == ((Machine(id=INSTANCE),), ())


# Version 1.


def test_a_run_in_the_ledger_of_version_1_keeps_all_of_its_polls() -> None:
    found = decode_run(stored(LEDGER_1))
    assert found.machines[0].meter == Meter(
        launched_before=NOW - timedelta(days=1),
        launched=NOW + timedelta(seconds=65),
        start_requested=moment(60),
        start_accepted=moment(62),
        up_since=moment(70),
        idle_until=moment(75),
        running_since=moment(90),
        running_until=moment(1200),
        stopped=moment(1335),
    )
    assert (found.machines[0].reaching_since, found.stop_requested) == (moment(90), moment(1260))
    assert (found.billed_seconds, found.bill()) == (1260.0, Usd(184_100))
    assert (found.version, found.state, found.rate) == (3, RunState.TRANSCRIBING, RATE)
    assert (found.planned_chunks, found.dispatched) == (120, NOW + 2 * MINUTE)
    assert decode_run(encode_run(found)) == found


def test_a_run_of_version_1_that_was_never_started_has_an_empty_meter() -> None:
    times = ("start_requested", "start_accepted", "seen_up", "idle_until", "running_since", "running_until")
    planned = decode_run(stored(without(LEDGER_1, *times, "stopped", "launched", "stop_requested")))
    assert planned.machines[0].meter == Meter(launched_before=NOW - timedelta(days=1))
    assert (planned.started, planned.stop_requested) == (False, None)


def test_an_intent_of_version_1_is_a_planned_run() -> None:
    found = decode_run(stored(INTENT_1))
    assert found == run(
        scheduler="this",
        region="us-east-2",
        source="s3://bucket/audio",
        output="s3://bucket/audio",
        own_type="g4dn.xlarge",
        planned_chunks=120,
        planned_audio_seconds=3600.0,
        launched_before=NOW - timedelta(days=1),
    )
    bare = without(INTENT_1, "rate_as_of", "launched_before", "own_type", "region", "borrowed")
    assert decode_run(stored(bare)).rate == Rate(per_hour=RATE.per_hour, source="test")


# What is no run.

GARBAGE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b'"run"',
    b"{}",
    b"\xff\xfe",
    b'{"id":' * 5000,
    b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"id":"caf\xe9"}',
    b'{"id":1e999}',
    b'{"version":[]}',
    b'{"version":{"a":1}}',
    b'{"version":null}',
    b'{"version":1,"id":[]}',
    b'{"version":1,"run":{},"outcome":[]}',
    b'{"version":99}',
    b'{"version":1,"outcome":"completed"}',
    b'{"version":1,"outcome":"completed","settled":"0001-01-01T00:00:00Z","billed_seconds":1e30}',
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[:40]))
def test_what_is_no_run_is_a_misconfiguration_and_nothing_else(data: bytes) -> None:
    with pytest.raises(MisconfiguredError):
        decode_run(data)
    with pytest.raises(MisconfiguredError):
        decode_settlement(data, OPEN)


def test_a_newer_version_is_named_with_what_to_do() -> None:
    for version in (0, 4, "3", None):
        with pytest.raises(MisconfiguredError, match="install the same batchscribe on both sides"):
            decode_run(stored(msgspec.to_builtins(SETTLED), version=version))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    "document",
    [msgspec.to_builtins(SETTLED), LEDGER_2, LEDGER_1, INTENT_1, SETTLEMENT_1],
    ids=["version 3", "version 2", "ledger", "intent", "settlement"],
)
@given(st.data())
def test_any_value_in_any_field_is_read_or_refused(document: dict[str, Any], data: st.DataObject) -> None:
    changed = document | {data.draw(st.sampled_from(sorted(document))): data.draw(VALUES)}
    for decode in (decode_run, decode_outcome, lambda encoded: decode_settlement(encoded, OPEN)):
        encoded = msgspec.json.encode(changed)
        with suppress(MisconfiguredError):
            decode(encoded)
