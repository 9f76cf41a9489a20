"""Regions by boto3's own tables; makes no request."""

from __future__ import annotations

import difflib

import boto3
from botocore.exceptions import BotoCoreError


def list_regions() -> tuple[str, ...]:
    """Regions with EC2, of all partitions; empty if AWS_PROFILE names no profile."""
    try:
        session = boto3.session.Session()
        partitions = session.get_available_partitions()
        return tuple(
            sorted(name for each in partitions for name in session.get_available_regions("ec2", each))
        )
    except BotoCoreError:
        return ()


def default_region() -> str:
    """boto3's default region, from environment or configuration; empty without one."""
    try:
        return boto3.session.Session().region_name or ""
    except BotoCoreError:
        return ""


def describe_unknown_region(region: str) -> str:
    """Describes a region that boto3 lacks, with similar names; else empty."""
    known = list_regions()
    if not known or region in {"", *known}:
        return ""
    near = " or ".join(difflib.get_close_matches(region, known, n=2)) or known[-1]
    return f"{region} is not a region of EC2: did you mean {near}?"
