"""What the box beside the GPU does for a controller: starts workers, ends them, looks at itself.

Everything lies under `~/.batchscribe`: `env` for the workers' environment, and a folder for each
worker of each run with its process and its log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from dotenv import dotenv_values

from batchscribe import __version__
from batchscribe.core import box
from batchscribe.core.box import (
    BoxPlace,
    BoxReply,
    CheckRequest,
    EndRequest,
    EnvironmentRequest,
    Finding,
    StartRequest,
    WorkerName,
)
from batchscribe.core.manifest import EngineSpec
from batchscribe.detached import alive, ask_to_end, start_once, write_atomically
from batchscribe.errors import EngineError, MisconfiguredError
from batchscribe.protocols import Clock

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker")
BOX_COMMAND = (sys.executable, "-I", "-m", box.MODULE)
FREE_BYTES = 2 * 1024**3
"""For models, and for audio on its way to the GPU."""
CLOCK_SECONDS = 30.0
"""S3 refuses requests that are 15 minutes off; deadlines want better."""
DRIVER = 525
"""The oldest driver that runs CUDA 12, which the engine is built for."""
RETENTION = timedelta(days=30)
"""Of the folders of ended runs; no run is that long."""
SET_UP = "batchscribe gpu setup"
INSPECT_SECONDS = 300.0
FETCH_SECONDS = 1800.0
_ALSO = {"AWS_REGION": "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL_S3"}
"""The same setting by its other name."""
READ_ENGINES = "see `batchscribe gpu ssh -- .batchscribe/venv/bin/python -m batchscribe engines`"


class Box:
    """This machine as a box. `home` is the user's; `command` starts a worker on a manifest's URL,
    `aside` is this box's own command line.
    """

    def __init__(
        self,
        home: Path,
        clock: Clock,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        aside: Sequence[str] = BOX_COMMAND,
    ) -> None:
        self._home = home
        self._root = home / ".batchscribe"
        self._clock = clock
        self._command = command
        self._aside_command = aside

    def version(self) -> BoxReply:
        return BoxReply(release=__version__)

    def start(self, request: StartRequest) -> BoxReply:
        """Starts the worker, once. Raises MisconfiguredError, LaunchError."""
        if request.release != __version__:
            raise MisconfiguredError(
                f"the worker here has version {__version__}, the manifest wants {request.release}: "
                "run `batchscribe gpu setup`"
            )
        if "://" not in request.url or request.url.startswith("-"):
            raise MisconfiguredError(f"not the URL of a manifest: {request.url!r}")
        self._forget_old_runs()
        started = start_once(
            self._process(request),
            [*self._command, request.url],
            environment=self.environment(region=request.region, endpoint=request.endpoint),
            log=self._process(request).with_name("worker.log"),
        )
        return BoxReply(release=__version__, done=started)

    def started(self, name: WorkerName) -> bool:
        """Whether the worker was ever started here, by whomever."""
        return self._process(name).exists()

    def alive(self, name: WorkerName) -> BoxReply:
        """Done where the worker still runs."""
        return BoxReply(release=__version__, done=alive(self._process(name)))

    def cancel(self, name: EndRequest) -> BoxReply:
        """Asks the worker to end; harmless where none runs."""
        return BoxReply(release=__version__, done=ask_to_end(self._process(name), force=name.force))

    def keep_environment(self, request: EnvironmentRequest) -> BoxReply:
        """Writes the environment file, for this user's eyes only."""
        write_atomically(self._root / "env", request.text.encode())
        return BoxReply(release=__version__, done=True)

    def keep_place(self, place: BoxPlace) -> BoxReply:
        """Writes down which instance this is, for the boots to come."""
        write_atomically(self._root / "box.json", msgspec.json.encode(place))
        return BoxReply(release=__version__, done=True)

    def place(self) -> BoxPlace:
        """Which instance this is. Raises MisconfiguredError where no set-up said so."""
        try:
            return box.read((self._root / "box.json").read_bytes(), BoxPlace)
        except OSError as error:
            raise MisconfiguredError(
                f"this box does not know which instance it is ({error.strerror}): run `batchscribe gpu setup`"
            ) from error

    def check(self, request: CheckRequest) -> BoxReply:
        """Every precondition on this box, looked at."""
        findings = [self._clocks(request.now), self._space(), self._secrets(), *_survival()]
        if request.gpu:
            findings.append(_driver())
        if request.boots:
            findings.append(self._elsewhere(request.home) or _units())
        findings.extend(self._inspected(request))
        return BoxReply(release=__version__, findings=tuple(findings))

    def _elsewhere(self, home: str) -> Finding | None:
        """Where the next boot would look for its claim in another's store, or nowhere."""
        try:
            known = self.place().home
        except MisconfiguredError as error:
            return Finding(what="units", ok=False, detail=str(error), mend=SET_UP)
        if not home or known.rstrip("/") == home.rstrip("/"):
            return None
        detail = f"the box looks for its claims in {known}, not in {home}: another set-up took it over"
        return Finding(what="units", ok=False, detail=detail, mend=SET_UP)

    def prefetch(self, spec: EngineSpec) -> BoxReply:
        """Fetches the engine's model, so that no paid run waits for it. Raises EngineError."""
        return self._aside("fetch", spec, FETCH_SECONDS, self.environment())

    def environment(self, *, region: str = "", endpoint: str = "") -> dict[str, str]:
        """What a worker gets: the file's lines and a plain base; nothing of this session.

        AWS's region and endpoint are set to these where the file does not name any. Raises
        MisconfiguredError where others could read or change the file.
        """
        base = {
            "HOME": str(self._home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
        }
        written = self._environment_file()
        given = {"AWS_REGION": region, "AWS_ENDPOINT_URL": endpoint}
        return (
            base | written | {name: text for name, text in given.items() if text and not _said(written, name)}
        )

    def _environment_file(self) -> dict[str, str]:
        path = self._root / "env"
        try:
            seen = path.lstat()
        except FileNotFoundError:
            return {}
        private = stat.S_ISREG(seen.st_mode) and not seen.st_mode & 0o077 and seen.st_uid == os.geteuid()
        if not private:
            raise MisconfiguredError(f"{path} is not ours alone: run `chmod 600 {path}` as its owner")
        try:
            values = dotenv_values(path, interpolate=False)
        except (OSError, UnicodeDecodeError) as error:
            raise MisconfiguredError(
                f"{path} cannot be read as UTF-8 text: mend it by `batchscribe gpu setup --env-file FILE`"
            ) from error
        return {name: value for name, value in values.items() if value is not None}

    def _forget_old_runs(self) -> None:
        limit = (self._clock.now() - RETENTION).timestamp()
        for folder in (self._root / "runs").glob("*"):
            # What cannot be tidied up is no reason to leave a paid box without work.
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < limit:
                    shutil.rmtree(folder)

    def _process(self, name: WorkerName) -> Path:
        """Where the worker's process is recorded."""
        known = name.checked()
        return self._root / "runs" / known.run / str(known.worker) / "process.json"

    def _clocks(self, asked: datetime) -> Finding:
        off = abs((self._clock.now() - asked).total_seconds())
        mend = "set the clocks: `timedatectl set-ntp true` on both machines"
        return Finding(what="clock", ok=off <= CLOCK_SECONDS, detail=f"{off:.0f} s off", mend=mend)

    def _space(self) -> Finding:
        free = shutil.disk_usage(self._home).free
        detail = f"{free / 1024**3:.1f} GiB free in {self._home}"
        return Finding(
            what="disk",
            ok=free >= FREE_BYTES,
            detail=detail,
            mend=f"free {FREE_BYTES / 1024**3:.0f} GiB, or give the instance a larger volume",
        )

    def _secrets(self) -> Finding:
        try:
            count = len(self._environment_file())
        except MisconfiguredError as error:
            return Finding(what="environment file", ok=False, detail=str(error), mend="see above")
        detail = f"{count} settings" if count else "none: the workers use the instance's role"
        return Finding(what="environment file", ok=True, detail=detail)

    def _inspected(self, request: CheckRequest) -> tuple[Finding, ...]:
        try:
            environment = self.environment(region=request.region, endpoint=request.endpoint)
            return self._aside("inspect", request, INSPECT_SECONDS, environment).findings
        except (MisconfiguredError, EngineError) as error:
            return (Finding(what="engine", ok=False, detail=str(error), mend=READ_ENGINES),)

    def _aside(
        self, word: str, request: msgspec.Struct, seconds: float, environment: dict[str, str]
    ) -> BoxReply:
        """What needs a worker's own environment, and may crash, is done in a process of its own."""
        try:
            done = subprocess.run(
                [*self._aside_command, word],
                input=msgspec.json.encode(request),
                env=environment,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{word} was not through after {seconds:.0f} s") from error
        reply = box.last_word(done.stdout)
        if reply is None or reply.error:
            raise EngineError(
                reply.error if reply else f"{word} ended with code {done.returncode} and no word"
            )
        return reply


def _said(written: Mapping[str, str], name: str) -> bool:
    return any(written.get(each) for each in (name, _ALSO[name]))


def _driver() -> Finding:
    mend = f"install NVIDIA's driver, version {DRIVER} or newer, or take an image that has it"
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    try:
        done = subprocess.run(query, capture_output=True, timeout=30, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return Finding(what="GPU driver", ok=False, detail="nvidia-smi does not run", mend=mend)
    first = done.stdout.strip().splitlines()[:1]
    version = first[0].split(",")[1].strip() if first and first[0].count(",") == 2 else ""
    new_enough = version.split(".")[0].isdigit() and int(version.split(".")[0]) >= DRIVER
    detail = first[0] if first else f"nvidia-smi ended with code {done.returncode}"
    return Finding(what="GPU driver", ok=done.returncode == 0 and new_enough, detail=detail, mend=mend)


def _units() -> Finding:
    """Whether the next boot finds the units that its record promises."""
    dead_man = [unit for unit in box.DEADMAN_UNITS if not unit.endswith(".service")]
    missing = [unit for unit in (box.BOX_UNIT, *dead_man) if not _systemd_says("is-enabled", unit)]
    missing += [unit for unit in dead_man if unit not in missing and not _systemd_says("is-active", unit)]
    detail = f"not enabled or not active: {', '.join(missing)}" if missing else "enabled, dead-man active"
    return Finding(what="units", ok=not missing, detail=detail, mend=SET_UP)


def _systemd_says(question: str, unit: str) -> bool:
    try:
        done = subprocess.run(
            ("systemctl", "--quiet", question, unit), capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _survival() -> Iterator[Finding]:
    """Whether a worker outlives the connection that started it; only systemd-logind may say no."""
    manager = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    query = ("busctl", "get-property", *manager, "KillUserProcesses")
    try:
        done = subprocess.run(query, capture_output=True, timeout=10, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode == 0:
        kills = done.stdout.strip() == "b true"
        yield Finding(
            what="workers outlive ssh",
            ok=not kills,
            detail="logind kills what a login leaves behind" if kills else "yes",
            mend="set KillUserProcesses=no in /etc/systemd/logind.conf",
        )
