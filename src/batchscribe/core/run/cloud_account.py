"""Facts about a cloud account, and the commands that correct them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Owner of the credentials, and the cloud's time of that answer."""

    account: str
    arn: str
    answered: datetime | None = None


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance with a GPU, as the account lists it."""

    id: str
    type: str
    state: str
    name: str
    """Its tag `Name`; empty if it has none."""
    key_name: str
    """The EC2 key pair it was created with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """An instance type. `gpus` describes its GPUs; empty if it has none."""

    name: str
    vcpus: int
    gpus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limit of running vCPUs for a family of types, in one market."""

    code: str
    vcpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortAccess:
    """Security groups of an instance, and sources that they admit."""

    groups: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTemplate:
    """The default version of a launch template, as runs need it."""

    id: str
    name: str = ""
    version: int = 1
    image: str = ""
    """Empty if it names none: no machine can be created from it."""
    shutdown: str = "stop"
    """Effect of a power-off by the machine itself: `stop` or `terminate`."""
    shows_tags: bool = False
    """True if a machine's metadata service shows its tags."""
    requires_tokens: bool = False
    """True if the metadata service answers to IMDSv2 alone."""
    has_subnet: bool = False
    """True if it names the subnet of machines."""
    profile: str = ""
    """ARN or name of the machines' instance profile; empty if they have no role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherRegion:
    """A region for machines if those before it have no capacity."""

    name: str
    template: str
    """ID or name of its launch template."""
    role: str = ""
    """ARN of the guard's role in it; empty if none is set."""
    subnets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.template, self.role, *self.subnets)))


def aws_command(region: str, *words: str) -> str:
    """A shell command with its region: AWS's tools read no `.env`."""
    return " ".join(["aws", *(("--region", region) if region else ()), *words])


def keep_at_shutdown(instance: str, region: str) -> str:
    """Command that makes an instance stop, not terminate, at its own power-off."""
    words = ("--instance-id", instance, "--instance-initiated-shutdown-behavior", "stop")
    return aws_command(region, "ec2", "modify-instance-attribute", *words)
