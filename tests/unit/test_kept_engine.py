"""Manifests one after the other in one process: `batchscribe worker -`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Tally, Timings, WorkerEnd
from batchscribe.testing.engine import ScriptedEngine, ScriptedFactory
from batchscribe.wiring import worker

SMALL, LARGE = EngineSpec(engine="scripted", model="small"), EngineSpec(engine="scripted", model="large")


class CountedFactory(ScriptedFactory):
    """Loads a new engine each time, and remembers for what."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def load(self, spec: EngineSpec) -> ScriptedEngine:
        self.loaded.append(spec.model)
        return ScriptedEngine()


class Played:
    """In the place of process_manifest: loads the engine of a location, and ends as it names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factory = CountedFactory()
        self.asked: list[tuple[str, str, str]] = []
        self.begun: list[float] = []
        monkeypatch.setattr(worker, "process_manifest", self)

    def __call__(self, location: str, *, control: str, sha256: str, load: Any, begun: float) -> ExitRecord:
        self.asked.append((location, sha256, control))
        self.begun.append(begun)
        load(self.factory, LARGE if "large" in location else SMALL)
        end = WorkerEnd.STOPPED if "stopped" in location else WorkerEnd.FINISHED
        return ExitRecord(
            run="run-1",
            worker=0,
            end=end,
            at=datetime(2030, 1, 1, tzinfo=UTC),
            tally=Tally(),
            timings=Timings(),
        )


def stay_open(*lines: str) -> Iterator[str]:
    """The lines of a pipe that is not closed."""
    yield from lines
    threading.Event().wait()


@pytest.mark.parametrize(
    ("locations", "loaded"),
    [
        (["s3://b/small", "s3://b/small again", "s3://b/stopped"], ["small"]),
        (["s3://b/small", "s3://b/large", "s3://b/small", "s3://b/stopped"], ["small", "large", "small"]),
    ],
    ids=["one engine", "two engines"],
)
def test_an_engine_is_loaded_once_until_another_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, locations: list[str], loaded: list[str]
) -> None:
    played = Played(monkeypatch)
    lines = stay_open(*(f"{number:064x} {location}\n" for number, location in enumerate(locations)))
    records = list(worker.process_each(lines, control="s3://control"))
    assert [record.end for record in records] == [WorkerEnd.FINISHED] * (len(locations) - 1) + [
        WorkerEnd.STOPPED
    ]
    assert played.asked == [
        (place, f"{number:064x}", "s3://control") for number, place in enumerate(locations)
    ]
    assert played.factory.loaded == loaded
    assert played.begun == sorted(played.begun)


def test_a_manifest_that_did_not_finish_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    assert len(list(worker.process_each(stay_open("0 s3://b/stopped\n", "1 s3://b/small\n")))) == 1
    assert [location for location, _, _ in played.asked] == ["s3://b/stopped"]


def test_a_process_ends_with_its_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    worker._read_lines(["0 s3://b/small\n"], waiting)
    assert (waiting.get_nowait(), ended) == ("0 s3://b/small\n", [1])
