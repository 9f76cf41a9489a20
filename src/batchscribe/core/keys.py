"""Keys of the control objects, below `BATCH_OUTPUT`; below `BATCH_CONTROL` without their first folder."""

from __future__ import annotations

import hashlib

CONTROL = "_batchscribe/"
RUNS = f"{CONTROL}runs/"
ATTEMPTS = f"{CONTROL}attempts/"
COMPACTED = f"{CONTROL}attempts-compacted/"
"""Outside ATTEMPTS, because a GPU host may write there, and only the scheduler may write here."""
FORGOTTEN = f"{COMPACTED}forgotten-"
QUARANTINE = f"{CONTROL}quarantine/"
SUPERSEDED = f"{CONTROL}superseded/"
INSTANCES = f"{CONTROL}instances/"
ASIDE_BYTES = 800
"""Of a transcript's key; with a longer one the folder in front of it may not fit into S3's 1,024 bytes."""
REHEARSALS = f"{CONTROL}rehearsal/"
"""Each has a folder of its own there, in which all of these lie once more."""


def digest(key: str) -> str:
    """A name of fixed length and harmless characters for any key."""
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
    """Put there by the controller: a worker that the box itself started is asked to end."""
    return f"{RUNS}{run}/workers/{worker}/cancel.json"


def boot(run: str) -> str:
    """Put there by the box: the one boot that this run's claim was taken up by."""
    return f"{RUNS}{run}/boot.json"


def later_boot(run: str, boot: str) -> str:
    """Put there by a box that was booted again under the run, by the kernel's id of that boot."""
    return f"{RUNS}{run}/boots/{boot}.json"


def box_end(run: str) -> str:
    """Put there by the box before it powers itself off: why."""
    return f"{RUNS}{run}/box.json"


def attempt(key: str, etag: str, run: str) -> str:
    return single(attempt_name(key, etag, run))


def attempt_name(key: str, etag: str, run: str) -> str:
    """Identifies an attempt, in an object of its own as in a compacted one."""
    return f"{digest(key)}/{etag}/{run}"


def single(name: str) -> str:
    """Key of the object of one attempt."""
    return f"{ATTEMPTS}{name}.json"


def name_of_single(key: str) -> str | None:
    """Name of the attempt in the object `key`; None if that is the key of no attempt."""
    name = key.removeprefix(ATTEMPTS).removesuffix(".json")
    return name if chunk_of(name)[1] and key == single(name) else None


def chunk_of(name: str) -> tuple[str, str]:
    """Digest and ETag of the chunk of an attempt. An ETag may contain slashes."""
    digest, _, rest = name.partition("/")
    return digest, rest.rpartition("/")[0]


def run_of(name: str) -> str:
    """Run of an attempt."""
    return name.rpartition("/")[2]


def compacted(content: str) -> str:
    """Key of a compacted object, by the digest of its content."""
    return f"{COMPACTED}attempts-{content}.json.gz"


def forgotten(content: str) -> str:
    """Key of an object that revokes attempts, by the digest of its content."""
    return f"{FORGOTTEN}{content}.json.gz"


def quarantine(key: str) -> str:
    return f"{QUARANTINE}{digest(key)}.json"


def superseded(transcript: str, stamp: str) -> str:
    """Where an old transcript is kept; a folder too long for that is replaced by a digest."""
    return f"{SUPERSEDED}{stamp}/{aside(transcript)}"


def aside(transcript: str) -> str:
    """The name of an old transcript below its stamp."""
    if len(transcript.encode()) <= ASIDE_BYTES:
        return transcript
    return f"{digest(transcript)}/{transcript.rpartition('/')[2]}"


def instance(instance_id: str) -> str:
    return f"{INSTANCES}{instance_id}.json"
