"""Checks of every precondition of a run, on seams and values only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Protocol

from batchscribe.controller.commands.rehearsal import decode_proofs, describe_proof
from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.offers import Market
from batchscribe.core.decide.prices import describe_rate
from batchscribe.core.keys import CONTROL
from batchscribe.core.near_names import suggest
from batchscribe.core.run.cloud_account import (
    Caller,
    MachineType,
    PortAccess,
    Quota,
    aws_command,
    keep_at_shutdown,
)
from batchscribe.core.run.host import Finding, failed, passed, warned
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.other_scheduler import FIX, OtherScheduler
from batchscribe.core.run.runs import Run
from batchscribe.errors import (
    BatchscribeError,
    CredentialsError,
    MisconfiguredError,
    MissingCredentialsError,
    MissingRightError,
    ObjectNotFoundError,
    TransientError,
)
from batchscribe.protocols import Store

PROBE = f"{CONTROL}doctor-"
"""Prefix of objects that test create-only writes; each is deleted at once."""
SKEW_WARNING, SKEW_FAILURE = timedelta(seconds=60), timedelta(seconds=300)
"""S3 refuses requests that are 15 minutes off; deadlines need more precision."""
SET_UP = "run `batchscribe gpu setup --start`"
RIGHTS = "grant it: `batchscribe iam-policy` prints the rights"
IDENTITY = "`aws sts get-caller-identity` shows whose credentials apply"
PUBLIC_ADDRESS, PRIVATE_ADDRESS = (
    "curl -s https://checkip.amazonaws.com",
    "hostname -I | xargs -n1 | head -n1",
)
"""Shell commands that print this machine's address as the GPU host sees it."""
GONE = {InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN}


class AccountReads(Protocol):
    """Facts of a cloud account; see adapters/aws/account.py."""

    def caller(self) -> Caller: ...

    def machine_type(self, name: str) -> MachineType: ...

    def quota(self, instance_type: str, market: Market = ...) -> Quota: ...

    def port_access(self, instance: str, port: int) -> PortAccess: ...

    def schedule_group(self) -> str: ...


def attempt(what: str, check: Callable[[], Finding], *, optional: str = "") -> Finding:
    """Returns the check's finding; an error becomes a failure.

    `optional` is a right that no start needs. Without it, or without its subject, the check is skipped.
    """
    try:
        return check()
    except MissingRightError as error:
        return (
            warned(what, f"not checked: {optional} is not allowed", RIGHTS)
            if optional
            else to_failure(what, error)
        )
    except ObjectNotFoundError as error:
        return warned(what, f"not checked: {error}") if optional else to_failure(what, error)
    except BatchscribeError as error:
        return to_failure(what, error)


def to_failure(what: str, error: BatchscribeError) -> Finding:
    """Returns the failure of a check that raised, with its fix."""
    match error:
        case MissingRightError():
            fix = RIGHTS
        case MissingCredentialsError() | CredentialsError():
            fix = IDENTITY
        case TransientError():
            fix = "check the network, and try again"
        case _:
            fix = ""
    return failed(what, str(error), fix)


def check_clock(caller: Caller, now: datetime) -> Finding:
    """Compares this machine's clock with the cloud's."""
    if caller.answered is None:
        return warned("clock", "not checked: the answer has no date")
    off = abs(now - caller.answered)
    detail = f"{off.total_seconds():.0f} s off the cloud's"
    fix = "set it: `timedatectl set-ntp true`"
    if off > SKEW_FAILURE:
        return failed("clock", detail, fix)
    return warned("clock", detail, fix) if off > SKEW_WARNING else passed("clock", detail)


def check_source(source: Store, find_beside: Callable[[], Sequence[str]]) -> Finding:
    """Lists one page of audio; names URLs beside an empty prefix."""
    first = next(iter(source.list()), None)
    if first and first.key.startswith(CONTROL):
        first = next(iter(source.list(after=f"{CONTROL.removesuffix('/')}0")), None)  # "0" follows "/"
    if first:
        return passed("audio", f"{source.url} can be listed; its first object is {first.key!r}")
    beside = find_beside()
    meant = suggest(PurePosixPath(source.url).name, [PurePosixPath(url).name for url in beside])
    found = f"; audio is under {', '.join(beside)}" if beside else ""
    return warned(
        "audio", f"nothing is under {source.url}{found}", f"{meant}correct BATCH_SOURCE, or upload audio"
    )


def check_create_only(output: Store, name: str) -> Finding:
    """Writes an object twice: the second write must be refused."""
    key = f"{PROBE}{name}"
    made = output.create(key, b"1")
    try:
        replaced = output.create(key, b"2")
    except BatchscribeError:
        with suppress(BatchscribeError):
            output.delete(key)
        raise
    output.delete(key)
    if not made or replaced:
        detail = f"{output.url} ignores the condition of create-only writes: transcripts could be overwritten"
        return failed("create-only", detail, "use a store with conditional writes (If-None-Match)")
    return passed("create-only", "a second write of the same object is refused")


def check_instance(seen: Instance, absence: str) -> Finding:
    """Checks that the instance exists; `absence` is the message for that."""
    if seen.state is InstanceState.MISSING:
        raise MisconfiguredError(absence)
    detail = f"{seen.id} is {seen.state}"
    if seen.state in GONE:
        return failed("instance", detail, "correct GPU_INSTANCE_ID")
    return passed("instance", detail)


