"""A worker that only notes how it was started, and ends when it is asked to.

Run as a program: `stand_in.py FOLDER URL`. It writes FOLDER/<pid>.json, then waits for SIGTERM. If URL is
`-`, it is the end of the first line of standard input, and nothing is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchscribe.detached import Identity, find_identity

PATIENCE_SECONDS = 120
"""It ends by itself after that, so that a broken test leaves nothing behind."""


@dataclass(frozen=True)
class StandIns:
    """All stand-ins that note themselves in `folder`."""

    folder: Path

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, __file__, str(self.folder))

    def notes(self, count: int = 1) -> list[dict[str, object]]:
        """What the stand-ins wrote, as soon as there are so many of them."""
        found: list[dict[str, object]] = []
        for _ in range(400):
            found = [json.loads(path.read_bytes()) for path in sorted(self.folder.glob("*.json"))]
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{len(found)} workers were started, not {count}")

    def urls(self, count: int = 1) -> list[object]:
        """Manifest URLs of the stand-ins, as soon as there are so many of them."""
        return [note["url"] for note in self.notes(count)]

    def alive(self) -> list[int]:
        notes = [json.loads(path.read_bytes()) for path in self.folder.glob("*.json")]
        noted = [msgspec.convert(note["process"], Identity) for note in notes]
        return [known.pid for known in noted if find_identity(known.pid) == known]

    def gone(self) -> bool:
        """Whether all of them end, within reason: as the host itself sees it, since a process that dies has
        no command line any more while it still runs.
        """
        for _ in range(400):
            if not self.alive():
                return True
            time.sleep(0.05)
        return False

    def kill(self) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    folder, url = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    if url == "-":
        url = sys.stdin.readline().rstrip("\n").partition(" ")[2]
    note = {
        "process": msgspec.to_builtins(find_identity(os.getpid())),
        "url": url,
        "arguments": sys.argv[2:],
        "environment": dict(os.environ),
        "leads_session": os.getsid(0) == os.getpid(),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "folder": str(Path.cwd()),
    }
    draft = folder / f"{os.getpid()}.draft"
    draft.write_text(json.dumps(note))
    draft.rename(folder / f"{os.getpid()}.json")
    if sys.argv[2] != "-":
        sys.stdout.write("started\n")
        sys.stdout.flush()
    signal.sigtimedwait({signal.SIGTERM}, PATIENCE_SECONDS)


if __name__ == "__main__":
    main()
