"""Starts workers through a remote host's agent: ssh starts only the agent."""

from __future__ import annotations

import msgspec

from batchscribe.adapters.host_access.client import HostClient
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, EndRequest, HostEnd, InstanceRecord, StartRequest
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, WorkerRef, digest
from batchscribe.errors import MisconfiguredError, TransientError
from batchscribe.protocols import Store
from batchscribe.reading import is_stored, read_optional


class AgentLauncher:
    """A protocols.Launcher for a remote host, through its agent.

    The claim in the instance's record decides who starts the agent. `store` holds the records of instances
    and runs; `timeout` (seconds) bounds each request to the host.
    """

    def __init__(self, store: Store, host: HostClient, *, timeout: float = 60.0) -> None:
        self._store = store
        self._host = host
        self._timeout = timeout

    def probe(self, instance: Instance) -> str:
        """The recorded version if ssh is not needed, else the host's."""
        record = self._read_record(instance)
        if record and record.claim and record.claim.launch is not ClaimLaunch.SSH:
            return record.release
        return self._host.ask(instance, "version", timeout=self._timeout).release

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:  # noqa: ARG002
        """Ensures that an agent processes the manifest, which it finds by run.

        An agent that starts at boot needs no request, and a claim on hold starts none.
        """
        record = self._read_record(instance)
        claim = record.claim if record and record.claim and record.claim.run == manifest.run else None
        if claim and claim.launch is not ClaimLaunch.SSH:
            return
        request = StartRequest(
            run=manifest.run,
            release=manifest.release,
            output=manifest.output,
            deadline=manifest.deadline,
            region=manifest.region,
            endpoint=manifest.endpoint,
            borrowed=claim is None,
            sha256=digest(manifest),
        )
        self._host.ask(instance, "start", msgspec.json.encode(request), timeout=self._timeout)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """False if exit record or agent shows the worker's end; else unknown."""
        try:
            if is_stored(self._store, keys.exit_record(worker.run, worker.worker)):
                return False
            end = read_optional(self._store, keys.host_end(worker.run, instance.id), HostEnd)
        except (TransientError, MisconfiguredError):
            return None
        return False if end and end.worker == worker.worker else None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        """Writes the request for the agent."""
        request = EndRequest(run=worker.run, worker=worker.worker, force=force)
        self._store.replace(keys.cancel(worker.run, worker.worker), msgspec.json.encode(request))

    def _read_record(self, instance: Instance) -> InstanceRecord | None:
        """Reads the instance's record; None if unreadable. Raises StoreUnavailableError."""
        try:
            return read_optional(self._store, keys.instance(instance.id), InstanceRecord)
        except MisconfiguredError:
            return None
