"""The system's ssh, with host keys pinned to the instance's id in a file of our own.

An address changes with every start, the id does not: `HostKeyAlias` makes the pin follow the id. The
remote command is made of fixed words; everything else travels on standard input.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchscribe.core.run.instances import Instance
from batchscribe.errors import BatchscribeError, LaunchError, MisconfiguredError

CONNECTION_FAILED = 255
"""ssh's own failure; also a remote command that ended with 255, or by a signal."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """How to reach the box; times in seconds."""

    known_hosts: Path
    user: str = "ubuntu"
    port: int = 22
    key: Path | None = None
    """The private key; None leaves the choice to ssh's agent and its own settings."""
    host: str = "public"
    """Which address of the instance: `public`, `private`, or the name of a tunnel or bastion."""
    connect_timeout: int = 10
    alive_interval: int = 2
    alive_count: int = 3
    program: str = "ssh"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back over one connection. `code` is None where the time ran out first."""

    code: int | None
    stdout: bytes
    stderr: str

    @property
    def connected(self) -> bool:
        return self.code is not None and 0 <= self.code < CONNECTION_FAILED

    @property
    def complaint(self) -> str:
        """The last line of its error output, without control characters."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        last = (
            lines[-1] if lines else ("no answer in time" if self.code is None else f"exit code {self.code}")
        )
        return "".join(character if character.isprintable() else "?" for character in last)[:300]


class Ssh:
    """Runs one fixed command at a time on the box of an instance."""

    def __init__(self, options: SshOptions) -> None:
        self.options = options

    def address(self, instance: Instance) -> str | None:
        """Where the instance is reached now; None while it has no such address."""
        match self.options.host:
            case "public":
                return instance.public_address
            case "private":
                return instance.private_address
            case name:
                return name

    def argv(
        self,
        instance: Instance,
        command: Sequence[str] = (),
        *,
        known_hosts: Path | None = None,
        pin: bool = False,
    ) -> list[str]:
        """The command line that runs `command` there; none is a login.

        `pin` accepts a host key that was never seen, into `known_hosts`; a changed key is refused in
        any case. Raises LaunchError where the instance has no address, MisconfiguredError for
        options that ssh would misread.
        """
        address = self.address(instance)
        if not address:
            raise LaunchError(f"{instance.id} has no {self.options.host} address: it is {instance.state}")
        words = {"GPU_SSH_HOST": address, "GPU_SSH_USER": self.options.user, "GPU_INSTANCE_ID": instance.id}
        for name, word in words.items():
            if not _PLAIN.fullmatch(word):
                raise MisconfiguredError(f"{name} is not a plain word: {word!r}")
        settings = self._settings(instance.id, known_hosts or self.options.known_hosts, pin=pin)
        flags = [flag for setting in settings for flag in ("-o", setting)]
        return [self.options.program, "-p", str(self.options.port), *flags, "--", address, *command]

    def run(
        self,
        instance: Instance,
        command: Sequence[str],
        data: bytes = b"",
        *,
        timeout: float,
        known_hosts: Path | None = None,
        pin: bool = False,
    ) -> Reply:
        """Runs `command` there with `data` on its standard input, for at most `timeout` seconds.

        Any exception that is raised meanwhile, a signal's too, ends ssh at once.
        """
        argv = self.argv(instance, command, known_hosts=known_hosts, pin=pin)
        try:
            done = subprocess.run(argv, input=data, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as late:
            return Reply(None, late.stdout or b"", (late.stderr or b"").decode(errors="replace"))
        except FileNotFoundError as error:
            raise MisconfiguredError(
                f"{self.options.program} is not installed: install the OpenSSH client"
            ) from error
        return Reply(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def _settings(self, alias: str, known_hosts: Path, *, pin: bool) -> list[str]:
        options = self.options
        key = ["IdentitiesOnly=yes", f"IdentityFile={quoted(options.key)}"] if options.key else []
        return [
            "BatchMode=yes",
            f"User={options.user}",
            f"HostKeyAlias={alias}",
            f"UserKnownHostsFile={quoted(known_hosts)}",
            "GlobalKnownHostsFile=/dev/null",
            f"StrictHostKeyChecking={'accept-new' if pin else 'yes'}",
            "UpdateHostKeys=no",
            "HashKnownHosts=no",
            "CheckHostIP=no",
            "VerifyHostKeyDNS=no",
            *key,
            f"ConnectTimeout={options.connect_timeout}",
            "ConnectionAttempts=1",
            f"ServerAliveInterval={options.alive_interval}",
            f"ServerAliveCountMax={options.alive_count}",
            "RemoteCommand=none",
            "ControlMaster=no",
            "ControlPath=none",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "LogLevel=ERROR",
        ]


def quoted(path: Path) -> str:
    """A path as ssh's configuration wants it: it splits at spaces, and expands `%` and `${`."""
    text = str(path)
    if any(character in text for character in '"\n\r\\') or "${" in text:
        raise MisconfiguredError(f"ssh cannot be told this path: {text!r}: move it")
    return '"' + text.replace("%", "%%") + '"'


def remote_words(*words: str) -> str:
    """Words as the remote shell reads them, each as it is; a leading `~/` stays its home."""
    return " ".join(
        "~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word) for word in words
    )


def connection_trouble(reply: Reply, instance: Instance) -> BatchscribeError | None:
    """What kept ssh from connecting: MisconfiguredError where waiting cannot help, else LaunchError.

    None where it did connect, or was cut off later, which cannot be told apart from a remote 255.
    """
    if reply.connected:
        return None
    text = reply.stderr
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return MisconfiguredError(
            f"the host key of {instance.id} is not the pinned one: somebody may be listening in, or the "
            "instance was made anew. Compare the fingerprint in its console output, then run "
            "`batchscribe gpu setup --repin`"
        )
    if "host key is known for" in text or "Host key verification failed" in text:
        return MisconfiguredError(f"no host key is pinned for {instance.id}: run `batchscribe gpu setup`")
    if "Permission denied" in text:
        return MisconfiguredError(
            f"{instance.id} does not let us in ({reply.complaint}): check GPU_SSH_USER and GPU_SSH_KEY_PATH"
        )
    if "Bad configuration option" in text or "no argument after keyword" in text:
        return MisconfiguredError(f"ssh refuses its settings ({reply.complaint}): mend ~/.ssh/config")
    return LaunchError(f"{instance.id} cannot be reached over ssh ({reply.complaint})")
