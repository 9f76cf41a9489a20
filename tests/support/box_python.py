"""A `remote_python` for tests: this interpreter, with a stand-in where the box starts a worker."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from support.stand_in import StandIns


def box_python(folder: Path, stand_ins: StandIns) -> Path:
    """A program that takes the arguments of a Python, and runs this box instead of the installed one."""
    program = folder / "box-python"
    settings = json.dumps({"command": stand_ins.command})
    words = [sys.executable, "-m", "support.box_python", settings]
    tests = shlex.quote(str(Path(__file__).parents[1]))
    # The first three arguments are `-I -m MODULE`.
    program.write_text(f'#!/bin/sh\nshift 3\nPYTHONPATH={tests} exec {shlex.join(words)} "$@"\n')
    program.chmod(0o700)
    return program


if __name__ == "__main__":
    from batchscribe.wiring.box import main

    raise SystemExit(main(sys.argv[2:], command=json.loads(sys.argv[1])["command"]))
