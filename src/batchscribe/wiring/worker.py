"""Composition root of the worker."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from batchscribe import ACCEPTED_RELEASES, __version__, aws_environment
from batchscribe.adapters.engines.speaker_model import open_speaker_model
from batchscribe.adapters.engines.voice_detectors import find_voice_detector
from batchscribe.adapters.machine import nvidia
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import WORKER_COMMAND, GpuHost
from batchscribe.control_place import combine_stores
from batchscribe.core import keys
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, WorkerEnd, decode
from batchscribe.detached import process_start
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import GpuError, MisconfiguredError
from batchscribe.page_cache import read_ahead
from batchscribe.protocols import Clock, Store
from batchscribe.reading import limit_of, read_bytes
from batchscribe.wiring.engines import engine_factory
from batchscribe.wiring.environments import find_other_python
from batchscribe.wiring.stores import open_store
from batchscribe.worker.gpu_workers import run_on_gpus
from batchscribe.worker.pipeline import ConcurrencySettings, fail_worker, run_worker
from batchscribe.worker.trust import refuse_foreign_work


def split_location(location: str) -> tuple[str, str]:
    """Splits a manifest's location into (store URL, key). Raises MisconfiguredError."""
    root, mark, rest = location.rpartition(keys.RUNS)
    if not mark or not rest.endswith("/manifest.json"):
        raise MisconfiguredError(
            f"{location} is not a manifest: its path must end in {keys.RUNS}<run>/workers/<n>/manifest.json"
        )
    root = root.rstrip("/")
    return (root if "://" in root else Path(root or ".").absolute().as_uri()), mark + rest


def read_manifest(location: str, control: str = "", sha256: str = "") -> tuple[Manifest, Store]:
    """Returns the manifest and its store.

    `control`: URL of the control objects; empty if they are below that store. `sha256`: the required hash of
    the manifest; empty for any. Raises the errors of Store.get, and MisconfiguredError.
    """
    root, key = split_location(location)
    region, endpoint = aws_environment.find_place()
    store = open_store(root, region=region, endpoint=endpoint)
    if control:
        store = combine_stores(store, open_store(control, region=region, endpoint=endpoint))
    data = read_bytes(store, key, limit_of(Manifest), what="Manifest")
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise MisconfiguredError(f"{location} is not the manifest that was announced: nothing was done")
    return decode(data, Manifest), store


def process_manifest(
    location: str,
    *,
    control: str = "",
    sha256: str = "",
    load: Callable[[EngineFactory, EngineSpec], Engine] = lambda factory, spec: factory.load(spec),
    begun: float | None = None,
) -> ExitRecord:
    """Processes one manifest, until it is done or a signal stops it.

    `location`: its URL or path. `control`: URL of the control objects; if empty, the one of `gpu setup`, else
    they are below the output. `sha256`: the required hash of the manifest; empty for any. `load` loads its
    engine. `begun`: monotonic time of its beginning; None for the start of this process. Raises
    MisconfiguredError if this machine cannot process it; the exit record has the reason, too.
    """
    clock, begun = SystemClock(), process_start() if begun is None else begun
    root, key = split_location(location)
    host = GpuHost(Path.home(), clock)
    place = host.read_place() if host.is_set_up else None
    manifest, home = read_manifest(location, control or (place.control_of(root) if place else ""), sha256)
    # Before any write: a foreign manifest must not choose where an exit record goes.
    refuse_foreign_work(manifest, root=root, key=key, place=place)
    if place:
        _enter_environment(manifest, home, clock, [location, "--control", control, "--sha256", sha256])
    with _stop_on_signals() as stop:
        try:
            if len(devices := find_gpus(manifest)) > 1:
                return _run_on_gpus(manifest, devices, home, clock, stop.is_set)
            factory = find_factory(manifest)
            source, output = _open_stores(manifest, home)
            find_speech = find_voice_detector()
            speakers = open_speaker_model() if manifest.engine.speakers else None
        except (MisconfiguredError, ImportError) as error:
            fail_worker(manifest, home, clock, str(error), gpu_broken=isinstance(error, GpuError))
            raise MisconfiguredError(str(error)) from error
        return run_worker(
            manifest,
            source=source,
            output=output,
            load=lambda: load(factory, manifest.engine),
            find_speech=find_speech,
            speakers=speakers,
            clock=clock,
            should_stop=stop.is_set,
            concurrency=_choose_concurrency(len(os.sched_getaffinity(0))),
            # A thread that hangs inside a library cannot be ended; the exit record is in the store.
            abandon=partial(os._exit, 1),
            begun=begun,
        )


