"""Connection to a Ray cluster, with converted errors."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import ray
from ray._private import worker as driver
from ray.exceptions import RayError
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from batchscribe.errors import BatchscribeError, MisconfiguredError, first_line

NAMESPACE = "batchscribe"
CALL_SECONDS = 10.0
"""Longest wait for an actor's reply: its methods return at once."""


class RayCluster:
    """A cluster, connected at first use; `address` as `ray.init` takes it."""

    api: ClassVar = ""
    """URL of the API that lists actors; one connection is that of the whole process."""

    def __init__(self, address: str) -> None:
        self._address = address

    def connect(self) -> None:
        """Connects this process, once. Raises OSError, and what Ray raises."""
        if not ray.is_initialized():
            host, _, port = self._address.removeprefix("ray://").rpartition(":")
            if host:  # Ray itself gives up after minutes
                socket.create_connection((host, int(port)), timeout=CALL_SECONDS).close()
            # Ray prints errors of its nodes to standard output, which has the command's result.
            driver.print_to_stdstream = lambda *_arguments, **_named: None
            context = ray.init(
                self._address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False
            )
            RayCluster.api = f"http://{context.dashboard_url}"

    def find_machine(self, name: str) -> Any:
        """Handle of the live actor of this name. Raises LookupError without one."""
        self.connect()
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError as error:
            raise LookupError(f"{name} has ended: it has no actor in the Ray cluster") from error

    def call(self, name: str, method: str, *arguments: object, **named: object) -> Any:
        """Calls a method of a live actor. Raises LookupError, Ray's errors."""
        machine = self.find_machine(name)
        return ray.get(getattr(machine, method).remote(*arguments, **named), timeout=CALL_SECONDS)

    def list_actors(self, *filters: tuple[str, str, str]) -> list[Any]:
        """Ray's records of actors in all namespaces, the dead ones among them."""
        self.connect()
        found: list[Any] = list_actors(self.api, filters=list(filters), limit=10_000, detail=True)
        return found

    def list_live_nodes(self) -> dict[str, dict[str, str]]:
        """Labels of each live node, by its ID."""
        self.connect()
        return {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def convert_errors(subject: str, kind: type[BatchscribeError]) -> Iterator[None]:
    """Raises `kind` for Ray's errors, and MisconfiguredError for different versions."""
    try:
        yield
    except ConnectionError as error:
        hint = "if it is up, check its address, and the token in RAY_AUTH_TOKEN_PATH"
        raise kind(f"{subject}: {first_line(error)}; {hint}") from error
    except (RayError, RayStateApiException, OSError, RuntimeError, LookupError, ValueError) as error:
        text = first_line(error)
        if "ersion mismatch" in str(error):
            raise MisconfiguredError(f"{text}: install the cluster's versions of Ray and Python") from error
        raise kind(f"{subject}: {text}") from error
