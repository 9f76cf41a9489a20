"""Host keys of boxes: pinned once to the instance's id, compared with what its console printed."""

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
    """It was compared with a fingerprint that did not come over the same wire."""


def pinned(known_hosts: Path, instance: str) -> str | None:
    """The fingerprint that is pinned for the instance, or None."""
    if not known_hosts.exists():
        return None
    done = subprocess.run(
        ("ssh-keygen", "-l", "-F", instance, "-f", str(known_hosts)),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    found = _FINGERPRINT.search(done.stdout)
    return found[0] if found else None


def pin(ssh: Ssh, instance: Instance, *, trusted: frozenset[str] = frozenset(), repin: bool = False) -> Pin:
    """Pins the box's host key, unless one is pinned already and `repin` was not asked for.

    `trusted` are fingerprints known from elsewhere; where there are any, the key must be one of them.
    Raises MisconfiguredError for a key that is not the expected one (nothing is pinned then),
    LaunchError where the box cannot be reached.
    """
    known_hosts = ssh.options.known_hosts
    before = pinned(known_hosts, instance.id)
    if before and not repin:
        _connect(ssh, instance, known_hosts, accept=False)
        return Pin(before, new=False, compared=before in trusted)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "known_hosts"
        _connect(ssh, instance, draft, accept=True)
        fingerprint = pinned(draft, instance.id)
        if fingerprint is None:
            raise LaunchError(f"{instance.id} showed no host key: nothing was pinned, try again")
        if trusted and fingerprint not in trusted:
            expected = " or ".join(sorted(trusted))
            raise MisconfiguredError(
                f"{instance.id} shows the host key {fingerprint}, expected was {expected}: "
                "nothing was pinned; somebody may be listening in"
            )
        _replace(known_hosts, instance.id, draft.read_text())
    return Pin(fingerprint, new=True, compared=bool(trusted))


def _connect(ssh: Ssh, instance: Instance, known_hosts: Path, *, accept: bool) -> None:
    reply = ssh.run(instance, ["true"], timeout=_SECONDS, known_hosts=known_hosts, pin=accept)
    trouble = connection_trouble(reply, instance)
    if trouble:
        raise trouble


def _replace(known_hosts: Path, instance: str, line: str) -> None:
    """Puts the new line in the place of all old ones for the instance."""
    before = known_hosts.read_text().splitlines() if known_hosts.exists() else []
    kept = [old for old in before if old.split(" ", 1)[0] != instance]
    write_atomically(known_hosts, "\n".join([*kept, line.strip(), ""]).encode())
