"""The paid seconds before the first window: a whole agent and its worker on this machine, cold and warm.

`python -m bench.start [--against REVISION] [--layers 24] [--disk 125] [--turns 3]`: an agent takes a claim
and starts a worker on one chunk, as after a boot, with Whisper tiny.en (75 MB). With `--layers`: one of so
many layers and random weights (24: 490 MB) on a silent chunk, so that it is loaded, but gets no window.
Cold: the model and the packages are evicted from the page cache before. `--disk` limits reads to so many
MB/s, as gp3 does; it needs root and the blkio controller of cgroup v1. `--against`: the same with the code of
another revision, in turn, and the ratio. Medians of seconds; the last lines are the worker's own phases, from
the start of its process.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from batchscribe import __version__
from batchscribe.adapters.engines.whisper import models
from batchscribe.adapters.engines.whisper.models import list_files
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, HostClaim, HostPlace, InstanceRecord
from batchscribe.core.run.instances import MANIFEST_TAG
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, decode, digest, encode
from bench.bucket import Bucket
from bench.engine import build
from support.audio import write_audio
from support.metadata import metadata_service

ROOT = Path(__file__).parents[1]
MODEL, RANDOM = "tiny.en", "small.en"
"""Names of the bundled model and of the random one."""
INSTANCE = "i-0123456789abcdef0"
AUDIO = ROOT / "src" / "batchscribe" / "demo" / "audio" / "notes" / "one more.webm"
PACKAGES = (
    "av av.libs ctranslate2 ctranslate2.libs faster_whisper numpy numpy.libs obstore onnxruntime tokenizers"
)
GROUP = Path("/sys/fs/cgroup/blkio/batchscribe-bench")
WORKER_PHASES = ("manifest", "loaded", "first_audio", "first_window", "last_result", "published", "elapsed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", default="")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--disk", type=int, default=0)
    parser.add_argument("--turns", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, limited_disk(wanted.disk):
        home = Path(folder)
        model = fill_cache(home / "hub", wanted.layers)
        codes = {"here": ROOT / "src"}
        if wanted.against:
            codes = {wanted.against: unpack(wanted.against, home / "other")} | codes
        size = sum(file.stat().st_size for file in list_files(model))
        for cold in (True, False):
            disk = f", disk limited to {wanted.disk} MB/s" if wanted.disk and cold else ""
            print(f"{'cold' if cold else 'warm'}: a model of {size / 1e6:.0f} MB{disk}")
            show(measure(home, model, codes, turns=wanted.turns, cold=cold))


def fill_cache(cache: Path, layers: int) -> Path:
    """The model's folder in a cache as a fetch leaves it."""
    name = RANDOM if layers else MODEL
    repository, revision = models.MODELS[name]
    assert revision is not None
    folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    if layers:
        build(folder, layers)
    else:
        packaged = importlib.util.find_spec(models.PACKAGED[MODEL])
        assert packaged is not None
        assert packaged.origin is not None
        shutil.copytree(Path(packaged.origin).parent / "model", folder)
    models.find_source(name).record(folder)
    return folder


def measure(
    home: Path, model: Path, codes: Mapping[str, Path], *, turns: int, cold: bool
) -> dict[str, dict[str, float]]:
    """Median seconds of each phase, by code."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    for turn in range(turns):
        for name, code in codes.items():
            place = home / f"{name.replace('/', '-')}-{cold}-{turn}"
            evict(model, code, drop=cold)
            found[name].append(start(place, model, code))
    return {
        name: {phase: statistics.median(each[phase] for each in turned) for phase in turned[0]}
        for name, turned in found.items()
    }


def start(home: Path, model: Path, code: Path) -> dict[str, float]:
    """Seconds from the start of the agent's process to each event."""
    name = RANDOM if RANDOM in str(model) else MODEL
    bucket = Bucket(home / "bucket")
    silence = write_audio(np.zeros(48_000, np.float32), "webm", "libopus")
    bucket.put("s/note.webm", silence if name == RANDOM else AUDIO.read_bytes())
    manifest = bucket.manifest(EngineSpec(engine="faster-whisper", model=name, device="cpu", language="en"))
    with metadata_service({MANIFEST_TAG: digest(manifest)}) as service:
        environment = {
            "PYTHONPATH": str(code),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url,
            "HF_HUB_CACHE": str(model.parents[2]),
        }
        prepare(home, bucket, manifest, model, environment)
        begun = time.time()
        with running(home, environment):
            record = wait_for_end(bucket, manifest)
        transcript = bucket.folder / manifest.chunks[0].transcript
        times = record.timings
        assert times.loaded is not None
        born = record.at - timedelta(seconds=times.elapsed)
        runs = bucket.folder / keys.RUNS / manifest.run
        worker = home / ".batchscribe" / "runs" / manifest.run / "0" / "process.json"
        own = {f"  worker: {name}": getattr(times, name, None) or 0.0 for name in WORKER_PHASES}
        return {
            "claim taken": (bucket.folder / keys.boot(manifest.run)).stat().st_mtime - begun,
            "worker started": worker.stat().st_mtime - begun,
            "engine loaded": born.timestamp() + times.loaded - begun,
            "first window": born.timestamp() + times.first_window - begun if times.first_window else 0.0,
            "last upload": transcript.stat().st_mtime - begun,
            "last upload to exit record": (runs / "workers/0/exit.json").stat().st_mtime
            - transcript.stat().st_mtime,
        } | own


