"""Keys of control objects; below `BATCH_CONTROL` without their first folder."""

from __future__ import annotations

import hashlib

CONTROL = "_batchscribe/"
RUNS = f"{CONTROL}runs/"
ATTEMPTS = f"{CONTROL}attempts/"
COMPACTED = f"{CONTROL}attempts-compacted/"
"""Outside ATTEMPTS: GPU hosts may write there, but only the scheduler may write here."""
FORGOTTEN = f"{COMPACTED}forgotten-"
QUARANTINE = f"{CONTROL}quarantine/"
SUPERSEDED = f"{CONTROL}superseded/"
INSTANCES = f"{CONTROL}instances/"
ASIDE_BYTES = 800
"""Longest transcript key that fits with its prefix folder into S3's 1,024 bytes."""
REHEARSALS = f"{CONTROL}rehearsal/"
"""Each rehearsal has its own folder there, with all of these keys below it."""


def digest(key: str) -> str:
    """Name of fixed length and safe characters for any key."""
    return hashlib.sha256(key.encode()).hexdigest()


def intent(run: str) -> str:
    return f"{RUNS}{run}/intent.json"


def settlement(run: str) -> str:
    return f"{RUNS}{run}/settlement.json"


def manifest(run: str, worker: int) -> str:
    return f"{RUNS}{run}/workers/{worker}/manifest.json"


def progress(run: str, worker: int) -> str:
    return f"{RUNS}{run}/workers/{worker}/progress.json"


def exit_record(run: str, worker: int) -> str:
    return f"{RUNS}{run}/workers/{worker}/exit.json"


def cancel(run: str, worker: int) -> str:
    """Written by the controller to end a worker started by the host."""
    return f"{RUNS}{run}/workers/{worker}/cancel.json"


def manifests(run: str) -> str:
    """Prefix of the run's manifests, progress and exit records."""
    return f"{RUNS}{run}/workers/"


def boot(run: str, machine: str = "") -> str:
    """Written by the GPU host: the boot that accepted this run's claim.

    `machine`: its id, here and in `host_end`. A machine that was created for the run (RUN-n) has its own
    records; an existing instance is the only one of its run.
    """
    return f"{_host_folder(run, machine)}boot.json"


def later_boot(run: str, boot: str) -> str:
    """Written by a host that booted again; named by the boot id."""
    return f"{RUNS}{run}/boots/{boot}.json"


def host_end(run: str, machine: str = "") -> str:
    """Written by the GPU host before it powers itself off: the reason."""
    return f"{_host_folder(run, machine)}box.json"


def _host_folder(run: str, machine: str) -> str:
    return f"{RUNS}{run}/machines/{machine}/" if machine.startswith(f"{run}-") else f"{RUNS}{run}/"


def attempt(key: str, etag: str, run: str) -> str:
    return single(attempt_name(key, etag, run))


def attempt_name(key: str, etag: str, run: str) -> str:
    """Identifies an attempt, in its own object and in a compacted one."""
    return f"{digest(key)}/{etag}/{run}"


def single(name: str) -> str:
    """Key of the object of one attempt."""
    return f"{ATTEMPTS}{name}.json"


def name_of_single(key: str) -> str | None:
    """Name of the attempt whose object `key` is, else None."""
    name = key.removeprefix(ATTEMPTS).removesuffix(".json")
    return name if chunk_of(name)[1] and key == single(name) else None


def chunk_of(name: str) -> tuple[str, str]:
    """Digest and ETag of an attempt's chunk; an ETag may contain slashes."""
    digest, _, rest = name.partition("/")
    return digest, rest.rpartition("/")[0]


def run_of(name: str) -> str:
    """Run of an attempt."""
    return name.rpartition("/")[2]


def compacted(content: str) -> str:
    """Key of a compacted object, by the digest of its content."""
    return f"{COMPACTED}attempts-{content}.json.gz"


def forgotten(content: str) -> str:
    """Key of an object that revokes attempts, by its content's digest."""
    return f"{FORGOTTEN}{content}.json.gz"


def quarantine(key: str) -> str:
    return f"{QUARANTINE}{digest(key)}.json"


def superseded(transcript: str, stamp: str) -> str:
    """Key of an old transcript's copy; a digest replaces long folders."""
    return f"{SUPERSEDED}{stamp}/{aside(transcript)}"


def aside(transcript: str) -> str:
    """Name of an old transcript below its stamp."""
    if len(transcript.encode()) <= ASIDE_BYTES:
        return transcript
    return f"{digest(transcript)}/{transcript.rpartition('/')[2]}"


def instance(instance_id: str) -> str:
    return f"{INSTANCES}{instance_id}.json"
