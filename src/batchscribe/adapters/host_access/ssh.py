"""Runs the system's ssh, with host keys pinned to instance IDs.

The pins are in a file of their own. The address changes at every start, the ID does not: `HostKeyAlias` ties
the pin to the ID. The remote command consists of fixed words; all data goes through standard input.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchscribe.core.run.instances import Instance
from batchscribe.errors import (
    BatchscribeError,
    HostTimeoutError,
    LaunchError,
    MisconfiguredError,
    PortClosedError,
)

CONNECTION_FAILED = 255
"""Exit code of a failed connection; also of a remote command that ended with 255, or by a signal."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")
_CONNECTION = re.compile(r"ssh: connect to host \S+ port \d+: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """Connection options; times in seconds."""

    known_hosts: Path
    user: str = "ubuntu"
    port: int = 22
    key: Path | None = None
    """The private key; None: as chosen by ssh's agent and configuration."""
    host: str = "public"
    """The address of the instance: `public`, `private`, or the name of a tunnel or bastion."""
    connect_timeout: int = 10
    alive_interval: int = 2
    alive_count: int = 3
    program: str = "ssh"


@dataclass(frozen=True, slots=True)
class Reply:
    """Result of a remote command. `code` is None after a timeout."""

    code: int | None
    stdout: bytes
    stderr: str
    address: str = ""
    """Address and port of the host."""

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
    """Runs commands on an instance's GPU host, one connection for each."""

    def __init__(self, options: SshOptions) -> None:
        self.options = options

    def address(self, instance: Instance) -> str | None:
        """The present address of the instance; None if it has none."""
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
        """The ssh command line for `command`; without one, for a login.

        `pin` accepts an unknown host key into `known_hosts`; a changed key is always refused. Raises
        LaunchError if the instance has no address, MisconfiguredError for options that ssh would misread.
        """
        address = self.address(instance)
        if not address:
            raise LaunchError(f"{instance.id} has no {self.options.host} address: it is {instance.state}")
        words = {"GPU_SSH_HOST": address, "GPU_SSH_USER": self.options.user, "GPU_INSTANCE_ID": instance.id}
        for name, word in words.items():
            if not _PLAIN.fullmatch(word):
                raise MisconfiguredError(f"{name} is not a plain word: {word!r}")
        settings = self._list_settings(instance.id, known_hosts or self.options.known_hosts, pin=pin)
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
        """Runs `command` with `data` on standard input; `timeout` is in seconds.

        Any exception during the call, also one from a signal, ends ssh at once.
        """
        argv = self.argv(instance, command, known_hosts=known_hosts, pin=pin)
        place = f"{self.address(instance)}:{self.options.port}"
        try:
            done = subprocess.run(argv, input=data, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as late:
            return Reply(None, late.stdout or b"", (late.stderr or b"").decode(errors="replace"), place)
        except OSError as error:
            raise MisconfiguredError(
                f"{self.options.program} cannot be run ({error.strerror}): install the OpenSSH client"
            ) from error
        return Reply(done.returncode, done.stdout, done.stderr.decode(errors="replace"), place)

    def _list_settings(self, alias: str, known_hosts: Path, *, pin: bool) -> list[str]:
        options = self.options
        key = ["IdentitiesOnly=yes", f"IdentityFile={quote_path(options.key)}"] if options.key else []
        return [
            "BatchMode=yes",
            f"User={options.user}",
            f"HostKeyAlias={alias}",
            f"UserKnownHostsFile={quote_path(known_hosts)}",
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
            "LogLevel=INFO",
        ]


def quote_path(path: Path) -> str:
    """Quotes a path for ssh's configuration, which expands `%` and `${`."""
    text = str(path)
    if any(character in text for character in '"\n\r\\') or "${" in text:
        raise MisconfiguredError(f"ssh does not support the path {text!r}: move it")
    return '"' + text.replace("%", "%%") + '"'


def remote_words(*words: str) -> str:
    """Quotes words for the remote shell; keeps a leading `~/`."""
    return " ".join(
        "~/" + shlex.quote(word[2:]) if word.startswith("~/") else shlex.quote(word) for word in words
    )


def connection_trouble(reply: Reply, instance: Instance) -> BatchscribeError | None:
    """Error of a failed connection; None if ssh connected.

    A MisconfiguredError if a retry cannot help, else a LaunchError. A connection that broke later looks like
    a remote exit code of 255.
    """
    if reply.connected:
        return None
    return _explain_refused_login(reply, instance) or _explain_failed_connection(reply, instance)


def _explain_refused_login(reply: Reply, instance: Instance) -> MisconfiguredError | None:
    """Error of a refused login, with the setting or key to fix."""
    text = reply.stderr
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return MisconfiguredError(
            f"the host key of {instance.id} differs from the pinned one: the connection may be intercepted, "
            "or the instance was recreated. Compare the fingerprint in its console output, then run "
            "`batchscribe gpu setup --repin`"
        )
    if "host key is known for" in text or "Host key verification failed" in text:
        return MisconfiguredError(f"no host key is pinned for {instance.id}: run `batchscribe gpu setup`")
    if unread := _describe_key_problem(text):
        return MisconfiguredError(f"{instance.id} refuses the login: {unread}")
    if "Permission denied" in text:
        return MisconfiguredError(
            f"{instance.id} refuses the login ({reply.complaint}): check GPU_SSH_USER and GPU_SSH_KEY_PATH"
        )
    if "Bad configuration option" in text or "no argument after keyword" in text:
        return MisconfiguredError(f"ssh rejects its settings ({reply.complaint}): fix ~/.ssh/config")
    return None


def _explain_failed_connection(reply: Reply, instance: Instance) -> LaunchError:
    """Error of a failed connection, in ssh's words."""
    cause = _CONNECTION.sub("", reply.complaint)
    cause = f"ssh to {reply.address or instance.id}: {cause[:1].lower()}{cause[1:]}"
    if "Connection refused" in reply.stderr:
        return PortClosedError(cause)
    if reply.code is None or "timed out" in reply.stderr:
        return HostTimeoutError(cause)
    return LaunchError(cause)


def _describe_key_problem(text: str) -> str:
    """Problem of ssh's key file, with the fix; empty without one."""
    if found := re.search(r"Permissions \d+ for '(.+)' are too open", text):
        return f"{found[0]} (UNPROTECTED PRIVATE KEY FILE): chmod 600 {found[1]}"
    if found := re.search(r"no such identity: (.+): ", text):
        return f"no such identity: {found[1]}: correct GPU_SSH_KEY_PATH"
    return ""
