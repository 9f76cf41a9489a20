"""A real sshd on loopback: throw-away keys, its own configuration, and a home of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchscribe.adapters.host_access.ssh import SshOptions
from support.s3 import missing

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
# The usual exchange of keys (sntrup761) takes three quarters of a connection's processor time.
_CONFIG = """\
KexAlgorithms curve25519-sha256
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
SetEnv HOME={home} PATH={programs}:{path}
LogLevel ERROR
"""


@dataclass
class Sshd:
    """One running server. `home` is what a login finds as its home."""

    folder: Path
    port: int
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def host_key(self) -> str:
        """`TYPE KEY`, as a known_hosts line wants it."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        """`SHA256:…` of the host key."""
        shown = _run("ssh-keygen", "-l", "-f", str(self.folder / "host_key.pub"))
        return shown.split()[1]

    @property
    def programs(self) -> Path:
        """What its logins find before all other programs."""
        return self.folder / "programs"

    def options(self, known_hosts: Path, *, trusted: str | None = None) -> SshOptions:
        """How a client gets in. `trusted` is the id that the true host key is pinned for already."""
        if trusted:
            known_hosts.parent.mkdir(parents=True, exist_ok=True)
            known_hosts.write_text(f"{trusted} {self.host_key}\n")
        return SshOptions(
            known_hosts=known_hosts,
            user=getpass.getuser(),
            port=self.port,
            key=self.folder / "user_key",
            connect_timeout=15,
            alive_interval=1,
            alive_count=2,
        )

    def connections(self) -> list[int]:
        """The server's processes of single connections, without the listener."""
        return [pid for pid in _below(self.process.pid) if _name(pid).startswith("sshd")]

    def freeze(self) -> None:
        """The server stays, connections are taken by the kernel, and nobody ever says a word."""
        for pid in [self.process.pid, *self.connections()]:
            os.kill(pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Every connection breaks, and no new one is taken."""
        for pid in [*self.connections(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def program(path: Path, script: str) -> None:
    """A program that does what a shell script says."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_home(folder: Path) -> Path:
    """The keys of a server and of its one user, and that user's home."""
    home = folder / "home"
    home.mkdir(parents=True)
    # Whatever a test sets up there, it is not this machine's systemd.
    program(folder / "programs" / "systemctl", "echo offline; exit 1")
    for name in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name))
    return home


def configure(folder: Path, home: Path, *, path: str) -> tuple[Path, int]:
    """A configuration for sshd, and the port in it that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        _CONFIG.format(port=port, folder=folder, home=home, programs=folder / "programs", path=path)
    )
    return config, port


@contextmanager
def sshd(folder: Path, *, path: str | None = None) -> Iterator[Sshd]:
    """A server in `folder`; `path` is the PATH of its logins."""
    if not SSHD or not shutil.which("ssh"):
        missing("sshd")
    home = make_home(folder)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd separates its privileges
    server = _listening(folder, home, path or "/usr/local/bin:/usr/bin:/bin")
    try:
        yield server
    finally:
        server.kill()


def _listening(folder: Path, home: Path, path: str) -> Sshd:
    for _ in range(5):  # somebody else may take the port between our look and sshd's
        config, port = configure(folder, home, path=path)
        with (folder / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                [str(SSHD), "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log
            )
        if _answers(process, port):
            return Sshd(folder, port, home, process)
        process.kill()
        process.wait()
    raise AssertionError(f"sshd did not come up: {(folder / 'sshd.log').read_text()}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(200):
        if process.poll() is not None:
            return False
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        ):
            return connection.recv(4) == b"SSH-"
        time.sleep(0.05)
    return False


def _below(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or between, opening and reading
        return []
    return [each for child in children for each in (child, *_below(child))]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