def process_each(lines: Iterable[str], *, control: str = "") -> Iterator[ExitRecord]:
    """Processes manifests one by one; yields their exit records.

    They share one load of their engine. Each line is `SHA256 URL`. Ends after a manifest that did not finish:
    the engine may be in any state. When the lines end, so does this process, at once: its supervisor is gone,
    and another machine may process the same manifest already.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(lines, waiting), daemon=True).start()
    kept: dict[EngineSpec, Engine] = {}
    begun, end = process_start(), WorkerEnd.FINISHED
    while end is WorkerEnd.FINISHED:
        sha256, _, location = waiting.get().rstrip("\n").partition(" ")
        record = process_manifest(
            location, control=control, sha256=sha256, load=partial(_load_once, kept), begun=begun
        )
        yield record
        begun, end = SystemClock().monotonic(), record.end


def _read_lines(lines: Iterable[str], waiting: queue.SimpleQueue[str]) -> None:
    for line in lines:
        waiting.put(line)
    os._exit(1)


def _load_once(kept: dict[EngineSpec, Engine], factory: EngineFactory, spec: EngineSpec) -> Engine:
    """Returns the kept engine, or replaces it by another one."""
    if spec not in kept:
        kept.clear()  # before the load: the GPU's memory may not hold two
        kept[spec] = factory.load(spec)
    return kept[spec]


def _enter_environment(manifest: Manifest, home: Store, clock: Clock, words: list[str]) -> None:
    """Continues in the environment of the manifest's engine, if any.

    As the same process, so that it is still the one that the agent started. Raises MisconfiguredError.
    """
    python = find_other_python(manifest.engine.engine)
    try:
        if python:
            os.execv(python, [python, "-P", "-m", "batchscribe", "worker", *words])  # noqa: S606
    except OSError as error:
        why = f"{python} cannot run ({error.strerror}): run `batchscribe gpu setup`"
        fail_worker(manifest, home, clock, why)
        raise MisconfiguredError(why) from error


def _choose_concurrency(cores: int) -> ConcurrencySettings:
    """Decoders for about half of the cores: the engine needs the others."""
    decoders = max(1, min(8, cores // 2))
    return ConcurrencySettings(decoders=decoders, timelines=max(2, decoders // 2))


def find_factory(manifest: Manifest) -> EngineFactory:
    """The factory of the manifest's engine, while its model is read ahead.

    The engine's packages take seconds to import. Raises MisconfiguredError if it cannot run here.
    """
    if manifest.release not in ACCEPTED_RELEASES:
        raise MisconfiguredError(
            f"the manifest was written by batchscribe {manifest.release} and this is {__version__}: "
            "install the same version on both sides (batchscribe gpu setup)"
        )
    factory = engine_factory(manifest.engine.engine)
    with suppress(Exception):  # the check reports it
        read_ahead(factory.model_files(manifest.engine))
    factory.check(manifest.engine)
    return factory


def find_gpus(manifest: Manifest) -> tuple[str, ...]:
    """GPUs for this manifest, as in CUDA_VISIBLE_DEVICES.

    At most one for each session. Raises MisconfiguredError if there is no such engine. Imports none of its
    packages: each process does.
    """
    if not engine_factory(manifest.engine.engine).needs_gpu or manifest.engine.device == "cpu":
        return ()
    return nvidia.list_usable()[: len({chunk.session for chunk in manifest.chunks})]


def _run_on_gpus(
    manifest: Manifest, devices: Sequence[str], home: Store, clock: Clock, should_stop: Callable[[], bool]
) -> ExitRecord:
    with tempfile.TemporaryDirectory(prefix="batchscribe-") as folder:

        def open_control(number: str) -> Store:
            (Path(folder) / number).mkdir()
            return open_store((Path(folder) / number).as_uri())

        return run_on_gpus(
            manifest,
            devices,
            output=home,
            open_control=open_control,
            command=WORKER_COMMAND,
            clock=clock,
            should_stop=should_stop,
        )


def _open_stores(manifest: Manifest, home: Store) -> tuple[Store, Store]:
    """(source, output); `home`, the manifest's store, is reused.

    Region and endpoint come from this machine's environment, else from the manifest.
    """
    region, endpoint = aws_environment.find_place(region=manifest.region, endpoint=manifest.endpoint)
    opened = partial(open_store, region=region, endpoint=endpoint)
    output = home if manifest.output == home.url else opened(manifest.output)
    source = output if manifest.source == manifest.output else opened(manifest.source)
    return source, output


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and SIGINT set instead of exiting."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
