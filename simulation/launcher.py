"""Access from the controller to a simulated GPU host over ssh."""

from __future__ import annotations

from batchscribe.core.run.host import HostReply, StartRequest
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import decode
from batchscribe.errors import HostTimeoutError, PortClosedError
from simulation.gate import Gate
from simulation.played_host import PlayedHost


class OverSsh:
    """A host_access.client.HostClient: answers `version` and `start` if the host can be reached."""

    def __init__(self, gpu_host: PlayedHost, gate: Gate, release: str) -> None:
        self._gpu_host = gpu_host
        self._gate = gate
        self._release = release

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:  # noqa: ARG002
        return self._gate.call(f"launcher.{word}", instance.id, lambda: self._answer(word, data))

    def _answer(self, word: str, data: bytes) -> HostReply:
        if not self._gpu_host.up:
            raise HostTimeoutError("the host does not answer")
        if not self._gpu_host.online:
            raise PortClosedError("the host refuses the connection")
        if word == "start":
            self._gpu_host.start(decode(data, StartRequest))
        return HostReply(release=self._release)
