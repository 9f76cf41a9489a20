from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.core.bounds import EARLIEST, LATEST, MOST
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.run.cloud_account import FurtherRegion
from batchscribe.core.run.manifest import NAME, EngineTimeSummary
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import VERSION, Machine, Run, RunState, RunWorker
from batchscribe.ledger import Ledger

FAST = {"journal_mode": "MEMORY", "synchronous": "OFF", "foreign_keys": "ON"}
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.from_regex(NAME, fullmatch=True)
times = st.datetimes(EARLIEST.replace(tzinfo=None), LATEST.replace(tzinfo=None), timezones=st.just(UTC))
counts = st.integers(0, 2**40)
seconds = st.floats(0, 1e9, allow_nan=False)
micros = st.builds(Usd, st.integers(0, int(MOST)))
moments = st.builds(Moment, times, st.none() | seconds, text)
rates = st.builds(Rate, per_hour=micros, source=text, as_of=text)
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": text,
    "int": counts,
    "int | None": st.none() | counts,
    "float": seconds,
    "bool": st.booleans(),
    "datetime": times,
    "datetime | None": st.none() | times,
    "Moment | None": st.none() | moments,
    "tuple[str, ...]": st.lists(text, max_size=3).map(tuple),
    "dict[str, str]": st.dictionaries(text, text, max_size=3),
    "dict[str, float]": st.dictionaries(text, seconds, max_size=3),
    "RunState": st.sampled_from(RunState),
    "Outcome | None": st.none() | st.sampled_from(Outcome),
    "Usd": micros,
    "EngineTimeSummary": st.builds(
        EngineTimeSummary,
        workers=st.integers(0, 10**9),
        busy=seconds,
        starved_by=st.dictionaries(ids, seconds, max_size=3),
        flags=st.dictionaries(ids, st.integers(0, 10**9), max_size=3),
    ),
    "Rate": rates,
    "Rate | None": st.none() | rates,
}


def drawn_fields(kind: type[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """Every field by its type, so that a field that is added later is drawn without a change here."""
    return {field.name: BY_TYPE[str(field.type)] for field in dataclasses.fields(kind)}


BY_TYPE["Meter"] = st.builds(Meter, **drawn_fields(Meter))
BY_TYPE["tuple[Machine, ...]"] = st.lists(
    st.builds(Machine, **drawn_fields(Machine)), min_size=1, max_size=3
).map(tuple)
BY_TYPE["tuple[RunWorker, ...]"] = st.lists(st.builds(RunWorker, **drawn_fields(RunWorker)), max_size=3).map(
    tuple
)
BY_TYPE["tuple[FurtherRegion, ...]"] = st.lists(
    st.builds(FurtherRegion, **drawn_fields(FurtherRegion)), max_size=3
).map(tuple)
# Of another version, a run is read otherwise.
runs = st.builds(Run, **(drawn_fields(Run) | {"version": st.just(VERSION), "id": ids}))


@contextmanager
def ledger() -> Iterator[Ledger]:
    with TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger", pragmas=FAST) as opened:
        yield opened


@settings(max_examples=25, deadline=None)
@given(st.lists(runs, min_size=1, max_size=4, unique_by=lambda run: run.id))
def test_every_run_comes_back_as_it_went_in(drawn: list[Run]) -> None:
    with ledger() as opened:
        for run in drawn:
            opened.save_run(run, at=NOW)
        assert {run.id: opened.run(run.id) for run in drawn} == {run.id: run for run in drawn}
        assert set(opened.open_runs()) == {run for run in drawn if run.open}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 5000)), max_size=12), st.integers(0, 5000))
def test_money_sums_exactly(costs: list[tuple[int, int]], since: int) -> None:
    base = Run(
        id="",
        state=RunState.SETTLED,
        provider="ec2",
        machines=(Machine(id="i-1"),),
        policy="now",
        reason="",
        created=NOW,
        deadline=NOW,
        rate=Rate(per_hour=Usd(1), source="test"),
    )
    with ledger() as opened:
        for number, (amount, minute) in enumerate(costs):
            settled = NOW + timedelta(minutes=minute)
            run = dataclasses.replace(base, id=str(number), cost=Usd(amount), settled=settled)
            opened.save_run(run, at=NOW)
        wanted = sum(amount for amount, minute in costs if minute >= since)
        assert opened.spent(NOW + timedelta(minutes=since)) == Usd(wanted)
