"""The command line as a user runs it: a process, an environment, a working directory."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from batchscribe.cli.app import App
from batchscribe.settings import load
from support.forked import ENGINES, Forked, nursery

SPEECH = Path(str(files("batchscribe") / "demo" / "audio"))
PATIENCE = 240.0
"""A bound for a process that hangs, not a measure of anything."""


@dataclass
class Desk:
    """A working directory with its `.env`, and the commands run in it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def bucket(self) -> Path:
        return self.home / "bucket"

    def configure(self, **names: str) -> None:
        lines = [f"{name}={value}\n" for name, value in names.items()]
        (self.home / ".env").write_text("".join(lines))
        (self.home / ".env").chmod(0o600)

    def start(self, *words: str, **environment: str) -> Forked:
        return nursery().start(self.home, *words, environment=self._environment(environment))

    def spawn(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command in an interpreter of its own, as a user starts it."""
        return subprocess.run(
            [sys.executable, "-m", "batchscribe", *words],
            cwd=self.home,
            env=self._environment(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **environment)
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"{words} hung:\n{stdout}\n{stderr}") from None
        return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)

    def json_of(self, *words: str, **environment: str) -> Any:
        """The document of a command that has its own way to ask for JSON."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def json(self, *words: str, code: int = 0, **environment: str) -> Any:
        done = self.run(*words, "--json", **environment)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return kept | {"PYTHONPATH": ENGINES} | self.environment | extra


def finish_by_timer(desk: Desk) -> Any:
    """The one run that passes of the watchdog close, made as by its timer, without the minutes between."""
    for _ in range(2000):
        if closed := desk.json("watchdog").get("released"):
            (run,) = closed
            return run
        time.sleep(0.5)
    raise AssertionError("no run was closed")


def local_desk(home: Path, **names: str) -> Desk:
    """A bucket on disk, this machine as the GPU, an engine without a model, no age to wait for."""
    desk = Desk(home)
    desk.bucket.mkdir(parents=True)
    defaults = {
        "BATCH_SOURCE": "./bucket",
        "BATCH_ENGINE": "scripted",
        "BATCH_MIN_AGE_MINUTES": "0",
        "GPU_PROVIDER": "local",
    }
    desk.configure(**(defaults | names))
    return desk


def wait_for(condition: Iterator[bool]) -> None:
    """Looks until the condition holds; a bound against hanging, not a measure."""
    for _ in range(2000):
        if next(condition):
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")


def put_speech(bucket: Path, *sessions: str) -> list[str]:
    """Copies sessions of the bundled speech into a bucket; the keys."""
    for session in sessions:
        shutil.copytree(SPEECH / session, bucket / session, copy_function=shutil.copyfile)
    return sorted(str(path.relative_to(SPEECH)) for name in sessions for path in (SPEECH / name).iterdir())


def spoken(seconds: float = 0.8) -> bytes:
    """The beginning of a bundled recording, as a WAV file."""
    with wave.open(str(SPEECH / "notes" / "shopping list.wav")) as whole:
        rate, width = whole.getframerate(), whole.getsampwidth()
        frames = whole.readframes(int(rate * seconds))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as part:
        part.setnchannels(1)
        part.setsampwidth(width)
        part.setframerate(rate)
        part.writeframes(frames)
    return buffer.getvalue()


def app_of(source: Path, **names: str) -> App:
    """The context of a command in this process, in a folder with these settings."""
    defaults = {
        "BATCH_SOURCE": str(source),
        "BATCH_MIN_AGE_MINUTES": "0",
        "BATCH_ENGINE": "pocketsphinx",
        "GPU_PROVIDER": "local",
    }
    app = App()
    app.__dict__["settings"] = load(defaults | names, folder=source.parent)
    return app