def check_type(found: MachineType, *, needs_gpu: bool) -> Finding:
    """Checks that the type has a GPU, if the engine needs one."""
    detail = f"{found.name}, {found.vcpus} vCPUs, {found.gpus or 'no GPU'}"
    if found.gpus or not needs_gpu:
        return passed("type", detail)
    return failed("type", detail, "use an instance with an NVIDIA GPU, such as g4dn.xlarge")


def check_price(instance_types: Iterable[str], rate_of: Callable[[str], Rate], now: datetime) -> Finding:
    """Checks that every type has a price; without one nothing is started."""
    priced = (f"{name} {describe_rate(rate_of(name), now)}".strip() for name in instance_types)
    return passed("price", ", ".join(priced))


def check_shutdown(instance: str, behaviour: str, region: str) -> Finding:
    """Checks that an instance that powers itself off is not terminated."""
    if behaviour == "stop":
        return passed("shutdown", "it stops when it powers itself off")
    if not behaviour:
        return warned("shutdown", "not checked: the cloud did not report its behaviour")
    detail = f"it would {behaviour} when it powers itself off"
    return failed("shutdown", detail, keep_at_shutdown(instance, region))


def check_quota(
    quota: Quota, found: MachineType, region: str, market: Market = Market.ON_DEMAND, machines: int = 1
) -> Finding:
    """Compares the account's limit of vCPUs with the machines of a run."""
    needed = found.vcpus * machines
    detail = f"{quota.vcpus} vCPUs may run {market}, {machines} x {found.name} have {needed}"
    if quota.vcpus >= needed:
        return passed("quota", detail)
    words = ("--service-code", "ec2", "--quota-code", quota.code, "--desired-value", str(needed))
    fix = aws_command(region, "service-quotas", "request-service-quota-increase", *words)
    grade = failed if quota.vcpus < found.vcpus else warned
    return grade("quota", detail, fix)


def check_schedule_group(state: str) -> Finding:
    """Checks the group of stop orders; without one, `state` is empty."""
    if state == "ACTIVE":
        return passed("stop orders", "their schedule group is active")
    detail = f"their schedule group is {state.lower() or 'missing'}: no order can be armed"
    return failed("stop orders", detail, "create the stack that `batchscribe iam-policy --template` prints")


def check_last_armed(runs: Iterable[Run]) -> Finding:
    """Reports the last guarded run: only that proves the guard's role."""
    guarded = [run for run in runs if run.started and run.guard not in {"", "off"}]
    if not guarded:
        return warned("armed", "never yet for a run: the first start by a tick shows that it works")
    return passed("armed", f"for run {guarded[-1].id}, {guarded[-1].created:%Y-%m-%d %H:%M} UTC")


def check_port(access: PortAccess, port: int, region: str, own: str, *, needed: bool) -> Finding:
    """Checks that a security group admits ssh; `own` prints this machine's address."""
    if access.sources:
        return passed("ssh port", f"{port} is open to {', '.join(access.sources)}")
    detail = f"no security group of the instance admits TCP on {port}"
    if not needed:
        return passed("ssh port", f"{detail}: not needed, it boots")
    if not access.groups:
        return failed("ssh port", "the instance has no security group", "attach one that admits ssh")
    words = ("--group-id", access.groups[0], "--protocol", "tcp", "--port", str(port))
    fix = aws_command(region, "ec2", "authorize-security-group-ingress", *words, "--cidr", f'"$({own})/32"')
    return failed("ssh port", detail, fix)


def check_schedule(text: str) -> Finding:
    """Grades the description of what starts the next tick."""
    if text.startswith("none") or "no watchdog" in text:
        detail, _, fix = text.partition(": ")
        return warned("timer", "no timer runs ticks in this folder" if detail == "none" else detail, fix)
    if text.startswith("unknown") or "inactive" in text or "failed" in text:
        return warned("timer", text, "`systemctl list-timers 'batch-transcribe*'`")
    return passed("timer", text)


def check_receivers(labels: tuple[str, ...]) -> Finding:
    if labels:
        return passed("receivers", ", ".join(labels))
    detail = "none: failures are only in the log"
    return warned("receivers", detail, "set BATCH_NOTIFY_EMAIL, SLACK_WEBHOOK_URL or BATCH_NOTIFY_URLS")


def check_proofs(facts: Mapping[str, str]) -> Iterator[Finding]:
    """Grades the last rehearsal of each act."""
    found = decode_proofs(facts)
    if not found:
        detail = "never on this account"
        yield warned("rehearsal", detail, "`batchscribe rehearse` proves the stop, for a few cents")
    for proof in found:
        text = f"{proof.at:%Y-%m-%d %H:%M} UTC: {describe_proof(proof)}"
        what = f"stop by {proof.act}"
        yield passed(what, text) if proof.proved else warned(what, text, "`batchscribe rehearse`")


def check_other_scheduler(other: OtherScheduler | None) -> Finding:
    """Warns about another scheduler of the source, by recorded runs."""
    if other is None:
        return passed("schedulers", "no run of another one on this source was noticed")
    return warned("schedulers", other.sentence, FIX)


def check_open_runs(runs: Iterable[Run], now: datetime) -> Iterator[Finding]:
    """Reports runs that are not settled, as failures past their deadlines."""
    for run in runs:
        if now >= run.deadline:
            detail = f"run {run.id} is {run.state} after its deadline"
            yield failed("open run", detail, "`batchscribe reconcile`")
        else:
            detail = f"run {run.id} is in progress until {run.deadline:%H:%M} UTC"
            yield warned("open run", detail, "`batchscribe status`")