def prepare(
    home: Path, bucket: Bucket, manifest: Manifest, model: Path, environment: Mapping[str, str]
) -> None:
    """Writes what `gpu setup` and a scheduler write before a start."""
    clock = SystemClock()
    host = GpuHost(home, clock)
    host.keep_place(HostPlace(instance=INSTANCE, home=bucket.store.url))
    host.keep_model_files(list_files(model))
    (env := home / ".batchscribe" / "env").write_text("".join(f"{k}={v}\n" for k, v in environment.items()))
    env.chmod(0o600)
    bucket.write(manifest)
    # Borrowed, so that no dead-man's file is written on this machine.
    claim = HostClaim(
        run=manifest.run,
        created=clock.booted(),
        deadline=manifest.deadline,
        output=bucket.store.url,
        launch=ClaimLaunch.BOOT,
        borrowed=True,
    )
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=datetime.now(UTC), claim=claim)
    bucket.store.replace(keys.instance(INSTANCE), encode(record))
    bucket.store.create(keys.intent(manifest.run), b"{}")


@contextmanager
def running(home: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The agent's process; it would wait for another manifest, and is killed."""
    words = [sys.executable, "-P", "-m", "batchscribe.wiring.host_boot"]
    if GROUP.exists():
        words = ["/bin/sh", "-c", f'echo $$ > {GROUP}/cgroup.procs && exec "$0" "$@"', *words]
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]} | dict(environment)
    with (home / "agent.log").open("wb") as log:
        agent = subprocess.Popen(words, env=variables, cwd=home, stderr=log, stdout=log)
    try:
        yield
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()


def wait_for_end(bucket: Bucket, manifest: Manifest) -> ExitRecord:
    path = bucket.folder / keys.exit_record(manifest.run, manifest.worker)
    for _ in range(12_000):
        if path.exists():
            return decode(path.read_bytes(), ExitRecord)
        time.sleep(0.05)
    raise AssertionError((bucket.folder.parent / "agent.log").read_text())


def evict(model: Path, code: Path, *, drop: bool) -> None:
    """Drops the model and the packages from the page cache, or reads them into it."""
    here = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    folders = [code, *(here / name for name in PACKAGES.split())]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    for file in [*list_files(model), *files]:
        with file.open("rb", buffering=0) as opened:
            if drop:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while opened.read(1 << 20):
                    pass


@contextmanager
def limited_disk(megabytes: int) -> Iterator[None]:
    """A group of processes whose reads are limited; the agent joins it."""
    if not megabytes:
        yield
        return
    device = Path(tempfile.gettempdir()).stat().st_dev
    GROUP.mkdir()
    try:
        limit = f"{os.major(device)}:{os.minor(device)} {megabytes * 1_000_000}"
        (GROUP / "blkio.throttle.read_bps_device").write_text(limit)
        yield
    finally:
        for _ in range(100):
            if not (GROUP / "cgroup.procs").read_text():
                break
            time.sleep(0.1)
        GROUP.rmdir()


def unpack(revision: str, folder: Path) -> Path:
    """The sources of a revision."""
    archive = subprocess.run(
        ["git", "archive", revision, "src"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder / "src"


def show(found: Mapping[str, Mapping[str, float]]) -> None:
    *_, (_, ours) = found.items()
    print(
        f"{'':<30}" + "".join(f"{name[:12]:>13}" for name in found) + ("     ratio" if len(found) > 1 else "")
    )
    for phase, seconds in ours.items():
        row: list[Any] = [each[phase] for each in found.values()]
        ratio = f"{row[0] / seconds:9.2f}x" if len(row) > 1 and seconds and row[0] else ""
        print(f"{phase:<30}" + "".join(f"{value:11.2f} s" for value in row) + ratio)


if __name__ == "__main__":
    main()
