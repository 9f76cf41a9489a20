"""`batchscribe init`: writes a `.env`, with a question for each decision."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from batchscribe.cli.init_ec2 import Ec2Setup
from batchscribe.cli.terminal.interview import Interview, print_line
from batchscribe.core.decide.offers import EC2, LOCAL
from batchscribe.core.env_text import render_env
from batchscribe.env_file import refuse_existing_file, write_env_file
from batchscribe.errors import BatchscribeError
from batchscribe.settings import DOTENV
from batchscribe.wiring import init as wiring
from batchscribe.wiring.init import Account

CONTROL = "batchscribe-control"
"""Default prefix of control objects, in the bucket of the audio."""


@click.command()
@click.option("--yes", is_flag=True, help="Ask nothing: take every default; create nothing on AWS.")
@click.option(
    "--from",
    "old",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take over the settings of the original scripts, or of another .env.",
)
@click.option("--force", is_flag=True, help="Replace .env; the old one is kept as .env.old.")
@click.option("--source", default="", help="Source of the audio: s3://bucket/prefix, or a folder.")
@click.option("--instance", default="", help="ID of the EC2 instance with the GPU.")
@click.option("--region", default="", help="AWS region of the instance.")
@click.option("--key", default="", help="Private key file for ssh to the instance.")
def init(
    *, yes: bool, old: Path | None, force: bool, source: str, instance: str, region: str, key: str
) -> None:
    """Write a .env from what it finds, and from your answers.

    It finds buckets, GPU instances and keys. Nothing is installed, and nothing is created on AWS without a
    question. Exit code 2 if a setting that a start needs is missing.
    """
    path = Path.cwd() / DOTENV
    refuse_existing_file(path, force=force)
    given = {
        "BATCH_SOURCE": source,
        "GPU_INSTANCE_ID": instance,
        "AWS_REGION": region,
        "GPU_SSH_KEY_PATH": key,
    }
    interview = Interview(_take_over(old), given, home=path.parent, yes=yes)
    following = _set_up(interview)
    interview.refuse_missing()
    kept = write_env_file(path, render_env(interview.values), force=force)
    print_line(f"{path} is written, for you alone (0600)" + (f"; the old one is {kept}" if kept else ""))
    print_line("\n  ".join(["Next:", *following]))
    interview.refuse_unset(path)


def _take_over(old: Path | None) -> dict[str, str]:
    """Reports each setting of the old file; returns those that remain."""
    if old is None:
        return {}
    taken = wiring.read_old_settings(old)
    print_line("\n  ".join([f"From {old}:", *taken.lines]))
    return dict(taken.values)


def _set_up(interview: Interview) -> list[str]:
    """Asks all questions; returns the commands to run next."""
    wiring.use_credentials(interview.values)
    source = interview.peek("BATCH_SOURCE")
    account = _find_account(interview) if not source or source.startswith("s3://") else None
    _ask_for_places(interview, account)
    if _choose_provider(interview, account) == EC2:
        return Ec2Setup(interview, account).run()
    return _set_up_local(interview)


def _find_account(interview: Interview) -> Account | None:
    """The AWS account, if there are credentials that it accepts."""
    try:
        account = wiring.open_account(interview.peek("AWS_REGION"))
        print_line(f"AWS: {account.reads.caller().arn}")
    except BatchscribeError as error:
        print_line(f"AWS is not used: {error}")
        return None
    return account


def _ask_for_places(interview: Interview, account: Account | None) -> None:
    buckets = (account and interview.read("buckets", account.reads.buckets)) or ()
    if buckets:
        print_line(f"Buckets: {', '.join(buckets)}")
    source = interview.ask(
        "BATCH_SOURCE",
        "Where is the audio? (s3://bucket/prefix, or a folder)",
        f"s3://{buckets[0]}" if len(buckets) == 1 else "",
        check=partial(_check_source, interview),
        shape=interview.make_absolute,
    )
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    if source.startswith("s3://") and prefix:
        question = "Where do control objects go? (a prefix that uploaders of audio cannot write)"
        interview.ask("BATCH_CONTROL", question, f"s3://{bucket}/{CONTROL}")


def _check_source(interview: Interview, source: str) -> str:
    """Lists one object; an empty source is accepted."""
    found = wiring.find_first_object({**interview.values, "BATCH_SOURCE": source})
    print_line(f"  {source}: " + ("readable" if found else "nothing is there yet; check the prefix"))
    return ""


def _choose_provider(interview: Interview, account: Account | None) -> str:
    """Chooses EC2 or this machine; EC2 needs audio in S3."""
    named = interview.peek("GPU_INSTANCE_ID")
    if not interview.peek("BATCH_SOURCE").startswith("s3://") or not (account or named):
        interview.values["GPU_PROVIDER"] = LOCAL
    elif named:
        interview.values.setdefault("GPU_PROVIDER", EC2)
    else:
        question = "Transcribe on an EC2 instance, or on this machine? (ec2, local)"
        interview.ask("GPU_PROVIDER", question, EC2)
    return interview.values["GPU_PROVIDER"]


def _set_up_local(interview: Interview) -> list[str]:
    for name in ("GPU_INSTANCE_ID", "GPU_SSH_KEY_PATH"):
        interview.values.pop(name, None)
    model, problems = wiring.list_engine_problems(interview.values)
    for problem in problems:
        print_line(f"The engine cannot run here yet: {problem}")
    fetch = (
        f"batchscribe engines --fetch {model}   # downloads the model once; `engines` shows what is missing"
    )
    return [
        *([fetch] if problems else []),
        "batchscribe scan                       # what is there, by session",
        "batchscribe run                        # transcribe it now, on this machine",
    ]
