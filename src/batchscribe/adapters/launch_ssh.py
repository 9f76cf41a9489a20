"""Starts workers on the box of an instance, over ssh; they outlive the connection."""

from __future__ import annotations

from typing import Protocol

import msgspec

from batchscribe.adapters.ssh import Reply, Ssh, connection_trouble, remote_words
from batchscribe.core import box
from batchscribe.core.box import BoxReply, EndRequest, StartRequest, WorkerName
from batchscribe.core.instances import Instance
from batchscribe.core.manifest import Manifest, WorkerRef
from batchscribe.errors import BatchscribeError, LaunchError, MisconfiguredError

REMOTE_PYTHON = "~/.batchscribe/venv/bin/python"
NOT_INSTALLED = "no worker is installed on {id}: run `batchscribe gpu setup`"
_COMMAND_NOT_FOUND = {126, 127}


class Asks(Protocol):
    """Something that puts a question to the box of an instance."""

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> BoxReply:
        """The box's last word. Raises LaunchError where there was none, MisconfiguredError."""


class SshBox:
    """Puts questions to the box over ssh. `remote_python` has batchscribe installed, over there."""

    def __init__(self, ssh: Ssh, *, remote_python: str = REMOTE_PYTHON) -> None:
        self._ssh = ssh
        self._python = remote_python

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> BoxReply:
        command = remote_words(self._python, "-I", "-m", box.MODULE, word)
        reply = self._ssh.run(instance, [command], data, timeout=timeout)
        answer = box.last_word(reply.stdout)
        if answer is None:
            raise _no_answer(reply, instance, word)
        return checked(answer, instance)


class SshLauncher:
    """A protocols.Launcher over ssh. `timeout` bounds each question, in seconds.

    `region` and `endpoint` are AWS's, for workers whose box does not name its own.
    """

    def __init__(self, asks: Asks, *, region: str = "", endpoint: str = "", timeout: float = 60.0) -> None:
        self._asks = asks
        self._region = region
        self._endpoint = endpoint
        self._timeout = timeout

    def probe(self, instance: Instance) -> str | None:
        try:
            return self._asks.ask(instance, "version", timeout=self._timeout).release
        except LaunchError:
            return None

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        request = StartRequest(
            run=manifest.run,
            worker=manifest.worker,
            url=url,
            release=manifest.release,
            region=self._region,
            endpoint=self._endpoint,
        )
        self._ask(instance, "start", request)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """None where the box gives no answer: what the store shows decides then."""
        try:
            return self._ask(instance, "alive", _name(worker)).done
        except (LaunchError, MisconfiguredError):
            return None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._ask(instance, "cancel", EndRequest(run=worker.run, worker=worker.worker, force=force))

    def _ask(self, instance: Instance, word: str, request: msgspec.Struct) -> BoxReply:
        return self._asks.ask(instance, word, msgspec.json.encode(request), timeout=self._timeout)


def _name(which: WorkerRef) -> WorkerName:
    return WorkerName(run=which.run, worker=which.worker)


def checked(answer: BoxReply, instance: Instance) -> BoxReply:
    """The answer, unless it is an error."""
    if answer.box != box.VERSION:
        raise MisconfiguredError(
            f"the worker on {instance.id} (version {answer.release}) is not ours: run `batchscribe gpu setup`"
        )
    if answer.error:
        raise (MisconfiguredError if answer.permanent else LaunchError)(f"{instance.id}: {answer.error}")
    return answer


def _no_answer(reply: Reply, instance: Instance, word: str) -> BatchscribeError:
    trouble = connection_trouble(reply, instance)
    if trouble:
        return trouble
    if reply.code in _COMMAND_NOT_FOUND or "No module named" in reply.stderr:
        return MisconfiguredError(NOT_INSTALLED.format(id=instance.id))
    return LaunchError(f"{instance.id} gave no answer to {word!r} ({reply.complaint}): it may have been done")
