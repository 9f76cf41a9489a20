"""A Ray cluster: the connection of this process, its records of our actors, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from batchscribe.errors import BatchscribeError, CredentialsError, MisconfiguredError

NAMESPACE = "batchscribe"
"""Of the actors' names in the cluster."""
CALL_SECONDS = 10.0
"""Longest wait for a reply of an actor: its methods return at once."""
_MOST = 10_000


class RayCluster:
    """A cluster, connected at the first use. `address`: as `ray.init` takes it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def find_machine(self, name: str) -> Any:
        """Handle of the live actor of this name; None if there is none."""
        self.connect()
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # Ray's error for a name that no live actor has
            return None

    def call(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """Result of an actor's method. Raises what Ray raises, GetTimeoutError among it."""
        return ray.get(method.remote(*arguments, **named), timeout=CALL_SECONDS)

    def read_actor(self, name: str) -> Any:
        """Ray's last record of the actor of this name, live or dead; None if it never had one."""
        found = self._list_actors(("name", "=", name), ("ray_namespace", "=", NAMESPACE))
        return next((actor for actor in found if actor.state != "DEAD"), found[0] if found else None)

    def has_live_actor(self, node: str) -> bool:
        """True if an actor of any user is on the node."""
        return bool(self._list_actors(("node_id", "=", node), ("state", "=", "ALIVE")))

    def list_live_nodes(self) -> dict[str, dict[str, str]]:
        """Labels of the live nodes, by their IDs."""
        self.connect()
        return {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}

    def connect(self) -> None:
        if not ray.is_initialized():
            ray.init(self.address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)

    def _list_actors(self, *filters: tuple[str, str, str]) -> list[Any]:
        self.connect()
        return list_actors(self.address, filters=list(filters), limit=_MOST, detail=True)


@contextmanager
def convert_errors(subject: str, kind: type[BatchscribeError]) -> Iterator[None]:
    """Raises an error of `kind` for Ray's own; CredentialsError, MisconfiguredError if a user has to act."""
    try:
        yield
    except BatchscribeError:
        raise
    except AuthenticationError as error:
        raise CredentialsError(
            f"the Ray cluster rejects this machine's token ({_first_line(error)}): set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH; nothing was changed"
        ) from error
    except RuntimeError as error:
        if "ersion mismatch" in str(error):
            raise MisconfiguredError(f"{_first_line(error)}: install the cluster's Ray and Python here") from error
        raise kind(f"{subject}: {_first_line(error)}") from error
    except (RayError, RayStateApiException, OSError, ValueError) as error:
        raise kind(f"{subject}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
