"""`batchscribe iam-policy`: AWS rights of each role, from the settings."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import click
import msgspec

from batchscribe.adapters.aws.iam import (
    ACCOUNT,
    BUCKET,
    INSTANCE,
    OWN_TYPE,
    REGION,
    ROLE,
    AccountPlace,
    Document,
    Folder,
    Who,
    policy,
    trust,
)
from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.settings import DEFAULT, Settings

_FROM = {
    ACCOUNT: "the account's number: set BATCH_GUARD_ROLE_ARN, or `aws sts get-caller-identity`",
    REGION: "set AWS_REGION",
    INSTANCE: "set GPU_INSTANCE_ID",
    ROLE: "set BATCH_GUARD_ROLE_ARN to the role that the --template makes",
    OWN_TYPE: "the instance's own type, restored after a run: set GPU_INSTANCE_TYPE",
    BUCKET: "set BATCH_SOURCE=s3://…",
}
_MEANT = {
    Who.SCHEDULER: "for the account that runs `batchscribe tick`",
    Who.STOP: "for the role that EventBridge stops the instance with (BATCH_GUARD_ROLE_ARN)",
    Who.BOX: "for the instance's own role",
}


@click.command(name="iam-policy")
@click.option("--template", is_flag=True, help="Print the CloudFormation template of the stop role instead.")
@click.option("--role", type=click.Choice([each.value for each in Who]), help="Print only this role.")
@json_option
@pass_app
def iam_policy(app: App, *, role: str | None, template: bool, as_json: bool) -> None:
    """The least AWS rights of scheduler, stop role and GPU host."""
    if template:
        click.echo((files("batchscribe.deploy") / "guard.yaml").read_text(encoding="utf-8"), nl=False)
        return
    place = place_of(app.settings)
    documents = {who: _documents(who, place) for who in Who if role in {None, who.value}}
    if as_json:
        print_json(documents[Who(role)] if role else documents)
    else:
        for who, parts in documents.items():
            _show(who, parts)
    for name in place.missing:
        click.echo(f"{name} is unknown and stays a placeholder: {_FROM[name]}", err=True)


def place_of(settings: Settings) -> AccountPlace:
    """Returns the locations from the settings, with placeholders for unknown ones."""
    role = settings.guard_role_arn
    place = AccountPlace(
        partition=role.split(":")[1] if role else _partition(settings.region),
        account=role.split(":")[4] if role else ACCOUNT,
        region=settings.region or REGION,
        instance=settings.instance_id or INSTANCE,
        source=_folder(settings.source),
        output=_folder(settings.output),
        control=_folder(settings.control) if settings.control else None,
        live_lock=_live_lock(settings),
        types=_types(settings),
    )
    unguarded = settings.cloud_guard == "off" and settings.origins["BATCH_CLOUD_GUARD"] != DEFAULT
    return place if unguarded else replace(place, guard_role=role or place.unknown_role)


def _types(settings: Settings) -> tuple[str, ...]:
    """Instance types that the scheduler may set; empty if it sets none."""
    if not settings.instance_types:
        return ()
    return tuple(dict.fromkeys((settings.instance_type or OWN_TYPE, *settings.instance_types)))


def _folder(url: str) -> Folder | None:
    """Parses an S3 URL; None for other stores, placeholder if empty."""
    scheme, _, rest = url.partition("://")
    if url and scheme != "s3":
        return None
    bucket, _, below = rest.partition("/")
    return Folder(bucket=bucket or BUCKET, prefix=f"{below.rstrip('/')}/" if below.rstrip("/") else "")


def _live_lock(settings: Settings) -> tuple[str, str] | None:
    root, key = settings.live_lock_key or ("", "")
    return (root.removeprefix("s3://"), key) if root.startswith("s3://") else None


def _partition(region: str) -> str:
    named = {"cn": "aws-cn", "us-gov": "aws-us-gov"}
    return next((name for start, name in named.items() if region.startswith(f"{start}-")), "aws")


def _documents(who: Who, place: AccountPlace) -> dict[str, Document | None]:
    return {"policy": policy(who, place), "trust": trust(who, place)}


def _show(who: Who, documents: dict[str, Document | None]) -> None:
    click.echo(f"# {who}: {_MEANT[who]}")
    for name, document in documents.items():
        if document is not None:
            click.echo(f"# {name}\n{msgspec.json.format(msgspec.json.encode(document), indent=2).decode()}")
