"""Command lines without the start of an interpreter: a process imports the program and forks each command.

The child has the given folder and environment, and its output goes to memory. `Desk.spawn` starts a real
interpreter instead.
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
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).parents[1]
ENGINES = str(Path(__file__).with_name("engines"))
"""In a PYTHONPATH, it gives a process the engine `scripted`."""
_LAZY = (
    "av",
    "batchscribe.wiring.scheduler",
    "batchscribe.wiring.gpu",
    "batchscribe.adapters.aws.ec2",
    "batchscribe.adapters.aws.eventbridge",
    "batchscribe.adapters.engines.pocketsphinx_engine",
    "batchscribe.adapters.local.compute",
    "batchscribe.adapters.local.launcher",
    "faster_whisper",
)
"""What commands import on use."""
LONGEST = 1 << 17
"""Bytes of a message between the two processes."""


@dataclass
class Forked:
    """A running command, with the methods of subprocess.Popen that tests need."""

    args: tuple[str, ...]
    pid: int
    _nursery: Nursery
    _output: tuple[int, int]
    returncode: int | None = None

    def poll(self) -> int | None:
        self._nursery.read(0)
        return self._ended()

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self._ended()) is None:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._nursery.read(left)
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
        for output in self._output:
            os.close(output)

    def _ended(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.codes.pop(self.pid, None)
        return self.returncode


@dataclass
class Nursery:
    """The tests' end of the process that forks."""

    channel: socket.socket
    codes: dict[int, int] = field(default_factory=dict)
    """Exit codes, or minus the signal, of ended commands by process."""
    _started: list[int] = field(default_factory=list)

    def start(
        self, home: Path, *words: str, environment: Mapping[str, str], arm: Mapping[str, Any] | None = None
    ) -> Forked:
        """Starts `batchscribe WORDS` in `home`. `arm`: arguments of support.crashing.arm, called before.

        An empty `arm` is support.crashing.poll_often."""
        asked = {"home": str(home), "words": words, "environment": dict(environment), "arm": arm}
        output = os.memfd_create("stdout"), os.memfd_create("stderr")
        socket.send_fds(self.channel, [json.dumps(asked).encode()], output)
        while not self._started:
            self.read(None)
        return Forked(words, self._started.pop(), self, output)

    def read(self, timeout: float | None) -> None:
        """Reads one message, if there is one within `timeout` seconds."""
        if select.select([self.channel], [], [], timeout)[0]:
            message = self.channel.recv(LONGEST)
            assert message, "the forking process has ended"
            pid, code = json.loads(message)
            if code is None:
                self._started.append(pid)
            else:
                self.codes[pid] = code


@cache
def nursery() -> Nursery:
    """The one of this test process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "support.forked"],
        stdin=theirs.fileno(),
        env=kept | {"PYTHONPATH": f"{TESTS}:{ENGINES}", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # commands of broken tests, too
        process.wait()

    atexit.register(end)
    return Nursery(ours)


@cache
def keep_tables() -> None:
    """Lets sessions of botocore share tables, methods of clients, and what is known of handlers."""
    from botocore import client, hooks, loaders

    modules: list[Any] = [client, hooks, loaders]
    clients, handlers, tables = modules
    creator = clients.ClientCreator
    create_methods, methods = creator._create_methods, dict[str, dict[str, Any]]()
    aliases, files, services = handlers.EventAliaser, tables.JSONFileLoader, tables.Loader
    list_services = services.list_available_services
    listed = cache(lambda paths, kind: list_services(services(extra_search_paths=[*paths]), kind))
    load = cache(files().load_file)
    renamed = cache(partial(aliases._alias_event_name, aliases(None)))
    handlers.accepts_kwargs = cache(handlers.accepts_kwargs)
    aliases._alias_event_name = lambda _each, name: renamed(name)

    def share_methods(each: Any, model: Any) -> dict[str, Any]:
        if model.service_name not in methods:
            methods[model.service_name] = create_methods(each, model)
        return dict(methods[model.service_name])

    creator._create_methods = share_methods
    files.load_file = lambda _each, path: load(path)
    services.list_available_services = lambda each, type_name: listed(tuple(each.search_paths), type_name)


def _prepare() -> None:
    """Imports what commands import, and parses the tables of their services, once for all of them."""
    import boto3

    from batchscribe.cli.main import COMMANDS

    for name in {row[0].partition(":")[0] for row in COMMANDS.values()}:
        importlib.import_module(f"batchscribe.cli.{name}")
    for name in _LAZY:
        importlib.import_module(name)
    keep_tables()
    session: Any = boto3.session.Session(aws_access_key_id="testing", aws_secret_access_key="testing")
    for name in ("ec2", "scheduler"):
        session.client(name, region_name="us-east-1")
    gc.freeze()


def _serve(channel: socket.socket) -> None:
    running: dict[int, int] = {}
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready in running:
                pid = running.pop(ready)
                poller.unregister(ready)
                os.close(ready)
                _answer(channel, pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            message, output, *_ = socket.recv_fds(channel, LONGEST, 2)
            if not message:
                return
            if (pid := os.fork()) == 0:
                _become(json.loads(message), output, [*running])
            for descriptor in output:
                os.close(descriptor)
            running[handle := os.pidfd_open(pid)] = pid
            poller.register(handle, select.POLLIN)
            _answer(channel, pid, None)


def _answer(channel: socket.socket, pid: int, code: int | None) -> None:
    try:
        channel.send(json.dumps([pid, code]).encode())
    except OSError:
        sys.exit()  # the tests have ended


def _become(asked: dict[str, Any], output: list[int], others: list[int]) -> NoReturn:
    """Becomes the command line."""
    code: object = 1
    try:
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), *output)):
            os.dup2(descriptor, number)
        for descriptor in (*output, *others):
            os.close(descriptor)
        os.chdir(asked["home"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["batchscribe", *asked["words"]]
        if asked["arm"] is not None:
            crashing = importlib.import_module("support.crashing")
            crashing.arm(**asked["arm"]) if asked["arm"] else crashing.poll_often()
        importlib.import_module("batchscribe.cli.main").main()
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    with socket.socket(fileno=os.dup(0)) as channel:
        _prepare()
        _serve(channel)


if __name__ == "__main__":
    main()
