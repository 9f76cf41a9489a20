"""Discovery, checks and stacks behind `batchscribe init`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from batchscribe import __version__
from batchscribe.adapters.aws.prices import load_packaged_prices
from batchscribe.adapters.machine import files as machine_files
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.controller.commands.doctor import check_quota
from batchscribe.core.decide.prices import mark_age
from batchscribe.core.env_text import render_env
from batchscribe.core.messages import require_extra
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.original_settings import TakenOver, take_over
from batchscribe.core.run.cloud_account import FoundInstance
from batchscribe.core.setting_parsers import suggest_url
from batchscribe.env_file import read_env_file, write_env_file
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.protocols import Clock
from batchscribe.settings import DOTENV, KNOWN, Settings, load
from batchscribe.wiring.engine_choice import engine_spec
from batchscribe.wiring.engines import engine_factory
from batchscribe.wiring.seams import open_settings_store

if TYPE_CHECKING:
    from batchscribe.adapters.aws.account import AwsAccount
    from batchscribe.adapters.aws.stacks import Stacks

GUARD_STACK, WHOLE_STACK = "batchscribe-guard", "batchscribe"
PACKAGE = f"batchscribe[aws]=={__version__}"
GPU_TYPE = "g4dn.xlarge"
"""The template's default."""
_POLL = 5.0
"""Seconds between two polls of a stack."""
list_key_files = machine_files.list_key_files
check_key_file = machine_files.check_key_file


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """A stack that `init` offers to create."""

    name: str
    template: str
    """A file in batchscribe/deploy."""
    region: str
    parameters: Mapping[str, str]

    @property
    def command(self) -> str:
        """The same with AWS's command line."""
        given = [f"{name}={value}" for name, value in self.parameters.items()]
        words = ["aws", "cloudformation", "deploy", "--region", self.region, "--stack-name", self.name]
        words += ["--template-file", str(files("batchscribe.deploy") / self.template)]
        return shlex.join([*words, "--capabilities", "CAPABILITY_IAM", "--parameter-overrides", *given])

    @property
    def text(self) -> str:
        return (files("batchscribe.deploy") / self.template).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One AWS account in one region. Methods raise our errors."""

    region: str
    reads: AwsAccount
    stacks: Stacks
    clock: Clock

    def find_guard_role(self, instance: str) -> str:
        """ARN of a stack's stop role for this instance; empty without one."""
        for stack in self.stacks.list():
            guarded = {stack.parameters.get("InstanceId"), stack.outputs.get("InstanceId")}
            if stack.usable and instance in guarded and "RoleArn" in stack.outputs:
                return stack.outputs["RoleArn"]
        return ""

    def plan_guard(self, instance: str) -> StackPlan:
        parameters = {"InstanceId": instance, "MakeGroup": self._choose_group()}
        return StackPlan(name=GUARD_STACK, template="guard.yaml", region=self.region, parameters=parameters)

    def plan_whole(self, source: str, control: str, package: str) -> StackPlan:
        """The stack of the whole template; both URLs are in one bucket."""
        bucket, _, prefix = source.removeprefix("s3://").partition("/")
        parameters = {"Bucket": bucket, "Prefix": prefix, "MakeGroup": self._choose_group()}
        parameters |= {"ControlPrefix": control.removeprefix(f"s3://{bucket}/"), "Package": package}
        return StackPlan(
            name=WHOLE_STACK, template="batchscribe.yaml", region=self.region, parameters=parameters
        )

    def describe_quota(self, instance_type: str) -> str:
        """Compares the quota of the type's family with one instance."""
        try:
            kind = self.reads.machine_type(instance_type)
            found = check_quota(self.reads.quota(instance_type), kind, self.region)
        except BatchscribeError as error:
            return f"quota not checked: {error}"
        return f"quota: {found.detail}" + ("" if found.ok else f"; before you start: {found.fix}")

    def create(self, plan: StackPlan, report: Callable[[str], None]) -> Mapping[str, str]:
        """Creates a stack and returns its outputs; `report` gets polled statuses."""
        self.stacks.create(plan.name, plan.text, plan.parameters)
        while (made := self.stacks.describe(plan.name)).under_way:
            report(made.status)
            self.clock.sleep(_POLL)
        if not made.usable:
            cause = self.stacks.failure(plan.name)
            raise MisconfiguredError(
                f"the stack {plan.name} is {made.status} ({cause}): fix the cause, delete it with `aws "
                f"cloudformation delete-stack --region {self.region} --stack-name {plan.name}`, and try again"
            )
        return made.outputs

    def _choose_group(self) -> str:
        """MakeGroup of the templates: all stacks of a region share one group."""
        try:
            return "no" if self.reads.schedule_group() else "yes"
        except BatchscribeError:
            return "yes"


def open_account(region: str) -> Account:
    """The account of boto3's credentials; makes no request. Raises MisconfiguredError without boto3."""
    with require_extra("AWS needs its extra", "aws"):
        from batchscribe.adapters.aws.account import AwsAccount
        from batchscribe.adapters.aws.regions import default_region
        from batchscribe.adapters.aws.stacks import Stacks
    where = region or default_region() or "us-east-1"
    return Account(region=where, reads=AwsAccount(region=where), stacks=Stacks(where), clock=SystemClock())


def describe_region_problem(region: str) -> str:
    """Reason why boto3 refuses the region; empty without one or without boto3."""
    try:
        from batchscribe.adapters.aws.regions import describe_unknown_region
    except ImportError:
        return ""
    return describe_unknown_region(region)


def describe_price(instance: FoundInstance, region: str) -> str:
    """Price of an hour, with its age if old; empty if unknown."""
    rate = load_packaged_prices().find_rate(instance.type, region)
    return f"${rate.per_hour.dollars}/h{mark_age(rate.as_of, SystemClock().now())}" if rate else ""


def read_old_settings(path: Path) -> TakenOver:
    """Settings of the original scripts or another `.env`, each with a report.

    Raises MisconfiguredError if one that is taken over has an invalid value.
    """
    taken = take_over(read_env_file(path), KNOWN)
    read_answers(taken.values)
    return taken


def use_credentials(values: Mapping[str, str]) -> None:
    """Adds the AWS_* values to this process's environment."""
    aws = {name: text for name, text in values.items() if name.startswith("AWS_")}
    Settings(aws=aws, region=values.get("AWS_REGION", "")).apply_aws_environment()


def read_answers(values: Mapping[str, str]) -> Settings:
    """The settings of a `.env` with these values alone. Raises MisconfiguredError."""
    with TemporaryDirectory() as folder:
        write_env_file(Path(folder) / DOTENV, render_env(values))
        return load({}, folder=Path(folder))


def find_first_object(values: Mapping[str, str]) -> ObjectInfo | None:
    """The first object at BATCH_SOURCE; None without one. Raises our errors."""
    settings = read_answers(values)
    return next(iter(open_settings_store(settings, settings.source).list()), None)


def list_engine_problems(values: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """(model of the chosen engine, reasons why it cannot run here yet)."""
    spec = engine_spec(read_answers(values))
    return spec.model, tuple(engine_factory(spec.engine).problems(spec))


def make_absolute(text: str, home: Path) -> str:
    """A path from `home`; URLs, mistyped ones too, and empty texts stay."""
    return (
        text
        if not text or "://" in text or suggest_url(text)
        else os.path.normpath(home / Path(text).expanduser())
    )
