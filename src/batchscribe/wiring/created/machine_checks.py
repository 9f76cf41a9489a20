"""Checks of the settings from which runs create machines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

from batchscribe.controller.commands import fleet_checks as checks
from batchscribe.controller.commands.doctor import AccountReads, attempt, check_quota, to_failure
from batchscribe.core import keys
from batchscribe.core.decide.offers import Market
from batchscribe.core.decide.prices import describe_rate
from batchscribe.core.run.cloud_account import MachineTemplate, MachineType
from batchscribe.core.run.host import Finding, InstanceRecord, failed, passed
from batchscribe.errors import BatchscribeError, ObjectNotFoundError, UnreadableError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import read_if_valid, read_record
from batchscribe.settings import Settings
from batchscribe.wiring.seams import market_rate_of

IMAGE = "run `batchscribe gpu image`"


class MachineChecks:
    """Checks of a launch template, and of its machines' types and zones."""

    def __init__(self, settings: Settings, templates: checks.TemplateReads) -> None:
        self._settings = settings
        self._templates = templates

    def check_template(self) -> Iterator[Finding]:
        """Yields the findings about the template, then those about its zones."""
        try:
            yield from checks.check_template(self.template)
            yield from self._check_zones()
        except BatchscribeError as error:
            yield to_failure("template", error)

    def check_quotas(self, account: AccountReads, kind: MachineType) -> Iterator[Finding]:
        for market in self._settings.markets:
            yield attempt(
                "quota",
                partial(self._check_quota, account, kind, market),
                optional="servicequotas:GetServiceQuota",
            )

    def check_prices(self, clock: Clock) -> Finding:
        """Checks that each type has a price in each market."""
        rate_of, now = market_rate_of(self._settings, clock), clock.now()
        priced = (
            f"{name} {market} {describe_rate(rate_of(name, market, ''), now)}"
            for market in self._settings.markets
            for name in self._settings.instance_types
        )
        return passed("price", ", ".join(priced))

    def read_record(self, output: Store) -> InstanceRecord | Finding:
        """The record of the template's image; a finding without one.

        Raises what EC2 and the store raise.
        """
        image = self.template.image
        try:
            return read_record(output, keys.instance(image), InstanceRecord)
        except ObjectNotFoundError:
            copied = f"{IMAGE}, or for a copy in another region `batchscribe gpu image --made {image}`"
            return failed("image", f"{image} was not made by `batchscribe gpu image`", copied)
        except UnreadableError as error:
            return failed("image", f"the record of {image} is {error}", IMAGE)

    def find_record(self, output: Store) -> InstanceRecord | None:
        """The record of the template's image; None if it cannot be read.

        If EC2 does not show the template, the record of the last start. Raises what the store raises.
        """
        try:
            name = self.template.image
        except BatchscribeError:
            name = self._settings.host_record
        return read_if_valid(output, keys.instance(name), InstanceRecord)

    @cached_property
    def template(self) -> MachineTemplate:
        return self._templates.describe(self._settings.launch_template)

    def _check_zones(self) -> Iterator[Finding]:
        settings = self._settings
        if self.template.has_subnet and not settings.subnets:
            yield passed("zones", "the template names the subnet")
            return
        zones = self._templates.choose_subnets(settings.subnets)
        for name in settings.instance_types:
            yield checks.check_zones(name, self._templates.zones_with(name), zones)

    def _check_quota(self, account: AccountReads, kind: MachineType, market: Market) -> Finding:
        quota = account.quota(kind.name, market)
        return check_quota(quota, kind, self._settings.region, market, self._settings.max_machines)
