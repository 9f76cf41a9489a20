"""Brings the units to a box that let it work off its claim at boot, and power itself off."""

from __future__ import annotations

from importlib import resources
from string import Template

from batchscribe.adapters.host_access.installation import run_installer
from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble
from batchscribe.core.run.host import BOX_UNIT, DEADMAN_UNITS
from batchscribe.core.run.instances import Instance
from batchscribe.errors import LaunchError

_REFUSALS = {
    45: "no systemd runs there",
    46: "{user} may not become root by `sudo -n`",
    47: "its systemd refuses the units ({complaint})",
}
"""By the exit code of install.sh."""


def unit_files(user: str) -> dict[str, bytes]:
    """What is installed on a box whose workers run as `user`, and the script that does it."""
    folder = resources.files("batchscribe.deploy") / "box"
    files = {name: folder.joinpath(name).read_bytes() for name in (*DEADMAN_UNITS, "deadman", "install.sh")}
    unit = Template(folder.joinpath(BOX_UNIT).read_text()).substitute(user=user)
    return files | {BOX_UNIT: unit.encode()}


def install_units(ssh: Ssh, instance: Instance) -> str:
    """Installs the units. Empty where that was done, else why this box cannot have them.

    Raises LaunchError where it failed half way: it can be repeated.
    """
    reply = run_installer(ssh, instance, unit_files(ssh.options.user))
    if trouble := connection_trouble(reply, instance):
        raise trouble
    if reply.code == 0:
        return ""
    if reply.code in _REFUSALS:
        return _REFUSALS[reply.code].format(user=ssh.options.user, complaint=reply.complaint)
    raise LaunchError(f"the units could not be installed on {instance.id}: {reply.complaint}")
