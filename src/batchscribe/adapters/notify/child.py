"""The process that notifies one receiver: request in, failure out.

A reason is our text with a status code, never a vendor's text; it is empty if the message was accepted.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from contextlib import redirect_stdout
from email.message import EmailMessage
from io import StringIO
from typing import Any

import msgspec

from batchscribe.adapters.notify.receivers import Receiver
from batchscribe.adapters.notify.webhook import post_event

_STATUS = re.compile(r"error=(\d{3})\b")


class SendRequest(msgspec.Struct, frozen=True, kw_only=True):
    receiver: Receiver
    title: str
    body: str
    level: str
    event: str = ""
    """Id of an event."""
    at: int = 0
    """Time of an event, in Unix seconds."""


class _Status(logging.Handler):
    """Extracts the receiver's status code from a library's log; discards the rest."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.code = ""

    def emit(self, record: logging.LogRecord) -> None:
        if match := _STATUS.search(record.getMessage()):
            self.code = match[1]


def deliver(request: SendRequest) -> str:
    """Sends the message; returns the reason of a failure, else empty."""
    if request.receiver.webhook:
        return post_event(request.receiver.webhook, request.event, request.body, request.at)
    if request.receiver.sendmail:
        return _send_by_sendmail(request)
    return _send_by_apprise(request)


def _send_by_apprise(request: SendRequest) -> str:
    import apprise  # noqa: PLC0415  takes a quarter of a second

    status = _Status()
    logger = logging.getLogger("apprise")
    logger.handlers[:] = [status]
    logger.propagate = False
    # Send only the text: no pictures from apprise's site, no apprise files on this disk.
    asset = apprise.AppriseAsset(
        app_id="batchscribe", image_url_mask="", image_url_logo="", storage_mode="memory"
    )
    receiver = request.receiver
    place = apprise.Apprise.instantiate(receiver.mail or receiver.url, asset=asset, suppress_exceptions=True)
    if place is None:
        return "apprise does not support this URL"
    client = apprise.Apprise(place, asset=asset)
    if client.notify(**_build_content(request), notify_type=request.level, body_format="text"):
        return ""
    return f"it answered with status {status.code}" if status.code else "it refused, or could not be reached"


def _build_content(request: SendRequest) -> dict[str, Any]:
    title, body = request.title, request.body
    if request.receiver.escaped:
        title, body = (text.replace("<", "‹").replace(">", "›") for text in (title, body))
    if request.receiver.url.startswith(("json://", "jsons://")) and request.receiver.escaped:
        return {"title": "", "body": f"{title}\n{body}"}
    return {"title": title, "body": body}


def _send_by_sendmail(request: SendRequest) -> str:
    program, *recipients = request.receiver.sendmail
    if not program:
        return "no sendmail here: install a mail system, or set BATCH_SMTP_URL"
    mail = EmailMessage()
    mail["Subject"] = " ".join(request.title.split())
    mail["To"] = ", ".join(recipients)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(request.body)
    ended = subprocess.run(
        [program, "-i", "-t"],
        input=mail.as_bytes(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return f"sendmail failed with exit code {ended.returncode}" if ended.returncode else ""


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SendRequest)
    with redirect_stdout(StringIO()):
        failure = deliver(request)
    sys.stdout.buffer.write(msgspec.json.encode(failure))


if __name__ == "__main__":
    main()
