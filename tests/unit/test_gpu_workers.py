"""Several GPUs of one host: a worker process for each, and one worker for everyone else."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.machine import nvidia
from batchscribe.core import keys
from batchscribe.core.run.gpu_parts import merge_exit_records, merge_progress, split_manifest
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
    decode,
    encode,
)
from batchscribe.errors import EngineError
from batchscribe.testing.engine import ScriptedFactory
from batchscribe.wiring import worker
from batchscribe.wiring.stores import open_store
from support.cli import spoken
from support.forked import ENGINES
from support.stores import NOW

DEVICES = ("GPU-a", "GPU-b")


def chunk(session: str, number: int, size: int) -> ManifestChunk:
    return ManifestChunk(
        key=f"{session}chunk-{number:03}.wav",
        etag="e",
        size=size,
        session=session,
        transcript=f"{session}transcription-chunk-{number:03}.json",
    )


def manifest_of(*chunks: ManifestChunk, url: str = "file:///x") -> Manifest:
    return Manifest(
        run="run-1",
        worker=3,
        release=__version__,
        source=url,
        output=url,
        deadline=datetime.now(UTC) + timedelta(hours=1),
        engine=EngineSpec(engine="scripted"),
        settings_hash="h",
        chunks=chunks,
        seal="sealed",
    )


SESSIONS = st.lists(st.lists(st.integers(0, 2**40), min_size=1, max_size=4), min_size=1, max_size=8)


@given(SESSIONS, st.integers(1, 5))
def test_each_session_goes_whole_to_one_gpu(sessions: list[list[int]], count: int) -> None:
    chunks = [
        chunk(f"s{session}/", number, size)
        for session, sizes in enumerate(sessions)
        for number, size in enumerate(sizes)
    ]
    parts = split_manifest(manifest_of(*chunks), count)
    assert len(parts) == min(count, len(sessions))
    assert sorted(each.key for part in parts for each in part.chunks) == sorted(each.key for each in chunks)
    homes = [{each.session for each in part.chunks} for part in parts]
    assert sum(map(len, homes)) == len(set().union(*homes))
    totals = [sum(each.size for each in part.chunks) for part in parts]
    assert max(totals) - min(totals) <= max(map(sum, sessions))
    assert all(part.chunks == tuple(sorted(part.chunks, key=chunks.index)) for part in parts)


def progress(phase: Phase, done: int, *in_flight: str, **timings: Any) -> Progress:
    return Progress(
        run="run-1",
        worker=3,
        sequence=9,
        phase=phase,
        at=NOW,
        total=5,
        tally=Tally(done=done, audio_seconds=10.0 * done),
        timings=Timings(**timings),
        results=done,
        in_flight=in_flight,
    )


def test_the_progress_of_the_parts_is_that_of_one_worker() -> None:
    parts = [
        progress(Phase.WORKING, 3, "b", loaded=9.0, first_window=12.0, elapsed=40.0, busy=20.0),
        progress(Phase.LOADING, 1, "a", loaded=11.0, elapsed=42.0, busy=10.0),
    ]
    merged = merge_progress(parts, sequence=2, total=12)
    assert (merged.sequence, merged.total, merged.phase, merged.results) == (2, 12, Phase.WORKING, 4)
    assert merged.tally == Tally(done=4, audio_seconds=40.0)
    assert merged.in_flight == ("a", "b")
    times = merged.timings
    assert (times.loaded, times.first_window, times.elapsed, times.busy) == (9.0, 12.0, 42.0, 15.0)
    ended = [structs.replace(part, phase=Phase.ENDED) for part in parts]
    assert merge_progress(ended, sequence=3, total=12).phase is Phase.ENDED


def ended(end: WorkerEnd, message: str = "", **changes: object) -> ExitRecord:
    record = ExitRecord(
        run="run-1", worker=3, end=end, message=message, at=NOW, tally=Tally(done=2), timings=Timings()
    )
    return structs.replace(record, **changes)


def test_a_worker_ends_as_its_worst_part_did() -> None:
    fine = ended(WorkerEnd.FINISHED, device="cuda, float16", flags={"partial": 1}, bytes_by_type={"wav": 5})
    merged = merge_exit_records([fine, fine])
    assert (merged.end, merged.message) == (
        WorkerEnd.FINISHED,
        "4 transcribed, 0 were done already, 0 failed",
    )
    assert (merged.device, merged.flags, merged.bytes_by_type) == (
        "2 x cuda, float16",
        {"partial": 2},
        {"wav": 10},
    )
    stopped = ended(WorkerEnd.STOPPED, "stop requested: 3 chunks left")
    assert merge_exit_records([fine, stopped]).message == "GPU 1: stop requested: 3 chunks left"
    broken = ended(WorkerEnd.FAILED, "no memory", gpu_broken=True)
    merged = merge_exit_records([broken, stopped, fine])
    assert (merged.end, merged.message, merged.gpu_broken) == (WorkerEnd.FAILED, "GPU 0: no memory", True)


def repeat(recording: bytes, times: int) -> bytes:
    with wave.open(io.BytesIO(recording)) as once:
        frames, params = once.readframes(once.getnframes()), once.getparams()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as made:
        made.setparams(params)
        made.writeframes(frames * times)
    return buffer.getvalue()


class Host:
    """A host with two GPUs, and a manifest of four sessions in a folder."""

    def __init__(self, folder: Path, *, repeated: int = 1) -> None:
        self.store = open_store(folder.as_uri())
        chunks = []
        for number in range(4):
            sound = b"RIFF, but no audio" if number == 3 else repeat(spoken(), repeated)
            self.store.create(f"s{number}/chunk-001.wav", sound)
        for info in self.store.list():
            made = chunk(info.key.removesuffix("chunk-001.wav"), 1, info.size)
            chunks.append(structs.replace(made, etag=info.etag))
        self.manifest = manifest_of(*chunks, url=folder.as_uri())
        key = keys.manifest("run-1", 3)
        self.store.create(key, encode(self.manifest))
        self.url = f"{folder.as_uri()}/{key}"

    def exit_record(self) -> ExitRecord:
        return decode(self.store.get(keys.exit_record("run-1", 3)).data, ExitRecord)

    def progress(self) -> Progress:
        return decode(self.store.get(keys.progress("run-1", 3)).data, Progress)

    def transcripts(self) -> int:
        return len([info for info in self.store.list("s") if "transcription" in info.key])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "list_usable", lambda: DEVICES)
    monkeypatch.setattr(worker, "engine_factory", lambda _name: ScriptedFactory())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ENGINES, *filter(None, sys.path)]))


def list_gpu_processes() -> list[psutil.Process]:
    """The worker processes of GPUs; other tests' children, and those that did not begin yet, have no GPU."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            found += [child] if "CUDA_VISIBLE_DEVICES" in child.environ() else []
    return found


