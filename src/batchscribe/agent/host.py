"""The GPU host: starts its agent for a controller and workers for its agent, ends workers, checks itself.

Everything lies under `~/.batchscribe`: `env` for the workers' environment, the agent's lock, and a folder
for each run with its start permit, the agent's log, and each worker's process and log.
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
from batchscribe.core.run import host
from batchscribe.core.run.host import (
    BoxPlace,
    BoxReply,
    CheckRequest,
    EnvironmentRequest,
    Finding,
    StartPermit,
    StartRequest,
)
from batchscribe.core.run.manifest import EngineSpec, WorkerName, decode
from batchscribe.detached import alive, ask_to_end, boot_id, spawn, start_once, try_lock, write_atomically
from batchscribe.errors import EngineError, LaunchError, MisconfiguredError
from batchscribe.protocols import Clock

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker")
BOX_COMMAND = (sys.executable, "-I", "-m", host.MODULE)
AGENT_COMMAND = (sys.executable, "-I", "-m", host.BOOT_MODULE)
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
    """This machine as a GPU host. `home` is the user's; `command` starts a worker on a manifest's URL,
    `aside` is this host's own command line, `agent` that of its agent.
    """

    def __init__(
        self,
        home: Path,
        clock: Clock,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        aside: Sequence[str] = BOX_COMMAND,
        agent: Sequence[str] = AGENT_COMMAND,
    ) -> None:
        self._home = home
        self._root = home / ".batchscribe"
        self._clock = clock
        self._command = command
        self._aside_command = aside
        self._agent_command = agent

    @property
    def agent_lock(self) -> Path:
        """Held by the one agent of this host for its life."""
        return self._root / "agent.lock"

    def version(self) -> BoxReply:
        return BoxReply(release=__version__)

    def start(self, request: StartRequest) -> BoxReply:
        """Permits the agent to begin the run's workers, and starts an agent if none lives.

        Raises MisconfiguredError, LaunchError.
        """
        if request.release != __version__:
            raise MisconfiguredError(
                f"this host has batchscribe {__version__}, its controller {request.release}: "
                "run `batchscribe gpu setup`"
            )
        if "://" not in request.output or request.output.startswith("-"):
            raise MisconfiguredError(f"not the URL of a store: {request.output!r}")
        self._forget_old_runs()
        path = self._permit(request.run)
        environment = self.environment(region=request.region, endpoint=request.endpoint)
        permit = StartPermit(**msgspec.structs.asdict(request), boot=boot_id(), at=self._clock.now())
        argv = [*self._agent_command, host.LIVE, request.run]
        try:
            write_atomically(path, msgspec.json.encode(permit))
            with try_lock(self.agent_lock) as free:
                pass
            if free:
                spawn(argv, environment=environment, log=path.with_name("agent.log"))
        except OSError as error:
            raise LaunchError(f"the agent could not be started on this host: {error}") from error
        return BoxReply(release=__version__, done=free)

    def permit(self, run: str) -> StartPermit | None:
        """The permit to begin the run's workers; None if there is none of this boot."""
        try:
            permit = decode(self._permit(run).read_bytes(), StartPermit)
        except FileNotFoundError:
            return None
        return permit if permit.boot == boot_id() else None

    def start_worker(self, name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str) -> None:
        """Starts the worker on the manifest at `url`, once, if that has this hash; empty for any.

        Raises MisconfiguredError, LaunchError.
        """
        start_once(
            self._process(name),
            [*self._command, url, *(("--sha256", sha256) if sha256 else ())],
            environment=self.environment(region=region, endpoint=endpoint),
            log=self._process(name).with_name("worker.log"),
        )

    def was_started(self, name: WorkerName) -> bool:
        """True if the worker was ever started here."""
        return self._process(name).exists()

    def is_running(self, name: WorkerName) -> bool:
        return alive(self._process(name))

    def end_worker(self, name: WorkerName, *, force: bool) -> bool:
        """Asks the worker to end, or kills it; True if it ran."""
        return ask_to_end(self._process(name), force=force)

    def keep_environment(self, request: EnvironmentRequest) -> BoxReply:
        """Writes the environment file, for this user's eyes only."""
        write_atomically(self._root / "env", request.text.encode())
        return BoxReply(release=__version__, done=True)

    def keep_place(self, place: BoxPlace) -> BoxReply:
        """Writes down which instance this is, for the boots to come."""
        write_atomically(self._root / "box.json", msgspec.json.encode(place))
        return BoxReply(release=__version__, done=True)

    @property
    def is_set_up(self) -> bool:
        """True if `gpu setup` left word of its instance here."""
        return (self._root / "box.json").exists()

    def place(self) -> BoxPlace:
        """Which instance this is. Raises MisconfiguredError where no set-up said so."""
        try:
            return decode((self._root / "box.json").read_bytes(), BoxPlace)
        except OSError as error:
            raise MisconfiguredError(
                f"this box does not know which instance it is ({error.strerror}): run `batchscribe gpu setup`"
            ) from error

    def check(self, request: CheckRequest) -> BoxReply:
        """Every precondition on this host, looked at."""
        findings = [self._clocks(request.now), self._space(), self._secrets(), *_survival()]
        if request.gpu:
            findings.append(_driver())
        if request.boots:
            findings.append(self._elsewhere(request.home, request.control) or _units())
        findings.extend(self._inspected(request))
        return BoxReply(release=__version__, findings=tuple(findings))

    def _elsewhere(self, home: str, control: str) -> Finding | None:
        """Where the next boot would look for its claim in another's store, or nowhere."""
        try:
            place = self.place()
        except MisconfiguredError as error:
            return Finding(what="units", ok=False, detail=str(error), mend=SET_UP)
        known, wanted = _stores(place.home, place.control), _stores(home, control)
        if not home or known == wanted:
            return None
        detail = f"the box looks for its claims in {known}, not in {wanted}: another set-up took it over"
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

    def _permit(self, run: str) -> Path:
        return self._root / "runs" / WorkerName(run=run, worker=0).checked().run / "start.json"

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
        reply = host.last_word(done.stdout)
        if reply is None or reply.error:
            raise EngineError(
                reply.error if reply else f"{word} ended with code {done.returncode} and no word"
            )
        return reply


def _stores(home: str, control: str) -> str:
    return f"{home.rstrip('/')} ({control.rstrip('/')})" if control else home.rstrip("/")


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
    dead_man = [unit for unit in host.DEADMAN_UNITS if not unit.endswith(".service")]
    missing = [unit for unit in (host.BOX_UNIT, *dead_man) if not _systemd_says("is-enabled", unit)]
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
