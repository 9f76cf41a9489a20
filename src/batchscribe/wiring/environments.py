"""The GPU host's second environment: Parakeet's packages and faster-whisper's exclude each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from batchscribe.core.run import host
from batchscribe.core.run.host import HostReply
from batchscribe.errors import EngineError
from batchscribe.wiring.engines import known_factory


def find_other_python(engine: str) -> str:
    """The interpreter of the engine's own environment on this host; empty if it has none, or runs in it."""
    environment = Path.home() / ".batchscribe" / f"venv-{known_factory(engine).extra}"
    python = environment / "bin" / "python"
    return str(python) if python.exists() and environment.resolve() != Path(sys.prefix).resolve() else ""


def ask_other(python: str, word: str, request: msgspec.Struct) -> HostReply:
    """The reply of another environment to a request. Raises EngineError without one."""
    data = msgspec.json.encode(request)
    done = subprocess.run(
        [python, "-I", "-m", host.MODULE, word], input=data, capture_output=True, check=False
    )
    reply = host.decode_reply(done.stdout)
    if reply is None or reply.error:
        reason = reply.error if reply else f"ended with code {done.returncode} and no reply"
        raise EngineError(f"{word} in {Path(python).parents[1].name}: {reason}")
    return reply
