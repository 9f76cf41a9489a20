"""Command lines without the start of an interpreter: a process imports the program and forks each command.

The child has the given folder and environment, and its output goes to memory. A worker that a command starts
is a fork of that process, too. `Desk.spawn` starts a real interpreter instead.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from batchscribe import detached
from batchscribe.private_files import FILE, make_folder

TESTS = Path(__file__).parents[1]
ENGINES = str(Path(__file__).with_name("engines"))
"""In a PYTHONPATH, it gives a process the engine `scripted`."""
_LAZY = (
    "av",
    "batchscribe.wiring.scheduler",
    "batchscribe.wiring.gpu",
    "batchscribe.wiring.host",
    "batchscribe.wiring.host_boot",
    "batchscribe.wiring.worker",
    "batchscribe.adapters.engines.whisper.silero_vad",
    "batchscribe.adapters.aws.ec2",
    "batchscribe.adapters.aws.eventbridge",
    "batchscribe.adapters.engines.pocketsphinx_engine",
    "batchscribe.adapters.local.compute",
    "batchscribe.adapters.local.launcher",
    "onnxruntime",
    "support.played_worker",
)
"""What commands and workers import on use."""
FORKED_PROGRAM = Path(__file__).with_name("forked_program.py")
COMMAND = ("-P", "-m", "batchscribe")
PROGRAMS = {
    COMMAND: "batchscribe.cli.main",
    ("-I", "-m", "batchscribe.wiring.host"): "batchscribe.wiring.host",
    ("-I", "-m", "batchscribe.wiring.host_boot"): "batchscribe.wiring.host_boot",
    (str(Path(__file__).with_name("played_worker.py")),): "support.played_worker",
}
"""Arguments of an interpreter -> module with the program's `main`."""
LONGEST = 1 << 17
"""Bytes of a message between two processes."""
_SPAWN = detached.spawn


