"""Checks of launch template and zones for machines that runs create."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from batchscribe.core.run.cloud_account import MachineTemplate
from batchscribe.core.run.host import Finding, failed, passed, warned

STACK = "create the stack that `batchscribe iam-policy --template` prints, or change the template as it does"


class TemplateReads(Protocol):
    """Facts of a launch template; see adapters/aws/launch_templates.py."""

    def describe(self, template: str) -> MachineTemplate: ...

    def choose_subnets(self, subnets: tuple[str, ...]) -> Mapping[str, str]: ...

    def zones_with(self, instance_type: str) -> frozenset[str]: ...


def check_template(found: MachineTemplate) -> Iterator[Finding]:
    """Checks that a machine of this template works, and leaves nothing behind."""
    name = f"{found.name or found.id}, version {found.version}"
    if not found.image:
        yield failed("template", f"{name} has no image", "set the one that `batchscribe gpu image` made")
    else:
        yield passed("template", f"{name}, image {found.image}")
    if found.shutdown == "terminate":
        yield passed("shutdown", "a machine terminates when it powers itself off")
    else:
        detail = f"a machine of {name} would {found.shutdown} when it powers itself off, and cost its disk"
        yield failed("shutdown", detail, STACK)
    if found.shows_tags:
        yield passed("metadata", "a machine reads its claim from its tags")
    else:
        detail = f"a machine of {name} does not show its tags in its metadata, so it finds no work"
        yield failed("metadata", detail, STACK)
    if not found.requires_tokens:
        yield warned("metadata", f"{name} answers without IMDSv2, too", STACK)
    if not found.profile:
        yield failed("role", f"{name} has no instance profile: a machine could read no audio", STACK)


def check_zones(instance_type: str, offered: Collection[str], zones: Collection[str]) -> Finding:
    """Checks that a subnet's zone, of `zones`, offers the type."""
    fitting = sorted(set(zones) & set(offered))
    if fitting:
        return passed("zones", f"{instance_type} in {', '.join(fitting)}")
    detail = (
        f"no subnet is in a zone with {instance_type}: {', '.join(sorted(offered)) or 'no zone offers it'}"
    )
    return failed("zones", detail, "set GPU_SUBNETS to subnets there, or other GPU_INSTANCE_TYPES")
