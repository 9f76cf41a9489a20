"""Machines of a run as detached actors of a Ray cluster, which starts and ends their nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from batchscribe.adapters.ray.cluster import NAMESPACE, RayCluster, convert_errors
from batchscribe.adapters.ray.machine import WORKER_COMMAND, RayMachine
from batchscribe.core.decide.offers import Offer
from batchscribe.core.run.instances import MACHINE_TAG, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.errors import ComputeUnavailableError
from batchscribe.protocols import Clock

AUTOSCALED = "batchscribe.autoscaled"
"""Label of nodes that an autoscaler ends once they are idle."""
MAX_RESTARTS = 3
"""A chunk that takes down its node must not take down one after the other until the deadline."""
NO_NODE = "no node of the Ray cluster has a free GPU yet"
IDLE_NODE = "its work has ended; its node is up until the autoscaler's idle timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCapacity:
    """A protocols.Capacity that creates an actor for each machine, which is named as the machine."""

    cluster: RayCluster
    clock: Clock
    offer: Offer
    command: Sequence[str] = WORKER_COMMAND
    """Starts a worker on the machine's node."""

    def offers(self, seen: Instance) -> tuple[Offer, ...]:  # noqa: ARG002  the protocol's signature
        return (self.offer,)

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
            machine.remote(claim, self.clock.now(), tuple(self.command))
        return True

    def announce(self, instance: str, manifest: str) -> None:
        """Does nothing: the worker gets the hash with its manifest's URL."""

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        with convert_errors("the Ray cluster could not be polled", ComputeUnavailableError):
            nodes = self.cluster.list_live_nodes()
            return tuple(self._poll_machine(name, nodes) for name in instances)

    def teardown(self, instance: str, *, force: bool = False) -> None:  # noqa: ARG002  it is always killed
        with convert_errors(f"the end of {instance} is not confirmed", ComputeUnavailableError):
            machine = self.cluster.find_machine(instance)
            if machine is not None:
                ray.kill(machine, no_restart=True)

    def restore(self, instance: str, instance_type: str) -> None:
        """Does nothing: the machine ends with its run."""

    def release(self, instance: str) -> None:
        """Does nothing: the machine ends with its run."""

    def _poll_machine(self, name: str, nodes: Mapping[str, Mapping[str, str]]) -> Instance:
        actor, seen = self.cluster.read_actor(name), self._make_instance(name)
        if actor is None:
            return seen
        if actor.state == "DEAD":
            if self._holds_node(actor.node_id, nodes):
                # Paid for until it is gone.
                return replace(seen, state=InstanceState.RUNNING, tags=_tag(name), state_reason=IDLE_NODE)
            return replace(seen, state_reason=_explain_death(actor.death_cause or {}))
        if actor.state not in {"ALIVE", "RESTARTING"}:
            return replace(seen, state=InstanceState.PENDING, tags=_tag(name), state_reason=NO_NODE)
        return self._read_claim(replace(seen, state=InstanceState.RUNNING, tags=_tag(name)))

    def _make_instance(self, name: str) -> Instance:
        return Instance(id=name, state=InstanceState.STOPPED, type=self.offer.instance_type)

    def _read_claim(self, seen: Instance) -> Instance:
        """Adds what only the actor knows; unchanged while Ray restarts it on another node."""
        machine = self.cluster.find_machine(seen.id)
        try:
            claim, launched_at, address = self.cluster.call(machine.describe)
        except (AttributeError, ActorUnavailableError):
            return seen
        tags = seen.tags | claim.tags
        return replace(seen, tags=tags, launched_at=launched_at, public_address=address)

    def _holds_node(self, node: str | None, nodes: Mapping[str, Mapping[str, str]]) -> bool:
        """True if the actor's node is autoscaled, still up, and used by no other actor."""
        return node in nodes and AUTOSCALED in nodes[node] and not self.cluster.has_live_actor(node)


def _tag(machine: str) -> dict[str, str]:
    return {RUN_TAG: machine.rpartition("-")[0], MACHINE_TAG: machine}


def _explain_death(cause: Mapping[str, Any]) -> str:
    """First line of Ray's reason; empty without one."""
    for context in cause.values():
        text = context.get("error_message") or context.get("formatted_exception_string") or ""
        return str(text).strip().partition("\n")[0]
    return ""
