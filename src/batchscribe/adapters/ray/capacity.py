"""Machines as detached actors of a Ray cluster, named after the machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import ray

from batchscribe.adapters.ray.cluster import NAMESPACE, RayCluster, convert_errors
from batchscribe.adapters.ray.machine import Description, RayMachine
from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MACHINE_TAG, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.errors import ComputeUnavailableError
from batchscribe.protocols import Clock

AUTOSCALED = "batchscribe.autoscaled"
"""Label of nodes that an autoscaler ends once they are idle."""
WORKER = ("-P", "-m", "batchscribe", "worker", "-")
MAX_RESTARTS = 3
"""A chunk that takes down its node must not take down others until the deadline."""
NO_NODE = "no node of the Ray cluster has a free GPU yet"
IDLE_NODE = "its work has ended; its node is up until the autoscaler's idle timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCapacity:
    """A protocols.Capacity that creates an actor with one GPU for each machine."""

    cluster: RayCluster
    clock: Clock
    rate_of: Callable[[str], Rate]
    """Returns the rate of one GPU of a node type. Raises MisconfiguredError if it is unknown."""
    node_type: str = ""
    """Only prices the nodes."""
    command: tuple[str, ...] = WORKER
    """Arguments of the node's Python that start a worker."""

    def offers(self, seen: Instance) -> tuple[Offer, ...]:  # noqa: ARG002  the protocol's signature
        rate = self.rate_of(self.node_type)
        return (Offer(provider="ray", instance_type=self.node_type, market=Market.ON_DEMAND, rate=rate),)

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:  # noqa: ARG002
        with convert_errors(f"the start of {claim.instance} is not confirmed", ComputeUnavailableError):
            self.cluster.connect()
            machine = ray.remote(RayMachine).options(
                name=claim.instance,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                num_gpus=1,
                max_restarts=MAX_RESTARTS,
            )
            machine.remote(claim, self.clock.now(), self.command)
        return True

    def announce(self, instance: str, manifest: str) -> None:
        """Does nothing: the worker gets the hash with its manifest's URL."""

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        with convert_errors("the Ray cluster could not be polled", ComputeUnavailableError):
            nodes = self.cluster.list_live_nodes()
            return tuple(self._poll_machine(name, nodes) for name in instances)

    def list_created(self) -> tuple[Instance, ...]:
        """Machines of any scheduler that have not ended."""
        with convert_errors("the Ray cluster could not be polled", ComputeUnavailableError):
            live = self.cluster.list_actors(("ray_namespace", "=", NAMESPACE), ("state", "!=", "DEAD"))
        return self.poll(tuple(actor.name for actor in live))

    def teardown(self, instance: str, *, force: bool = False) -> None:  # noqa: ARG002  it is always killed
        subject = f"the end of {instance} is not confirmed"
        with convert_errors(subject, ComputeUnavailableError), suppress(LookupError):
            ray.kill(self.cluster.find_machine(instance), no_restart=True)

    def restore(self, instance: str, instance_type: str) -> None:
        """Does nothing: the machine ends with its run."""

    def release(self, instance: str) -> None:
        """Does nothing: the machine ends with its run."""

    def _poll_machine(self, name: str, nodes: Mapping[str, Mapping[str, str]]) -> Instance:
        actors = self.cluster.list_actors(("name", "=", name), ("ray_namespace", "=", NAMESPACE))
        if not actors:
            return Instance(id=name, state=InstanceState.STOPPED)
        live = next((actor for actor in actors if actor.state != "DEAD"), None)
        if live:
            up = live.state in {"ALIVE", "RESTARTING"}
            state, reason = (InstanceState.RUNNING, "") if up else (InstanceState.PENDING, NO_NODE)
        elif any(self._holds_node(actor.node_id, nodes) for actor in actors):
            # Paid for until it is gone.
            state, reason = InstanceState.RUNNING, IDLE_NODE
        else:
            state, reason = InstanceState.STOPPED, _explain_death(actors[0].death_cause)
        known = _read_description(live.repr_name) if live else None
        return Instance(
            id=name,
            state=state,
            state_reason=reason,
            type=self.node_type,
            market=Market.ON_DEMAND,
            tags={RUN_TAG: name.rpartition("-")[0], MACHINE_TAG: name} | (known.tags if known else {}),
            launched_at=known.launched_at if known else None,
            public_address=known.address if known else None,
        )

    def _holds_node(self, node: str | None, nodes: Mapping[str, Mapping[str, str]]) -> bool:
        """True if the node is autoscaled, up, and has no live actor."""
        if AUTOSCALED not in nodes.get(node or "", {}):
            return False
        return not self.cluster.list_actors(("node_id", "=", str(node)), ("state", "=", "ALIVE"))


def _read_description(text: str | None) -> Description | None:
    """Decodes a machine's description; None until it ran or if foreign."""
    try:
        return msgspec.json.decode(text or "", type=Description)
    except msgspec.MsgspecError:
        return None


def _explain_death(cause: Mapping[str, Mapping[str, Any]] | None) -> str:
    """First line of Ray's reason; empty without one."""
    texts = [str(context.get("error_message", "")) for context in (cause or {}).values()]
    return "".join(texts).strip().partition("\n")[0]
