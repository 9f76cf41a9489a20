"""AWS rights of each role, from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from batchscribe.adapters.aws.iam import (
    ACCOUNT,
    BUCKET,
    INSTANCE,
    OWN_TYPE,
    REGION,
    AccountPlace,
    Document,
    Folder,
    Who,
    make_policy,
    make_trust,
)
from batchscribe.core.decide.offers import FLEET
from batchscribe.settings import DEFAULT, Settings


def make_documents(
    place: AccountPlace, further: Sequence[AccountPlace] = ()
) -> dict[str, dict[str, Document | None]]:
    """Permissions and trust policy of each role; None without trust policy.

    The scheduler has one policy more for each further region, since one for all would exceed IAM's limit of
    6,144 characters. The other roles there are those of the region's stack.
    """
    documents: dict[str, dict[str, Document | None]] = {
        who.value: {"policy": make_policy(who, place), "trust": make_trust(who, place)} for who in Who
    }
    documents[Who.SCHEDULER] |= {
        f"policy {there.region}": _make_regional_policy(there, place) for there in further
    }
    return documents


def _make_regional_policy(place: AccountPlace, home: AccountPlace) -> Document:
    """The scheduler's further rights in another region, with its own host role."""
    policy = make_policy(Who.SCHEDULER, place)
    statements: Any = policy["Statement"]
    known: Any = make_policy(Who.SCHEDULER, home)["Statement"]
    own = [each for each in statements if each not in known or each["Resource"] == place.host_role]
    return {**policy, "Statement": own}


def make_place(settings: Settings) -> AccountPlace:
    """Returns the locations from the settings, with placeholders for unknown ones."""
    role, created = settings.guard_role_arn, settings.provider == FLEET
    # The ARN of a template has its ID.
    template = settings.launch_template if settings.launch_template.startswith("lt-") else "*"
    place = AccountPlace(
        partition=role.split(":")[1] if role else _find_partition(settings.region),
        account=role.split(":")[4] if role else ACCOUNT,
        region=settings.region or REGION,
        instance="*" if created else settings.instance_id or INSTANCE,
        source=_parse_folder(settings.source),
        output=_parse_folder(settings.output),
        control=_parse_folder(settings.control) if settings.control else None,
        state=_parse_folder(settings.state_url) if settings.state_url else None,
        live_lock=_parse_live_lock(settings),
        types=settings.instance_types if created else _list_types(settings),
        template=template if created else "",
    )
    unguarded = settings.cloud_guard == "off" and settings.origins["BATCH_CLOUD_GUARD"] != DEFAULT
    return place if unguarded else replace(place, guard_role=role or place.unknown_role)


def _list_types(settings: Settings) -> tuple[str, ...]:
    """Instance types that the scheduler may set; empty if it sets none."""
    if not settings.instance_types:
        return ()
    return tuple(dict.fromkeys((settings.instance_type or OWN_TYPE, *settings.instance_types)))


def _parse_folder(url: str) -> Folder | None:
    """Parses an S3 URL; None for other stores, placeholder if empty."""
    scheme, _, rest = url.partition("://")
    if url and scheme != "s3":
        return None
    bucket, _, below = rest.partition("/")
    return Folder(bucket=bucket or BUCKET, prefix=f"{below.rstrip('/')}/" if below.rstrip("/") else "")


def _parse_live_lock(settings: Settings) -> tuple[str, str] | None:
    root, key = settings.live_lock_key or ("", "")
    return (root.removeprefix("s3://"), key) if root.startswith("s3://") else None


def _find_partition(region: str) -> str:
    named = {"cn": "aws-cn", "us-gov": "aws-us-gov"}
    return next((name for start, name in named.items() if region.startswith(f"{start}-")), "aws")
