"""Creates each machine of a run by EC2 Fleet, and terminates it.

A machine's id is the run's name for it, which is in its tag from its creation on. So the next poll finds a
machine whose reply was lost, and no ID of EC2 has to be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import structlog
from botocore.exceptions import ClientError

from batchscribe.adapters.aws.clients import AGAIN, Api, Meaning
from batchscribe.adapters.aws.ec2 import (
    CAPACITY,
    EC2_MEANINGS,
    NO_CAPACITY,
    QUOTA,
    choose_force,
    to_instance,
)
from batchscribe.adapters.aws.launch_templates import DEFAULT_VERSION, LaunchTemplates, name_template
from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG, Claim, Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    ObjectNotFoundError,
)

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

log = structlog.get_logger("batchscribe")

RateOf = Callable[[str, Market, str], Rate]
"""Rate of an instance type in a market and a zone (empty: the highest of all). Raises MisconfiguredError."""
_CAPACITY: Meaning = (CAPACITY[0], f"{CAPACITY[1]}, or regions in GPU_FURTHER_REGIONS")
_NO_LINKED_ROLE: Meaning = (
    MisconfiguredError,
    (
        "this account never used Spot or EC2 Fleet: nothing was started; run `aws iam "
        "create-service-linked-role --aws-service-name spot.amazonaws.com`, and again for "
        "ec2fleet.amazonaws.com"
    ),
)
_NO_SUCH_TEMPLATE: Meaning = (
    MisconfiguredError,
    "the launch template does not fit ({code}: {text}): fix it, or GPU_LAUNCH_TEMPLATE; nothing was started",
)
_FLEET_MEANINGS: dict[str, Meaning] = {
    **EC2_MEANINGS,
    **dict.fromkeys(
        (
            *NO_CAPACITY,
            "InvalidFleetConfiguration",  # a zone does not offer the type
            "SpotMaxPriceTooLow",
            "UnfulfillableCapacity",
        ),
        _CAPACITY,
    ),
    **dict.fromkeys(("MaxSpotInstanceCountExceeded", "MaxInstanceCountExceeded"), QUOTA),
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": _NO_LINKED_ROLE,
    **dict.fromkeys(
        (
            "InvalidAMIID.NotFound",
            "InvalidAMIID.Unavailable",
            "InvalidGroup.NotFound",
            "InvalidLaunchTemplateId.NotFound",
            "InvalidLaunchTemplateName.NotFoundException",
            "InvalidLaunchTemplateId.VersionNotFound",
            "LaunchTemplateNotFound",
        ),
        _NO_SUCH_TEMPLATE,
    ),
    # A request with this token was accepted, and its reply was lost: a poll shows what it created.
    "IdempotentParameterMismatch": AGAIN,
    # Seen by the poll before, so terminated meanwhile.
    "InvalidInstanceID.NotFound": AGAIN,
    "OperationNotPermitted": (
        MisconfiguredError,
        (
            "{right} on {subject} is not permitted: switch off termination protection "
            "(DisableApiTermination) in the launch template, and of this machine"
        ),
    ),
}
"""Meanings of EC2's error codes for machines that a run creates, with messages for the user."""
_TOWARDS_END = (
    InstanceState.RUNNING,
    InstanceState.PENDING,
    InstanceState.STOPPING,
    InstanceState.SHUTTING_DOWN,
    InstanceState.STOPPED,
    InstanceState.TERMINATED,
)
"""States of an instance; the ones that cost most first."""
_STRATEGIES: dict[Market, dict[str, dict[str, str]]] = {
    Market.SPOT: {"SpotOptions": {"AllocationStrategy": "price-capacity-optimized"}},
    Market.ON_DEMAND: {"OnDemandOptions": {"AllocationStrategy": "lowest-price"}},
}
LONGEST_TOKEN = 64


