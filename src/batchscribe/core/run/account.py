"""Facts about a cloud account that a start depends on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Owner of the credentials, and the cloud's time of that answer."""

    account: str
    arn: str
    answered: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """An instance type. `gpus` describes its GPUs; empty if it has none."""

    name: str
    vcpus: int
    gpus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limit of running on-demand vCPUs for a family of types."""

    code: str
    vcpus: int
