"""`notify`: a test message to the configured receivers."""

from __future__ import annotations

import click

from batchscribe.cli.app import App, pass_app
from batchscribe.core.messages import Message
from batchscribe.errors import MisconfiguredError
from batchscribe.wiring.seams import open_notifier

TEST = Message(
    "batchscribe: test message", "Messages arrive. They are sent on completion, failure and timeout."
)


@click.command()
@click.option("--test", "test", is_flag=True, required=True, help="Send a test message.")
@pass_app
def notify(app: App, *, test: bool) -> int:  # noqa: ARG001  the option documents the act
    """Send a test message to all receivers.

    Exit code 1 if one did not accept it.
    """
    receivers = open_notifier(app.settings)
    results = receivers.deliver(TEST) + receivers.post("notify.test", {"text": TEST.body})
    if not results:
        raise MisconfiguredError(
            "no receiver is configured: set BATCH_NOTIFY_EMAIL, SLACK_WEBHOOK_URL, BATCH_NOTIFY_URLS or "
            "BATCH_WEBHOOK_URL"
        )
    for receiver, why in results:
        app.console.print(
            f"{'failed' if why else 'sent  '}  {receiver}{f': {why}' if why else ''}", markup=False
        )
    return int(any(why for _receiver, why in results))
