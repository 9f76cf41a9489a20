"""The GPU host: starts the agent, controls workers, checks itself.

Everything is under `~/.batchscribe`: `env` for the workers' environment, the model's files, the agent's lock,
and a folder for each run with its start permit, the agent's log, and each worker's process and log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from dotenv import dotenv_values

from batchscribe import ACCEPTED_RELEASES, __version__
from batchscribe.core.run import host
from batchscribe.core.run.host import (
    CheckRequest,
    EnvironmentRequest,
    Finding,
    HostPlace,
    HostReply,
    StartPermit,
    StartRequest,
)
from batchscribe.core.run.manifest import EngineSpec, WorkerName, decode
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.detached import (
    ask_to_end,
    boot_id,
    is_running,
    spawn,
    start_once,
    try_lock,
    write_atomically,
)
from batchscribe.errors import EngineError, LaunchError, MisconfiguredError
from batchscribe.protocols import Clock

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker")
BOX_COMMAND = (sys.executable, "-I", "-m", host.MODULE)
AGENT_COMMAND = (sys.executable, "-I", "-m", host.BOOT_MODULE)
FREE_BYTES = 2 * 1024**3
"""For models, and for audio on its way to the GPU."""
CLOCK_SECONDS = 30.0
"""S3 refuses requests that are 15 minutes off; deadlines need more precision."""
DRIVER = 525
"""Oldest driver for CUDA 12, which the engine is built for."""
RETENTION = timedelta(days=30)
"""Age at which folders of runs are deleted; no run is that long."""
SET_UP = "batchscribe gpu setup"
INSPECT_SECONDS = 300.0
FETCH_SECONDS = 1800.0
_ALSO = {"AWS_REGION": "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL_S3"}
"""Alternative names of settings."""
READ_ENGINES = "see `batchscribe gpu ssh -- .batchscribe/venv/bin/python -m batchscribe engines`"


@dataclass(frozen=True)
class GpuHost:
    """This machine as a GPU host."""

    home: Path
    """Of the user."""
    clock: Clock
    _: KW_ONLY
    command: Sequence[str] = WORKER_COMMAND
    """Starts a worker on a manifest's URL."""
    aside: Sequence[str] = BOX_COMMAND
    """This host's own command line."""
    agent: Sequence[str] = AGENT_COMMAND

    @property
    def _root(self) -> Path:
        return self.home / ".batchscribe"

    @property
    def _model_list(self) -> Path:
        return self._root / "model-files.json"

    @property
    def agent_lock(self) -> Path:
        """Lock file that this host's only agent holds while it runs."""
        return self._root / "agent.lock"

    def report_version(self) -> HostReply:
        return HostReply(release=__version__)

    def start(self, request: StartRequest) -> HostReply:
        """Permits the run's workers, and starts an agent if none runs.

        Raises MisconfiguredError, LaunchError.
        """
        if request.release not in ACCEPTED_RELEASES:
            raise MisconfiguredError(
                f"this host has batchscribe {__version__}, its controller {request.release}: "
                "run `batchscribe gpu setup`"
            )
        if "://" not in request.output or request.output.startswith("-"):
            raise MisconfiguredError(f"not the URL of a store: {request.output!r}")
        self._forget_old_runs()
        path = self._permit_path(request.run)
        environment = self.build_environment(region=request.region, endpoint=request.endpoint)
        permit = StartPermit(**msgspec.structs.asdict(request), boot=boot_id(), at=self.clock.now())
        argv = [*self.agent, host.LIVE, request.run]
        try:
            write_atomically(path, msgspec.json.encode(permit))
            with try_lock(self.agent_lock) as free:
                pass
            if free:
                spawn(argv, environment=environment, log=path.with_name("agent.log"))
        except OSError as error:
            raise LaunchError(f"the agent could not be started on this host: {error}") from error
        return HostReply(release=__version__, done=free)

    def read_permit(self, run: str) -> StartPermit | None:
        """Reads the run's permit. None if there is none of this boot."""
        try:
            permit = decode(self._permit_path(run).read_bytes(), StartPermit)
        except FileNotFoundError:
            return None
        return permit if permit.boot == boot_id() else None

    def start_worker(self, name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str) -> None:
        """Starts the worker on a manifest once; an empty hash permits any.

        Raises MisconfiguredError, LaunchError.
        """
        start_once(
            self._process_path(name),
            [*self.command, url, *(("--sha256", sha256) if sha256 else ())],
            environment=self.build_environment(region=region, endpoint=endpoint),
            log=self._process_path(name).with_name("worker.log"),
        )

    def was_started(self, name: WorkerName) -> bool:
        """True if the worker was ever started here."""
        return self._process_path(name).exists()

    def is_running(self, name: WorkerName) -> bool:
        return is_running(self._process_path(name))

    def end_worker(self, name: WorkerName, *, force: bool) -> bool:
        """Asks the worker to end, or kills it; True if it ran."""
        return ask_to_end(self._process_path(name), force=force)

    def keep_environment(self, request: EnvironmentRequest) -> HostReply:
        """Writes the environment file, readable by this user only."""
        write_atomically(self._root / "env", request.text.encode())
        return HostReply(release=__version__, done=True)

    def keep_place(self, place: HostPlace) -> HostReply:
        """Records the instance's id and stores for later boots."""
        write_atomically(self._root / "box.json", msgspec.json.encode(place))
        return HostReply(release=__version__, done=True)

    @property
    def is_set_up(self) -> bool:
        """True if `gpu setup` recorded the instance here."""
        return (self._root / "box.json").exists()

    def read_place(self) -> HostPlace:
        """Reads the instance's record. Raises MisconfiguredError if `gpu setup` wrote none."""
        try:
            return decode((self._root / "box.json").read_bytes(), HostPlace)
        except OSError as error:
            raise MisconfiguredError(
                f"this GPU host has no record of its instance ({error.strerror}): run `batchscribe gpu setup`"
            ) from error

    def check_host(self, request: CheckRequest) -> HostReply:
        """Checks every precondition on this host."""
        findings = [
            self._check_clock(request.now),
            self._check_disk(),
            self._check_environment(),
            *_check_survival(),
        ]
        if request.gpu:
            findings.append(_check_driver())
        if request.boots:
            findings.append(self._check_stores(request.home, request.control) or _check_units())
        findings.extend(self._check_engine(request))
        return HostReply(release=__version__, findings=tuple(findings))

    def _check_stores(self, home: str, control: str) -> Finding | None:
        """Finding if the next boot would read claims from another store."""
        try:
            place = self.read_place()
        except MisconfiguredError as error:
            return Finding(what="units", ok=False, detail=str(error), fix=SET_UP)
        known, wanted = _describe_stores(place.home, place.control), _describe_stores(home, control)
        if not home or known == wanted:
            return None
        detail = f"the GPU host reads its claims from {known}, not from {wanted}: another set-up replaced it"
        return Finding(what="units", ok=False, detail=detail, fix=SET_UP)

    def prefetch_model(self, spec: EngineSpec) -> HostReply:
        """Fetches the engine's model before any paid run. Raises EngineError."""
        environment = self.build_environment()
        return run_aside(self.aside, "fetch", spec, environment=environment, seconds=FETCH_SECONDS)

    def keep_model_files(self, files: Iterable[Path]) -> None:
        """Records the model's files, to be read ahead at each boot."""
        write_atomically(self._model_list, msgspec.json.encode([str(file) for file in files]))

    def read_model_files(self) -> tuple[Path, ...]:
        """The recorded files of the model; empty without a readable record."""
        try:
            names = msgspec.json.decode(self._model_list.read_bytes(), type=list[str])
        except (OSError, *UNREADABLE):
            return ()
        return tuple(map(Path, names))

    def build_environment(self, *, region: str = "", endpoint: str = "") -> dict[str, str]:
        """Environment of a worker: the file's lines and a plain base.

        `region` and `endpoint` are set for AWS unless the file sets them. Raises MisconfiguredError if other
        users could read or change the file.
        """
        base = {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
        }
        written = self._environment_file()
        given = {"AWS_REGION": region, "AWS_ENDPOINT_URL": endpoint}
        known = {name for name in given if written.get(name) or written.get(_ALSO[name])}
        return base | written | {name: text for name, text in given.items() if text and name not in known}

    def _environment_file(self) -> dict[str, str]:
        path = self._root / "env"
        try:
            seen = path.lstat()
        except FileNotFoundError:
            return {}
        private = stat.S_ISREG(seen.st_mode) and not seen.st_mode & 0o077 and seen.st_uid == os.geteuid()
        if not private:
            raise MisconfiguredError(
                f"{path} is accessible to other users: run `chmod 600 {path}` as its owner"
            )
        try:
            values = dotenv_values(path, interpolate=False)
        except (OSError, UnicodeDecodeError) as error:
            raise MisconfiguredError(
                f"{path} cannot be read as UTF-8 text: replace it by `batchscribe gpu setup --env-file FILE`"
            ) from error
        return {name: value for name, value in values.items() if value is not None}

    def _forget_old_runs(self) -> None:
        limit = (self.clock.now() - RETENTION).timestamp()
        for folder in (self._root / "runs").glob("*"):
            # A folder that cannot be deleted must not keep a paid host from its work.
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < limit:
                    shutil.rmtree(folder)

    def _process_path(self, name: WorkerName) -> Path:
        known = name.checked()
        return self._root / "runs" / known.run / str(known.worker) / "process.json"

    def _permit_path(self, run: str) -> Path:
        return self._root / "runs" / WorkerName(run=run, worker=0).checked().run / "start.json"

    def _check_clock(self, asked: datetime) -> Finding:
        off = abs((self.clock.now() - asked).total_seconds())
        fix = "set the clocks: `timedatectl set-ntp true` on both machines"
        return Finding(what="clock", ok=off <= CLOCK_SECONDS, detail=f"{off:.0f} s off", fix=fix)

    def _check_disk(self) -> Finding:
        free = shutil.disk_usage(self.home).free
        detail = f"{free / 1024**3:.1f} GiB free in {self.home}"
        return Finding(
            what="disk",
            ok=free >= FREE_BYTES,
            detail=detail,
            fix=f"free {FREE_BYTES / 1024**3:.0f} GiB, or give the instance a larger volume",
        )

    def _check_environment(self) -> Finding:
        try:
            count = len(self._environment_file())
        except MisconfiguredError as error:
            return Finding(what="environment file", ok=False, detail=str(error), fix="see above")
        detail = f"settings: {count}" if count else "none: the workers use the instance's role"
        return Finding(what="environment file", ok=True, detail=detail)

    def _check_engine(self, request: CheckRequest) -> tuple[Finding, ...]:
        try:
            environment = self.build_environment(region=request.region, endpoint=request.endpoint)
            reply = run_aside(
                self.aside, "inspect", request, environment=environment, seconds=INSPECT_SECONDS
            )
        except (MisconfiguredError, EngineError) as error:
            return (Finding(what="engine", ok=False, detail=str(error), fix=READ_ENGINES),)
        return reply.findings


