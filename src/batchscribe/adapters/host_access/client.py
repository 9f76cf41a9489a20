"""Sends requests to the GPU host of an instance, over ssh."""

from __future__ import annotations

from typing import Protocol

from batchscribe.adapters.host_access.ssh import Ssh, connection_trouble, remote_words
from batchscribe.core.run import host
from batchscribe.core.run.host import HostReply
from batchscribe.core.run.instances import Instance
from batchscribe.errors import LaunchError, MisconfiguredError

REMOTE_PYTHON = "~/.batchscribe/venv/bin/python"
NOT_INSTALLED = "no worker is installed on {id}: run `batchscribe gpu setup`"
_COMMAND_NOT_FOUND = {126, 127}


class HostClient(Protocol):
    """A client of the GPU host of an instance."""

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
        """The host's reply. Raises LaunchError if there is none, MisconfiguredError."""


class SshHost:
    """A client over ssh; `remote_python` has batchscribe installed on the host."""

    def __init__(self, ssh: Ssh, *, remote_python: str = REMOTE_PYTHON) -> None:
        self._ssh = ssh
        self._python = remote_python

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:
        command = remote_words(self._python, "-I", "-m", host.MODULE, word)
        reply = self._ssh.run(instance, [command], data, timeout=timeout)
        answer = host.decode_reply(reply.stdout)
        if answer is not None:
            return check_reply(answer, instance)
        if failure := connection_trouble(reply, instance):
            raise failure
        if reply.code in _COMMAND_NOT_FOUND or "No module named" in reply.stderr:
            raise MisconfiguredError(NOT_INSTALLED.format(id=instance.id))
        raise LaunchError(
            f"{instance.id} did not reply to {word!r} ({reply.complaint}): it may have been done"
        )


class SilentHost:
    """A client of a host that accepts no login.

    The host's agent starts at boot, and works through the store.
    """

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:  # noqa: ARG002
        raise LaunchError(
            f"{instance.id} has no claim to start at boot, and is not reached over ssh: it ends with its run"
        )


def check_reply(answer: HostReply, instance: Instance) -> HostReply:
    """Returns the reply, unless it is an error: that is raised."""
    if answer.box != host.VERSION:
        raise MisconfiguredError(
            f"the worker on {instance.id} (version {answer.release}) is not ours: run `batchscribe gpu setup`"
        )
    if answer.error:
        raise (MisconfiguredError if answer.permanent else LaunchError)(f"{instance.id}: {answer.error}")
    return answer
