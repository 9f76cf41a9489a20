"""Installs the units for a GPU host's boot and power-off."""

from __future__ import annotations

from importlib import resources
from string import Template

from batchscribe.adapters.host_access.installation import run_installer
from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble
from batchscribe.core.run.host import AGENT_UNIT, DEADMAN_UNITS
from batchscribe.core.run.instances import Instance
from batchscribe.errors import LaunchError

_REFUSALS = {
    45: "no systemd runs there",
    46: "{user} may not become root by `sudo -n`",
    47: "its systemd rejects the units ({complaint})",
}
"""By the exit code of install.sh."""


def unit_files(user: str) -> dict[str, bytes]:
    """The units for workers that run as `user`, and their install script."""
    folder = resources.files("batchscribe.deploy") / "box"
    files = {name: folder.joinpath(name).read_bytes() for name in (*DEADMAN_UNITS, "deadman", "install.sh")}
    unit = Template(folder.joinpath(AGENT_UNIT).read_text()).substitute(user=user)
    return files | {AGENT_UNIT: unit.encode()}


def install_units(ssh: Ssh, instance: Instance) -> str:
    """Installs the units; returns why the host refuses them, else empty.

    Raises LaunchError if it failed half-way; it can be repeated.
    """
    reply = run_installer(ssh, instance, unit_files(ssh.options.user))
    if failure := connection_trouble(reply, instance):
        raise failure
    if reply.code == 0:
        return ""
    if reply.code in _REFUSALS:
        return _REFUSALS[reply.code].format(user=ssh.options.user, complaint=reply.complaint)
    raise LaunchError(f"the units could not be installed on {instance.id}: {reply.complaint}")
