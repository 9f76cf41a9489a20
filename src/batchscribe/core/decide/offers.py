"""An offer: a way to get a machine, its price and speed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.packing import Priors


class Market(StrEnum):
    ON_DEMAND = "on-demand"
    SPOT = "spot"
    """Cheaper, and may be interrupted by the cloud at any time."""
    LOCAL = "local"
    """The machine of the scheduler itself."""
    LANE = "lane"
    """Its processor, beside a GPU elsewhere."""


LOCAL, EC2, FLEET, RAY = "local", "ec2", "fleet", "ray"
"""Providers: this machine (also its instance), an existing instance, EC2 Fleet, a Ray cluster."""
CPU = "cpu"
"""Instance type of this machine's processor, for reports and measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    provider: str
    instance_type: str
    """Empty if the provider knows no types and no poll showed one."""
    market: Market
    rate: Rate
    region: str = ""
    """A further region; empty for the run's own."""
    priors: Priors = field(default_factory=Priors)
    """Set-up time and speed of this type."""

    @property
    def name(self) -> str:
        """Identity at a provider, such as `g4dn.xlarge spot us-west-2`."""
        market = self.market if self.market is Market.SPOT else ""
        return " ".join(filter(None, (self.instance_type, market, self.region)))