def run_aside(
    command: Sequence[str],
    word: str,
    request: msgspec.Struct,
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> HostReply:
    """Handles a request in a process that may crash. Raises EngineError."""
    try:
        done = subprocess.run(
            [*command, word],
            input=msgspec.json.encode(request),
            env=environment,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{word} was not finished after {seconds:.0f} s") from error
    reply = host.decode_reply(done.stdout)
    if reply is None or reply.error:
        raise EngineError(reply.error if reply else f"{word} ended with code {done.returncode} and no reply")
    return reply


def _describe_stores(home: str, control: str) -> str:
    return f"{home.rstrip('/')} ({control.rstrip('/')})" if control else home.rstrip("/")


def _run_query(*command: str, seconds: float = 10) -> subprocess.CompletedProcess[str] | None:
    """Runs a command that only reads; None without a result in time."""
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _check_driver() -> Finding:
    fix = f"install NVIDIA's driver, version {DRIVER} or newer, or take an image that has it"
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    done = _run_query(*query, seconds=30)
    if done is None:
        return Finding(what="GPU driver", ok=False, detail="nvidia-smi does not run", fix=fix)
    first = done.stdout.strip().splitlines()[:1]
    version = first[0].split(",")[1].strip() if first and first[0].count(",") == 2 else ""
    new_enough = version.split(".")[0].isdigit() and int(version.split(".")[0]) >= DRIVER
    detail = first[0] if first else f"nvidia-smi ended with code {done.returncode}"
    return Finding(what="GPU driver", ok=done.returncode == 0 and new_enough, detail=detail, fix=fix)


def _check_units() -> Finding:
    """Checks that the systemd units are enabled, and the dead-man active."""
    dead_man = [unit for unit in host.DEADMAN_UNITS if not unit.endswith(".service")]
    missing = [unit for unit in (host.AGENT_UNIT, *dead_man) if not _query_systemd("is-enabled", unit)]
    missing += [unit for unit in dead_man if unit not in missing and not _query_systemd("is-active", unit)]
    detail = f"not enabled or not active: {', '.join(missing)}" if missing else "enabled, dead-man active"
    return Finding(what="units", ok=not missing, detail=detail, fix=SET_UP)


def _query_systemd(question: str, unit: str) -> bool:
    done = _run_query("systemctl", "--quiet", question, unit)
    return done is not None and done.returncode == 0


def _check_survival() -> Iterator[Finding]:
    """Checks that systemd-logind lets a worker outlive the connection that started it."""
    manager = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    done = _run_query("busctl", "get-property", *manager, "KillUserProcesses")
    if done is not None and done.returncode == 0:
        kills = done.stdout.strip() == "b true"
        yield Finding(
            what="workers outlive ssh",
            ok=not kills,
            detail="logind kills what a login leaves behind" if kills else "yes",
            fix="set KillUserProcesses=no in /etc/systemd/logind.conf",
        )