class FleetCapacity:
    """A protocols.Capacity of machines that each run creates from a launch template.

    `types` and `markets` are in order of preference: every type in the first market, then in the next.
    `subnets`: those to create machines in; empty: the template's, or one default subnet for each zone.
    `attempts` and `bounds` are those of a client: a call takes at most `attempts` times the sum of both
    timeouts, plus the backoff between attempts.
    """

    def __init__(
        self,
        *,
        provider: str,
        template: str,
        types: tuple[str, ...],
        markets: tuple[Market, ...],
        rate_of: RateOf,
        region: str | None,
        subnets: tuple[str, ...] = (),
        endpoint: str | None = None,
        attempts: int = 4,
        **bounds: Any,
    ) -> None:
        self._provider = provider
        self._named_template = name_template(template)
        self._types = types
        self._markets = markets
        self._rate_of = rate_of
        self._given_subnets = subnets
        self._api: Api[EC2Client] = Api(
            "ec2", region, _FLEET_MEANINGS, endpoint=endpoint, attempts=attempts, **bounds
        )
        self._templates = LaunchTemplates(lambda: self._api.client, region=region)
        self._read_template = cache(partial(self._templates.describe, template))

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        own = (seen.type, Market(seen.market)) if seen.type and seen.market else None
        listed = [(kind, market) for market, kind in product(self._markets, self._types)]
        if not own and not listed:
            raise MisconfiguredError("GPU_INSTANCE_TYPES is not set: list the types of the machines")
        first, *others = dict.fromkeys((*([own] if own else []), *listed))
        made = self._make_offer(*first, seen.zone if own else "")
        return (made, *self._make_other_offers(others))

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:
        if seen.state is not InstanceState.MISSING and not seen.state.proved_stopped:
            return True
        subject = " ".join(filter(None, (offer.instance_type, offer.market, offer.region)))
        request = self._make_request(claim, offer)
        with self._api.convert_errors("ec2:CreateFleet", subject):
            answer = self._api.client.create_fleet(**request)
        created = [row for row in answer.get("Instances", []) if row.get("InstanceIds")]
        if not created:
            raise self._find_cause(answer.get("Errors", []), subject)
        log.info(
            "machine.created", machine=claim.instance, instance=created[0]["InstanceIds"][0], offer=subject
        )
        return True

    def announce(self, instance: str, manifest: str) -> None:
        if not (ids := self._list_ids(instance)):
            raise ComputeUnavailableError(
                f"{instance} does not show in EC2 yet: its manifest was not announced; will poll again"
            )
        with self._api.convert_errors("ec2:CreateTags", instance):
            self._api.client.create_tags(Resources=ids, Tags=_to_rows({MANIFEST_TAG: manifest}))  # type: ignore[arg-type]

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        found = self._group_by_machine(instances)
        return tuple(
            _show(name, found[name]) if name in found else self._show_absent(name) for name in instances
        )

    def list_created(self) -> tuple[Instance, ...]:
        found = self._group_by_machine(())
        shown = [_show(name, rows) for name, rows in found.items()]
        return tuple(seen for seen in shown if seen.state is not InstanceState.TERMINATED)

    def teardown(self, instance: str, *, force: bool = False) -> None:
        if not (ids := self._list_ids(instance)):
            return
        how = choose_force(self._api.client, "TerminateInstances", force=force)
        with self._api.convert_errors("ec2:TerminateInstances", f"{instance} ({', '.join(ids)})"):
            self._api.client.terminate_instances(InstanceIds=ids, **how)

    def restore(self, instance: str, instance_type: str) -> None:
        """Does nothing: the machine ends with its run."""

    def release(self, instance: str) -> None:
        # One that is stopped, not terminated, would go on costing its disk.
        self.teardown(instance)

    def _make_other_offers(self, others: Iterable[tuple[str, Market]]) -> Iterator[Offer]:
        for instance_type, market in others:
            try:
                yield self._make_offer(instance_type, market)
            except MisconfiguredError as error:
                log.info("offer.skipped", instance_type=instance_type, market=market, error=str(error))

    def _make_offer(self, instance_type: str, market: Market, zone: str = "") -> Offer:
        return Offer(
            provider=self._provider,
            instance_type=instance_type,
            market=market,
            rate=self._rate_of(instance_type, market, zone),
        )

    def _make_request(self, claim: Claim, offer: Offer) -> dict[str, Any]:
        """The parameters of CreateFleet for one machine in one of the subnets.

        The token follows from machine and offer, so a repeated request creates no second machine.
        """
        specification = {**self._named_template, "Version": DEFAULT_VERSION}
        tags = {**claim.tags, MACHINE_TAG: claim.instance}
        return {
            "Type": "instant",
            "ClientToken": f"{claim.instance}-{offer.market}-{offer.instance_type}"[:LONGEST_TOKEN],
            "LaunchTemplateConfigs": [
                {
                    "LaunchTemplateSpecification": specification,
                    "Overrides": [
                        {"InstanceType": offer.instance_type, **place} for place in self._list_places()
                    ],
                }
            ],
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": 1,
                "DefaultTargetCapacityType": offer.market.value,
            },
            "TagSpecifications": [{"ResourceType": "instance", "Tags": _to_rows(tags)}],
            **_STRATEGIES[offer.market],
        }

    def _list_places(self) -> list[dict[str, str]]:
        if self._read_template().has_subnet and not self._given_subnets:
            return [{}]
        return [{"SubnetId": subnet} for subnet in self._subnets.values()]

    def _find_cause(self, errors: Iterable[Any], subject: str) -> BatchscribeError:
        """The error of a reply without a machine.

        Of its zones' errors, one that the user or a retry can resolve.
        """
        found = [self._convert_reply_error(row, subject) for row in errors]
        kind, text = _CAPACITY
        nothing = kind(text.format(subject=subject, code="no reason given"))
        # Missing capacity first: what one zone refuses for good, another may give later.
        return min(found, key=lambda error: not isinstance(error, kind), default=nothing)

    def _convert_reply_error(self, row: Mapping[str, Any], subject: str) -> BatchscribeError:
        code, text = row.get("ErrorCode", ""), row.get("ErrorMessage", "")
        try:
            # EC2 checks the rights of the launch itself, not only those of the fleet.
            with self._api.convert_errors("ec2:RunInstances", subject):
                raise ClientError({"Error": {"Code": code, "Message": text}}, "CreateFleet")
        except BatchscribeError as error:
            return error

    def _show_absent(self, name: str) -> Instance:
        """Absent machine: stopped if the template proves account and region, else missing."""
        try:
            self._read_template()
        except (MisconfiguredError, ObjectNotFoundError) as error:
            return Instance(id=name, state=InstanceState.MISSING, state_reason=str(error))
        return Instance(id=name, state=InstanceState.STOPPED)

    def _list_ids(self, name: str) -> list[str]:
        """IDs of the instances with this name that are not terminated."""
        rows = self._group_by_machine((name,)).get(name, [])
        return [row["InstanceId"] for row in rows if row["State"]["Name"] != InstanceState.TERMINATED]

    def _group_by_machine(self, names: tuple[str, ...]) -> dict[str, list[Any]]:
        """Instances by the machine in their tag; empty `names`: of all machines."""
        by_name = {"Name": f"tag:{MACHINE_TAG}", "Values": list(names)}
        filters: Any = [by_name if names else {"Name": "tag-key", "Values": [MACHINE_TAG]}]
        found: dict[str, list[Any]] = {}
        with self._api.convert_errors("ec2:DescribeInstances", ", ".join(names) or "all machines"):
            for page in self._api.client.get_paginator("describe_instances").paginate(Filters=filters):
                for row in (row for group in page["Reservations"] for row in group["Instances"]):
                    found.setdefault(to_instance(row).tags[MACHINE_TAG], []).append(row)
        return found

    @cached_property
    def _subnets(self) -> Mapping[str, str]:
        return self._templates.choose_subnets(self._given_subnets)


def _show(name: str, rows: list[Any]) -> Instance:
    """The machine as the instance shows it that is furthest from terminated."""
    seen, *others = sorted(map(_to_created, rows), key=lambda each: _TOWARDS_END.index(each.state))
    return replace(seen, id=name, beside=tuple(others))


def _to_created(row: Any) -> Instance:
    market = Market.SPOT if row.get("InstanceLifecycle") == Market.SPOT else Market.ON_DEMAND
    return replace(to_instance(row), market=market.value)


def _to_rows(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