def when(true: Callable[[list[psutil.Process]], bool], act: Callable[[list[psutil.Process]], None]) -> None:
    """Acts on the processes of the GPUs once it is true, beside the test."""

    def wait() -> None:
        for _ in range(2400):
            if true(running := list_gpu_processes()):
                act(running)
                return
            threading.Event().wait(0.05)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.usefixtures("two_gpus")
def test_each_gpu_has_a_worker_and_the_controller_sees_one(tmp_path: Path) -> None:
    host = Host(tmp_path)
    record = worker.process_manifest(host.url)
    assert record == host.exit_record()
    assert (record.end, record.tally.done, record.tally.failed) == (WorkerEnd.FINISHED, 3, 1)
    assert record.device == "1 x double GPU-a, 1 x double GPU-b"
    assert host.transcripts() == 3
    assert (host.progress().phase, host.progress().total) == (Phase.ENDED, 4)
    (attempt,) = host.store.list(keys.ATTEMPTS)
    assert attempt.key == keys.attempt("s3/chunk-001.wav", record.failures[0].etag, "run-1")
    assert worker.process_manifest(host.url) == record, "once"


@pytest.mark.usefixtures("two_gpus")
def test_a_stop_request_reaches_every_gpu(tmp_path: Path) -> None:
    host = Host(tmp_path, repeated=100)
    when(lambda _: in_flight(host) >= 2, lambda _: signal.raise_signal(signal.SIGTERM))
    record = worker.process_manifest(host.url)
    assert record.end is WorkerEnd.STOPPED
    assert "GPU 0: stop requested" in record.message
    assert "GPU 1: stop requested" in record.message


