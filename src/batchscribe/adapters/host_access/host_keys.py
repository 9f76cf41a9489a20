"""Pins ssh keys of GPU hosts to instance IDs.

Compares them with the console output.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble
from batchscribe.core.run.instances import Instance
from batchscribe.detached import write_atomically
from batchscribe.errors import LaunchError, MisconfiguredError

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Pin:
    """The host key that is trusted for an instance."""

    fingerprint: str
    new: bool
    compared: bool
    """It was compared with a fingerprint from another channel."""


def find_pin(known_hosts: Path, instance: str) -> str | None:
    """The fingerprint that is pinned for the instance, or None."""
    if not known_hosts.exists():
        return None
    command = ("ssh-keygen", "-l", "-F", instance, "-f", str(known_hosts))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except OSError as error:
        raise MisconfiguredError(
            f"ssh-keygen cannot be run ({error.strerror}): install the OpenSSH client"
        ) from error
    found = _FINGERPRINT.search(done.stdout)
    return found[0] if found else None


def pin_key(
    ssh: Ssh, instance: Instance, *, trusted: frozenset[str] = frozenset(), repin: bool = False
) -> Pin:
    """Pins the instance's host key, unless one is pinned or `repin`.

    `trusted` are fingerprints from another channel; if there are any, the key must be one of them. Raises
    MisconfiguredError for an unexpected key (nothing is pinned), LaunchError if the host cannot be reached.
    """
    known_hosts = ssh.options.known_hosts
    before = find_pin(known_hosts, instance.id)
    if before and not repin:
        _check_connection(ssh, instance, known_hosts, accept=False)
        return Pin(before, new=False, compared=before in trusted)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "known_hosts"
        _check_connection(ssh, instance, draft, accept=True)
        fingerprint = find_pin(draft, instance.id)
        if fingerprint is None:
            raise LaunchError(f"{instance.id} presented no host key: nothing was pinned, try again")
        if trusted and fingerprint not in trusted:
            expected = " or ".join(sorted(trusted))
            raise MisconfiguredError(
                f"{instance.id} has the host key {fingerprint}, expected {expected}: "
                "nothing was pinned; the connection may be intercepted"
            )
        _replace_line(known_hosts, instance.id, draft.read_text())
    return Pin(fingerprint, new=True, compared=bool(trusted))


def _check_connection(ssh: Ssh, instance: Instance, known_hosts: Path, *, accept: bool) -> None:
    reply = ssh.run(instance, ["true"], timeout=_SECONDS, known_hosts=known_hosts, pin=accept)
    if failure := connection_trouble(reply, instance):
        raise failure


def _replace_line(known_hosts: Path, instance: str, line: str) -> None:
    """Replaces all lines of the instance by the new one."""
    before = known_hosts.read_text().splitlines() if known_hosts.exists() else []
    kept = [old for old in before if old.split(" ", 1)[0] != instance]
    write_atomically(known_hosts, "\n".join([*kept, line.strip(), ""]).encode())
