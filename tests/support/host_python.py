"""A `remote_python` for tests: this interpreter, with a stand-in for the worker that the agent starts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

POLL_SECONDS = 0.3


def host_python(folder: Path, command: Sequence[str]) -> Path:
    """A program that takes a Python's arguments and runs this host or its agent; `command` is a worker."""
    program = folder / "box-python"
    settings = json.dumps({"command": list(command), "program": str(program)})
    words = [sys.executable, "-m", "support.host_python", settings]
    tests = shlex.quote(str(Path(__file__).parents[1]))
    # The first three arguments are `-I -m MODULE`.
    program.write_text(
        f'#!/bin/sh\nmodule=$3\nshift 3\nPYTHONPATH={tests} exec {shlex.join(words)} "$module" "$@"\n'
    )
    program.chmod(0o700)
    return program


def main() -> int:
    from batchscribe.core.run.host import BOOT_MODULE

    settings, module, words = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if module == BOOT_MODULE:
        from batchscribe.agent import supervisor
        from batchscribe.wiring import host_boot

        supervisor.POLL_SECONDS = supervisor.IDLE_POLL_SECONDS = POLL_SECONDS
        return host_boot.main(words, command=settings["command"])
    from batchscribe.wiring import host

    return host.main(words, agent=(settings["program"], "-I", "-m", BOOT_MODULE))


if __name__ == "__main__":
    raise SystemExit(main())
