"""Least-privilege IAM policy documents for scheduler, stop role and GPU host.

Each statement names the instance by its ID, or created machines by their tag, and the stores by prefixes.
Nothing is denied, so existing permissions stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from batchscribe.adapters.aws.iam_fleet import Statement, allow, allow_creation, allow_termination
from batchscribe.adapters.aws.schedules import GROUP, name_prefix
from batchscribe.core.keys import ATTEMPTS, CONTROL, REHEARSALS, RUNS
from batchscribe.core.run.instances import DEADLINE_TAG, MANIFEST_TAG, RUN_TAG

ACCOUNT, REGION, INSTANCE, BUCKET = "ACCOUNT_ID", "REGION", "INSTANCE_ID", "BUCKET"
ROLE, HOST_ROLE, OWN_TYPE = "GUARD_ROLE", "HOST_ROLE", "OWN_TYPE"
"""Placeholders for values that the settings lack."""
SESSION_FILES = ("json", "srt", "vtt", "txt")
Document = dict[str, object]


class Who(StrEnum):
    SCHEDULER = "scheduler"
    """The user that runs `batchscribe tick`."""
    STOP = "stop"
    """The role with which EventBridge stops the instance."""
    BOX = "box"
    """The role of the instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A bucket and a key prefix, empty or ending in `/`."""

    bucket: str = BUCKET
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPlace:
    """The AWS resources that the policies name."""

    partition: str = "aws"
    account: str = ACCOUNT
    region: str = REGION
    instance: str = INSTANCE
    source: Folder | None = None
    output: Folder | None = None
    """None if it is not on S3."""
    control: Folder | None = None
    """None: below the output."""
    state: Folder | None = None
    """Place of the scheduler's state, for the scheduler alone; None if that is a folder on its host."""
    live_lock: tuple[str, str] | None = None
    """(bucket, key)."""
    guard_role: str = ""
    """ARN of the stop role; empty if there is no guard."""
    types: tuple[str, ...] = ()
    """The types that the instance may be changed to, and back to; or that machines are created with."""
    template: str = ""
    """ID of the launch template of created machines, `*` if only its name is known; empty without them."""
    prices: bool = False
    """Rights for `batchscribe prices --refresh`, too."""
    kms_keys: tuple[str, ...] = ()
    """ARNs of the keys that the buckets are encrypted with."""

    @property
    def ec2_arn(self) -> str:
        """Common prefix of the ARNs of EC2's resources."""
        return f"arn:{self.partition}:ec2:{self.region}:{self.account}:"

    @property
    def instance_arn(self) -> str:
        return f"{self.ec2_arn}instance/{self.instance}"

    @property
    def host_role(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{HOST_ROLE}"

    @property
    def unknown_role(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role/{ROLE}"

    @property
    def missing(self) -> tuple[str, ...]:
        """The placeholders that remain in the documents."""
        stores = (self.source, self.output, self.control, self.state)
        folders = tuple(folder for folder in stores if folder)
        role = self.guard_role.rpartition("/")[2]
        buckets = (folder.bucket for folder in folders)
        found = {self.account, self.region, self.instance, role, *self.types, *buckets}
        found |= {HOST_ROLE} if self.template else set()
        placeholders = (ACCOUNT, REGION, INSTANCE, ROLE, HOST_ROLE, OWN_TYPE, BUCKET)
        return tuple(name for name in placeholders if name in found)


def make_policy(who: Who, place: AccountPlace) -> Document:
    """The permissions policy of a role."""
    makers: dict[Who, tuple[Callable[[AccountPlace], list[Statement]], ...]] = {
        Who.SCHEDULER: (
            _allow_instance,
            _allow_type_change,
            _allow_guard,
            _allow_results,
            _allow_state,
            _allow_checks,
            _allow_prices,
        ),
        Who.STOP: (_allow_stop,),
        Who.BOX: (_allow_host,),
    }
    return {"Version": "2012-10-17", "Statement": [each for make in makers[who] for each in make(place)]}


def make_trust(who: Who, place: AccountPlace) -> Document | None:
    """The trust policy of a role; None for the scheduler.

    It trusts EventBridge for orders of our group, and EC2 for the GPU host. The scheduler may run anywhere.
    """
    if who is Who.SCHEDULER:
        return None
    principal = "scheduler.amazonaws.com" if who is Who.STOP else "ec2.amazonaws.com"
    statement: Statement = {
        "Effect": "Allow",
        "Principal": {"Service": principal},
        "Action": "sts:AssumeRole",
    }
    if who is Who.STOP:
        group = f"arn:{place.partition}:scheduler:{place.region}:{place.account}:schedule-group/{GROUP}"
        statement["Condition"] = {
            "StringEquals": {"aws:SourceAccount": place.account, "aws:SourceArn": group}
        }
    return {"Version": "2012-10-17", "Statement": [statement]}


def _allow_stop(place: AccountPlace) -> list[Statement]:
    if place.template:
        return allow_termination(place.ec2_arn)
    return [allow("StopTheInstance", "ec2:StopInstances", place.instance_arn)]


def _allow_host(place: AccountPlace) -> list[Statement]:
    records = [f"{where}{kind}*" for where in ("", f"{REHEARSALS}*/") for kind in (RUNS, ATTEMPTS)]
    texts = ("*transcription-*.json", "*speakers-*.json")
    written = [arn for at in (place.output, place.control) for arn in _arns_below(place, at, *texts)]
    written += _control_arns(place, *records)
    return [
        *_allow_listing(place),
        *_allow_if_any("ReadAudioAndManifests", "s3:GetObject", _all_store_arns(place)),
        *_allow_if_any("WriteTranscriptsAndProgress", "s3:PutObject", written),
        *_allow_keys(place),
    ]


def _allow_instance(place: AccountPlace) -> list[Statement]:
    if place.template:
        return allow_creation(
            place.ec2_arn,
            types=place.types,
            template=place.template,
            host_role=place.host_role,
            region="" if place.region == REGION else place.region,
        )
    see = allow("SeeInstances", "ec2:DescribeInstances", "*")
    if place.region != REGION:
        see["Condition"] = {"StringEquals": {"aws:RequestedRegion": place.region}}
    tags = allow("ClaimTheInstance", "ec2:CreateTags", place.instance_arn)
    tags["Condition"] = {"ForAllValues:StringEquals": {"aws:TagKeys": [RUN_TAG, DEADLINE_TAG, MANIFEST_TAG]}}
    acts = ["ec2:StartInstances", "ec2:StopInstances"]
    reads = ["ec2:DescribeInstanceAttribute", "ec2:GetConsoleOutput"]
    return [
        see,
        allow("StartAndStopTheInstance", acts, place.instance_arn),
        allow("LookAtTheInstance", reads, place.instance_arn),
        allow("ShowItsTags", "ec2:ModifyInstanceMetadataOptions", place.instance_arn),
        tags,
    ]


def _allow_type_change(place: AccountPlace) -> list[Statement]:
    if not place.types or place.template:
        return []
    change = allow("ChangeTypeWithoutCapacity", "ec2:ModifyInstanceAttribute", place.instance_arn)
    change["Condition"] = {"StringEquals": {"ec2:Attribute/InstanceType": list(place.types)}}
    return [change]


def _allow_guard(place: AccountPlace) -> list[Statement]:
    if not place.guard_role:
        return []
    schedules = f"arn:{place.partition}:scheduler:{place.region}:{place.account}:schedule/{GROUP}"
    acts = [f"scheduler:{act}Schedule" for act in ("Create", "Get", "Update", "Delete")]
    group = f"arn:{place.partition}:scheduler:{place.region}:{place.account}:schedule-group/{GROUP}"
    passing = allow("GiveTheStopRole", "iam:PassRole", place.guard_role)
    passing["Condition"] = {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}
    return [
        allow("GiveStopOrders", acts, f"{schedules}/{name_prefix(place.instance)}*"),
        allow("SeeStopOrders", "scheduler:ListSchedules", "*"),
        allow("SeeTheirGroup", "scheduler:GetScheduleGroup", group),
        passing,
    ]


def _allow_checks(place: AccountPlace) -> list[Statement]:
    """Reads of `doctor` and `gpu setup`, which skip checks without the right."""
    quotas = f"arn:{place.partition}:servicequotas:{place.region}:{place.account}:ec2/*"
    reads = [f"ec2:Describe{what}" for what in ("InstanceTypes", "SecurityGroups", "Volumes")]
    if place.template:
        reads = ["ec2:DescribeInstanceTypes"]
    reads.append("sts:GetCallerIdentity")
    return [
        allow("CheckTypePortAndIdentity", reads, "*"),
        allow("CheckQuota", "servicequotas:GetServiceQuota", quotas),
    ]


def _allow_prices(place: AccountPlace) -> list[Statement]:
    reads = ["pricing:GetProducts"] + ([] if place.template else ["ec2:DescribeSpotPriceHistory"])
    return [allow("ReadPrices", reads, "*")] if place.prices else []


def _allow_results(place: AccountPlace) -> list[Statement]:
    files = [f"*.{kind}" for kind in SESSION_FILES]
    read = _all_store_arns(place)
    if place.live_lock:
        bucket, key = place.live_lock
        read.append(f"arn:{place.partition}:s3:::{bucket}/{_escape_key(key)}")
    written = _arns_below(place, place.output, *files) + _control_arns(place, f"{CONTROL}*")
    old = ["*transcription-*.json", "*layers/layer-0-raw-transcription/*.json"]
    # Records of failures from before BATCH_CONTROL was set are retired at their old place.
    moved = _arns_below(place, place.source, *old) + _arns_below(place, place.output, *old, f"{CONTROL}*")
    moved += _control_arns(place, f"{CONTROL}*")
    return [
        *_allow_listing(place),
        *_allow_if_any("ReadAudioAndResults", "s3:GetObject", read),
        *_allow_if_any("WriteResults", "s3:PutObject", written),
        *_allow_if_any("RetireControlObjectsAndRedo", "s3:DeleteObject", moved),
        *_allow_keys(place),
    ]


def _allow_state(place: AccountPlace) -> list[Statement]:
    if place.state is None:
        return []
    (below,) = _arns_below(place, place.state, "*")
    listing = allow("ListState", "s3:ListBucket", f"arn:{place.partition}:s3:::{place.state.bucket}")
    if place.state.prefix:
        shown = f"{_escape_key(place.state.prefix)}*"
        listing["Condition"] = {"StringLikeIfExists": {"s3:prefix": [shown]}}
    acts = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    return [listing, allow("KeepState", acts, below)]


def _allow_keys(place: AccountPlace) -> list[Statement]:
    """Use of the buckets' own keys, through S3 alone."""
    if not place.kms_keys:
        return []
    use = allow("UseKeysOfBuckets", ["kms:Decrypt", "kms:GenerateDataKey"], list(place.kms_keys))
    use["Condition"] = {"StringLike": {"kms:ViaService": "s3.*"}}
    return [use]


def _allow_listing(place: AccountPlace) -> list[Statement]:
    """Right to list each bucket, limited to the stores' prefixes.

    Without it, S3 reports a missing object as 403. Such a request has no prefix, hence IfExists.
    """
    prefixes: dict[str, set[str]] = {}
    for folder in filter(None, (place.source, place.output, place.control)):
        prefixes.setdefault(folder.bucket, set()).add(folder.prefix)
    made = []
    for number, (bucket, wanted) in enumerate(sorted(prefixes.items())):
        statement = allow(f"List{number or ''}", "s3:ListBucket", f"arn:{place.partition}:s3:::{bucket}")
        if "" not in wanted:
            shown = [f"{_escape_key(text)}*" for text in sorted(wanted)]
            statement["Condition"] = {"StringLikeIfExists": {"s3:prefix": shown}}
        made.append(statement)
    return made


def _arns_below(place: AccountPlace, folder: Folder | None, *patterns: str) -> list[str]:
    if folder is None:
        return []
    base = f"arn:{place.partition}:s3:::{folder.bucket}/{_escape_key(folder.prefix)}"
    return [base + pattern for pattern in patterns]


def _all_store_arns(place: AccountPlace) -> list[str]:
    folders = (place.source, place.output, place.control)
    return [arn for folder in folders for arn in _arns_below(place, folder, "*")]


def _control_arns(place: AccountPlace, *patterns: str) -> list[str]:
    if place.control is None:
        return _arns_below(place, place.output, *patterns)
    return _arns_below(place, place.control, *(pattern.removeprefix(CONTROL) for pattern in patterns))


def _escape_key(key: str) -> str:
    """A key with IAM's wildcards and variables escaped."""
    return "".join(f"${{{character}}}" if character in "*?$" else character for character in key)


def _allow_if_any(sid: str, action: str, resources: list[str]) -> list[Statement]:
    return [allow(sid, action, sorted(set(resources)))] if resources else []