@dataclass
class Forked:
    """A running command, with the methods of subprocess.Popen that tests need."""

    args: tuple[str, ...]
    pid: int
    _channel: socket.socket
    _output: tuple[int, int]
    returncode: int | None = None

    def poll(self) -> int | None:
        return self._read_code(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._read_code(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        stdout, stderr = (os.pread(output, os.fstat(output).st_size, 0).decode() for output in self._output)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._channel.close()
        for output in self._output:
            os.close(output)

    def _read_code(self, timeout: float | None) -> int | None:
        """Exit code, or minus the signal, once the command has ended."""
        if self.returncode is None and select.select([self._channel], [], [], timeout)[0]:
            self.returncode = _receive(self._channel)
        return self.returncode


@dataclass(frozen=True)
class Nursery:
    """Clients' side of the process that forks."""

    address: bytes

    def start(
        self, home: Path, *words: str, environment: Mapping[str, str], arm: Mapping[str, Any] | None = None
    ) -> Forked:
        """Starts `batchscribe WORDS` in `home`. `arm`: arguments of support.crashing.arm, called before.

        An empty `arm` is support.crashing.poll_often."""
        output = os.memfd_create("stdout"), os.memfd_create("stderr")
        argv = [*COMMAND, *words]
        channel = self._request(output, home=str(home), argv=argv, environment=dict(environment), arm=arm)
        return Forked(words, _receive(channel), channel, output)

    def spawn(self, argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> int:
        """Replaces `batchscribe.detached.spawn`: forks programs that are imported already."""
        if argv[0] != sys.executable or not _find_program(argv[1:])[0]:
            return _SPAWN(argv, environment=environment, log=log)
        make_folder(log.parent)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE)
        asked = {"home": str(Path.cwd()), "argv": argv[1:], "environment": dict(environment)}
        with os.fdopen(file), self._request((file, file), **asked, detached=True) as channel:
            return _receive(channel)

    def _request(self, output: tuple[int, int], **asked: object) -> socket.socket:
        """Gives the connection, on which the pid follows, then the exit code."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.connect(self.address)
        socket.send_fds(channel, [json.dumps(asked).encode()], output)
        return channel


def _receive(channel: socket.socket) -> int:
    message = channel.recv(LONGEST)
    assert message, "the forking process has ended"
    return int(message)


def _find_program(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Module with the `main` for these arguments of an interpreter, and its words; empty if there is none."""
    for given, module in PROGRAMS.items():
        if tuple(argv[: len(given)]) == given:
            return module, [*argv[len(given) :]]
    return "", []


@cache
def nursery() -> Nursery:
    """The one of this test process."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the kernel chooses an abstract address
        listener.listen()
        address: bytes = listener.getsockname()
        process = subprocess.Popen(
            [sys.executable, "-m", "support.forked"],
            stdin=listener.fileno(),
            env=kept | {"PYTHONPATH": f"{TESTS}:{ENGINES}", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # commands of broken tests, too
        process.wait()

    atexit.register(end)
    return Nursery(address)


@cache
def keep_tables() -> None:
    """Lets sessions of botocore share tables, services, methods, and what is known of handlers."""
    from botocore import client, hooks, loaders

    modules: list[Any] = [client.ClientCreator, hooks, loaders]
    creators, handlers, tables = modules
    aliases, files, services = handlers.EventAliaser, tables.JSONFileLoader, tables.Loader
    list_services = services.list_available_services
    listed = cache(lambda paths, kind: list_services(services(extra_search_paths=[*paths]), kind))
    load = cache(files().load_file)
    renamed = cache(partial(aliases._alias_event_name, aliases(None)))
    handlers.accepts_kwargs = cache(handlers.accepts_kwargs)
    aliases._alias_event_name = lambda _each, name: renamed(name)
    files.load_file = lambda _each, path: load(path)
    services.list_available_services = lambda each, type_name: listed(tuple(each.search_paths), type_name)
    make_methods, methods = creators._create_methods, dict[str, Any]()

    def create_methods(creator: Any, service: Any) -> Any:
        if service.service_name not in methods:
            methods[service.service_name] = make_methods(creator, service)
        return {**methods[service.service_name]}

    creators._create_methods = create_methods


def _prepare() -> None:
    """Imports what commands import, lists the engines, and parses the tables of services, once."""
    import boto3

    from batchscribe.cli.main import COMMANDS
    from batchscribe.wiring import engines

    for name in {row[0].partition(":")[0] for row in COMMANDS.values()}:
        importlib.import_module(f"batchscribe.cli.{name}")
    for name in _LAZY:
        importlib.import_module(name)
    engines.engine_names()
    keep_tables()
    session: Any = boto3.session.Session(aws_access_key_id="testing", aws_secret_access_key="testing")
    for name in ("ec2", "scheduler"):
        session.client(name, region_name="us-east-1")
    gc.freeze()


def _serve(listener: socket.socket, tests: int) -> None:
    """Forks until the process of the tests, a pidfd, has ended."""
    running: dict[int, tuple[int, socket.socket]] = {}
    poller = select.poll()
    for descriptor in (listener.fileno(), tests):
        poller.register(descriptor, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready == tests:
                return
            if ready in running:
                pid, channel = running.pop(ready)
                poller.unregister(ready)
                os.close(ready)
                _answer(channel, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                channel.close()
                continue
            channel, _ = listener.accept()
            message, streams, *_ = socket.recv_fds(channel, LONGEST, 3)
            if not message:  # killed meanwhile
                channel.close()
                continue
            if (pid := os.fork()) == 0:
                _become(streams, **json.loads(message))
            for descriptor in streams:
                os.close(descriptor)
            handle = os.pidfd_open(pid)
            running[handle] = pid, channel
            poller.register(handle, select.POLLIN)
            _answer(channel, pid)


def _answer(channel: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # its client has ended, or does not wait
        channel.send(str(number).encode())


def _become(
    streams: list[int],
    home: str,
    argv: list[str],
    environment: dict[str, str],
    arm: dict[str, Any] | None = None,
    *,
    detached: bool = False,
) -> NoReturn:
    """Becomes the program. `streams`: output and errors, after the input if there is one."""
    code: object = 1
    try:
        for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *streams][-3:]):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if detached:
            os.setsid()
        os.chdir(home)
        os.environ.clear()
        os.environ.update(environment)
        module, words = _find_program(argv)
        sys.argv = ["batchscribe", *words]
        if arm is not None:
            crashing = importlib.import_module("support.crashing")
            crashing.arm(**arm) if arm else crashing.poll_often()
        code = importlib.import_module(module).main()
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as listener:
        detached.spawn = Nursery(listener.getsockname()).spawn
        tests = os.pidfd_open(os.getppid())
        _prepare()
        _serve(listener, tests)


if __name__ == "__main__":
    main()