@pytest.mark.usefixtures("two_gpus")
def test_a_process_that_dies_ends_the_worker_and_only_its_chunks_are_in_flight(tmp_path: Path) -> None:
    host = Host(tmp_path, repeated=100)
    killed: list[str] = []

    def kill(running: list[psutil.Process]) -> None:
        killed.extend(process.environ()["CUDA_VISIBLE_DEVICES"] for process in running[:1])
        running[0].kill()

    when(lambda running: len(running) == 2 and in_flight(host) >= 2, kill)
    with pytest.raises(EngineError, match="no exit record") as raised:
        worker.process_manifest(host.url)
    assert killed[0] in str(raised.value)
    assert not [*host.store.list(keys.exit_record("run-1", 3))]
    part = split_manifest(host.manifest, 2)[DEVICES.index(killed[0])]
    assert set(host.progress().in_flight) <= {each.key for each in part.chunks}
    assert host.progress().in_flight


KILLED = """
from pathlib import Path
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.manifest import Manifest, decode
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.gpu_workers import run_on_gpus
run_on_gpus(
    decode(Path("manifest.json").read_bytes(), Manifest),
    ("0", "1"),
    output=MemoryStore(SystemClock()),
    open_control=lambda number: MemoryStore(SystemClock()),
    command=("sh", "-c", "exec sleep 300"),
    clock=SystemClock(),
    should_stop=lambda: False,
)
"""


def test_no_process_outlives_its_worker(tmp_path: Path) -> None:
    """The agent kills the one process that it started."""
    (tmp_path / "manifest.json").write_bytes(encode(manifest_of(chunk("a/", 1, 1), chunk("b/", 1, 1))))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment)
    known: list[psutil.Process] = []
    for _ in range(2400):
        known = [each for each in psutil.Process(parent.pid).children() if each.name() == "sleep"]
        if len(known) == 2:
            break
        threading.Event().wait(0.05)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(known, timeout=60)
    assert (len(gone), alive) == (2, [])


def in_flight(host: Host) -> int:
    """Chunks in flight on both GPUs."""
    try:
        return len({key[:2] for key in host.progress().in_flight})
    except Exception:  # noqa: BLE001  not there yet
        return 0


def test_the_gpus_of_a_host_are_as_many_as_there_are_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "list_usable", lambda: ("a", "b", "c"))
    monkeypatch.setattr(worker, "engine_factory", lambda _name: ScriptedFactory())
    two = manifest_of(chunk("a/", 1, 1), chunk("a/", 2, 1), chunk("b/", 1, 1))
    assert worker.find_gpus(two) == ("a", "b")
    on_cpu = structs.replace(two, engine=EngineSpec(engine="scripted", device="cpu"))
    assert worker.find_gpus(on_cpu) == ()


def test_gpus_are_named_by_their_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_device(device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def count_devices(count: Any) -> int:
        count._obj.value = 2
        return 0

    def write_uuid(uuid: Any, device: Any) -> int:
        uuid[15] = device.value + 1
        return 0

    driver = SimpleNamespace(
        cuInit=lambda _flags: 0,
        cuDeviceGetCount=count_devices,
        cuDeviceGet=name_device,
        cuDeviceGetUuid=write_uuid,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    prefix = "GPU-00000000-0000-0000-0000-00000000000"
    assert nvidia.list_usable() == (f"{prefix}1", f"{prefix}2")
