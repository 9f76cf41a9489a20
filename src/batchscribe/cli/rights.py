"""`batchscribe iam-policy`: AWS rights of each role, from the settings."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import click
import msgspec

from batchscribe.cli.app import App, json_option, pass_app, print_json
from batchscribe.core.decide.offers import FLEET
from batchscribe.wiring.rights import make_documents, make_place

_FROM = {
    "ACCOUNT_ID": "the account's number: `aws sts get-caller-identity`, or as for GUARD_ROLE",
    "REGION": "set AWS_REGION",
    "INSTANCE_ID": "set GPU_INSTANCE_ID",
    "HOST_ROLE": "the role of the launch template's instance profile: the stack's output HostRoleArn",
    "GUARD_ROLE": "set BATCH_GUARD_ROLE_ARN, or that of GPU_FURTHER_REGIONS, to the role of the --template",
    "OWN_TYPE": "the instance's own type, restored after a run: set GPU_INSTANCE_TYPE",
    "BUCKET": "set BATCH_SOURCE=s3://…",
}
"""Sources of the values, by placeholder."""
_MEANT = {
    "scheduler": "for the account that runs `batchscribe tick`",
    "stop": "for the role that EventBridge stops the instance with (BATCH_GUARD_ROLE_ARN)",
    "box": "for the instance's own role",
}


def _check_keys(_context: click.Context, _option: click.Parameter, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses what a policy cannot name: an alias or a bare ID."""
    for key in keys:
        if not re.fullmatch(r"arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+", key):
            example = "arn:aws:kms:REGION:ACCOUNT:key/ID"
            raise click.BadParameter(
                f"{key!r} is not the ARN of a key ({example}): `aws kms describe-key --key-id {key}` shows it"
            )
    return keys


@click.command(name="iam-policy")
@click.option("--template", is_flag=True, help="Print the CloudFormation template instead, of the stop role.")
@click.option(
    "--kms-key",
    "kms_keys",
    metavar="ARN",
    multiple=True,
    callback=_check_keys,
    help="A KMS key that a bucket is encrypted with: adds the rights to use it. Can be repeated.",
)
@click.option("--prices", is_flag=True, help="Add the rights for `prices --refresh` to the scheduler's.")
@click.option("--role", type=click.Choice(list(_MEANT)), help="Print only this role.")
@json_option
@pass_app
def iam_policy(
    app: App,
    *,
    kms_keys: tuple[str, ...],
    role: str | None,
    prices: bool,
    template: bool,
    as_json: bool,
) -> None:
    """The least AWS rights of scheduler, stop role and GPU host."""
    if template:
        name = "fleet.yaml" if app.settings.provider == FLEET else "guard.yaml"
        click.echo((files("batchscribe.deploy") / name).read_text(encoding="utf-8"), nl=False)
        return
    place, *further = (
        replace(make_place(there), kms_keys=kms_keys, prices=prices) for there in app.settings.by_region()
    )
    documents = make_documents(place, further)
    if as_json:
        print_json(documents[role] if role else documents)
    else:
        for who in (role,) if role else documents:
            _print_role(who, documents[who])
    for name in dict.fromkeys(name for each in (place, *further) for name in each.missing):
        click.echo(f"{name} is unknown and stays a placeholder: {_FROM[name]}", err=True)


def _print_role(who: str, documents: dict[str, dict[str, object] | None]) -> None:
    click.echo(f"# {who}: {_MEANT[who]}")
    for name, document in documents.items():
        if document is not None:
            click.echo(f"# {name}\n{msgspec.json.format(msgspec.json.encode(document), indent=2).decode()}")
