"""The GPU host's second environment: Parakeet's packages and faster-whisper's exclude each other."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from batchscribe.agent.host import run_aside
from batchscribe.core.run import host
from batchscribe.core.run.host import HostReply
from batchscribe.errors import EngineError
from batchscribe.wiring.engines import known_factory


def find_other_python(engine: str) -> str:
    """The interpreter of the engine's own environment; empty without or within one."""
    environment = Path.home() / ".batchscribe" / f"venv-{known_factory(engine).extra}"
    python = environment / "bin" / "python"
    return str(python) if python.exists() and environment.resolve() != Path(sys.prefix).resolve() else ""


def ask_other(python: str, word: str, request: msgspec.Struct) -> HostReply:
    """The reply of another environment to a request. Raises EngineError without one."""
    try:
        return run_aside((python, "-I", "-m", host.MODULE), word, request)
    except EngineError as error:
        raise EngineError(f"{Path(python).parents[1].name}: {error}") from error
