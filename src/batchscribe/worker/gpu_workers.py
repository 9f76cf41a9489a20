"""One worker process for each GPU; for controller and agent, one worker.

Each process gets a part of the manifest. It is an ordinary worker, except that its control objects (manifest,
progress, exit record) are in a folder of this machine. They are merged into those of the manifest's worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from batchscribe.core import keys
from batchscribe.core.keys import CONTROL
from batchscribe.core.run.gpu_parts import merge_exit_records, merge_progress, split_manifest
from batchscribe.core.run.manifest import ExitRecord, Manifest, Progress, encode
from batchscribe.errors import BatchscribeError, EngineError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import read_if_valid, read_optional

LOG = structlog.get_logger()
POLL_SECONDS = 0.5
REPORT_SECONDS = 5.0
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPart:
    """A GPU's part of a manifest, and the process that transcribes it."""

    device: str
    """As in CUDA_VISIBLE_DEVICES."""
    manifest: Manifest
    control: Store
    process: subprocess.Popen[bytes]

    def read_progress(self) -> Progress | None:
        key = keys.progress(self.manifest.run, self.manifest.worker)
        return read_if_valid(self.control, key.removeprefix(CONTROL), Progress)

    def read_exit(self) -> ExitRecord | None:
        key = keys.exit_record(self.manifest.run, self.manifest.worker)
        return read_if_valid(self.control, key.removeprefix(CONTROL), ExitRecord)

    @property
    def is_lost(self) -> bool:
        """True if its process ended without an exit record."""
        return self.process.poll() is not None and self.read_exit() is None


def run_on_gpus(
    manifest: Manifest,
    devices: Sequence[str],
    *,
    output: Store,
    open_control: Callable[[str], Store],
    command: Sequence[str],
    clock: Clock,
    should_stop: Callable[[], bool],
) -> ExitRecord:
    """Transcribes a manifest on several GPUs; returns the stored exit record.

    `open_control`: opens an empty store for the control objects of the part with this number. `command`:
    starts a worker, followed by its manifest's URL and options. A part that fails does not end the others.

    Raises EngineError without an exit record if a process died without one. As for any worker that dies, the
    progress then names its chunks in flight.
    """
    key = keys.exit_record(manifest.run, manifest.worker)
    if before := read_optional(output, key, ExitRecord):
        LOG.warning("worker.ended_before", run=manifest.run, worker=manifest.worker)
        return before
    split = split_manifest(manifest, len(devices))
    parts = [
        _start_part(part, device, open_control(str(number)), command, _share_cores(number, len(split)))
        for number, (part, device) in enumerate(zip(split, devices, strict=False))
    ]
    _follow_parts(parts, manifest, output, clock, should_stop)
    for part in parts:
        _copy_records(part, output)
    if lost := next((part for part in parts if part.is_lost), None):
        raise EngineError(
            f"the worker of GPU {lost.device} ended with code {lost.process.returncode} and no exit record: "
            "finished transcripts are kept; see its log"
        )
    record = merge_exit_records([ended for part in parts if (ended := part.read_exit())])
    output.create(key, encode(record))
    return record


def _start_part(
    part: Manifest, device: str, control: Store, command: Sequence[str], cores: frozenset[int]
) -> GpuPart:
    key, parent = keys.manifest(part.run, part.worker), os.getpid()
    control.create(key.removeprefix(CONTROL), encode(part))

    def prepare() -> None:
        # The agent kills only the process that it started.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.sched_setaffinity(0, cores)

    process = subprocess.Popen(
        [
            *("env", f"CUDA_VISIBLE_DEVICES={device}", *command),
            *(f"{part.output.rstrip('/')}/{key}", "--control", control.url),
        ],
        stdin=subprocess.DEVNULL,
        preexec_fn=prepare,  # noqa: PLW1509  it takes no lock
    )
    LOG.info("worker.gpu_started", run=part.run, device=device, chunks=len(part.chunks))
    return GpuPart(device=device, manifest=part, control=control, process=process)


def _share_cores(number: int, count: int) -> frozenset[int]:
    """Cores of one part; all of them if there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    return frozenset(cores[number::count] if len(cores) >= count else cores)


def _follow_parts(
    parts: Sequence[GpuPart],
    manifest: Manifest,
    output: Store,
    clock: Clock,
    should_stop: Callable[[], bool],
) -> None:
    """Reports the progress until all processes ended.

    If one is lost, or if the worker is asked to end, the others finish what is in their engines.
    """
    asked, sequence, reported_at = False, 0, 0.0
    while running := [part for part in parts if part.process.poll() is None]:
        if not asked and (should_stop() or any(part.is_lost for part in parts)):
            asked = True
            for part in running:
                part.process.terminate()
        if not sequence or clock.monotonic() - reported_at >= REPORT_SECONDS:
            sequence, reported_at = sequence + 1, clock.monotonic()
            _write_progress(parts, manifest, output, sequence)
        clock.sleep(POLL_SECONDS)
    _write_progress(parts, manifest, output, sequence + 1)


def _write_progress(parts: Sequence[GpuPart], manifest: Manifest, output: Store, sequence: int) -> None:
    reports = [report for part in parts if (report := part.read_progress())]
    if not reports:
        return
    merged = merge_progress(reports, sequence=sequence, total=len(manifest.chunks))
    try:
        output.replace(keys.progress(manifest.run, manifest.worker), encode(merged))
    except BatchscribeError as error:
        LOG.warning("progress.not_stored", reason=str(error))


def _copy_records(part: GpuPart, output: Store) -> None:
    """Copies failed attempts, and the names of replaced empty objects."""
    for prefix in (keys.ATTEMPTS, keys.SUPERSEDED):
        for info in part.control.list(prefix.removeprefix(CONTROL)):
            try:
                output.create(f"{CONTROL}{info.key}", part.control.get(info.key).data)
            except BatchscribeError as error:  # the exit record contains them, too
                LOG.warning("attempt.not_stored", key=info.key, reason=str(error))
