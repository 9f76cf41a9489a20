"""Builds the receivers of messages from the settings.

Only a receiver's label may be shown: webhook addresses are secrets.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

_SENDMAIL_PLACES = "/usr/sbin:/usr/lib:/usr/local/sbin"
"""Folders that the PATH of cron and many shells lacks."""


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver, by exactly one of `url`, `mail`, `webhook` and `sendmail`."""

    label: str
    url: str = ""
    """An apprise URL."""
    mail: dict[str, Any] | None = None
    """The parts of apprise's e-mail receiver, so that no password is quoted into a URL."""
    webhook: str = ""
    """A URL that gets events as JSON instead of messages; its fragment is the key of their signature."""
    sendmail: tuple[str, ...] = ()
    """The mail program and its recipients."""
    escaped: bool = False
    """Angle brackets are markup there (`<!channel>`), so they are replaced in texts."""


def build_receivers(
    *, urls: Sequence[str], email: Sequence[str], smtp_url: str, slack_webhook: str
) -> tuple[Receiver, ...]:
    """All receivers in the settings, in their order."""
    own = (*_build_mail_receiver(email, smtp_url), *_build_slack_receiver(slack_webhook))
    return (*own, *map(_build_apprise_receiver, urls))


def _build_apprise_receiver(url: str) -> Receiver:
    scheme = urlsplit(url).scheme.lower()
    return Receiver(label=scheme, url=url, escaped=scheme == "slack")


def _build_slack_receiver(webhook: str) -> Iterator[Receiver]:
    """Slack, or any other service that accepts Slack's `{"text": …}`."""
    if not webhook:
        return
    parts = urlsplit(webhook)
    if (parts.hostname or "").startswith("hooks.slack"):
        url = parts._replace(query="image=no&footer=no&timestamp=no", fragment="").geturl()
        yield Receiver(label="slack", url=url, escaped=True)
        return
    scheme = "jsons" if parts.scheme == "https" else "json"
    dropped = dict.fromkeys((":title", ":version", ":type", ":attachments"), "")
    own = [(f"-{name}", value) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
    query = urlencode([(":message", "text"), *dropped.items(), *own], safe=":", quote_via=quote)
    yield Receiver(label="slack", url=f"{scheme}://{parts.netloc}{parts.path}?{query}", escaped=True)


def _build_mail_receiver(email: Sequence[str], smtp_url: str) -> Iterator[Receiver]:
    if not email:
        return
    if smtp_url:
        yield Receiver(label="e-mail", mail=_build_smtp_parameters(email, smtp_url))
        return
    program = shutil.which("sendmail") or shutil.which("sendmail", path=_SENDMAIL_PLACES) or ""
    yield Receiver(label="e-mail", sendmail=(program, *email))


def _build_smtp_parameters(email: Sequence[str], smtp_url: str) -> dict[str, Any]:
    """Parameters of apprise's e-mail receiver; passwords go over TLS or loopback."""
    parts = urlsplit(smtp_url)
    options = dict(parse_qsl(parts.query))
    user, host = unquote(parts.username or ""), parts.hostname or ""
    mode = options.get("mode") or _choose_mode(parts.scheme, host, bool(parts.password))
    return {
        "schema": "mailto" if mode == "insecure" else "mailtos",
        "host": host,
        "port": parts.port or {"ssl": 465, "starttls": 587}.get(mode, 25),
        "user": user or None,
        "password": unquote(parts.password or "") or None,
        "smtp_host": host,
        "secure_mode": mode,
        "from_addr": options.get("from") or (user if "@" in user else email[0]),
        "targets": list(email),
        "format": "text",
    }


def _choose_mode(scheme: str, host: str, password: bool) -> str:
    if scheme == "smtps":
        return "ssl"
    return "starttls" if password and not _is_loopback(host) else "insecure"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
