"""Posts events to a webhook, signed as Standard Webhooks (standardwebhooks.com) defines."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ssl
from collections.abc import Mapping
from threading import Event
from urllib.parse import urlsplit

ATTEMPTS = 3
TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = 0.5
_RETRIED = {408, 429}


def post_event(url: str, event: str, body: str, at: int) -> str:
    """Posts the event until accepted (2xx) or refused, at most ATTEMPTS times.

    `event` is its id: receivers drop a second event with the same one. Returns why it was not accepted, empty
    if it was. The URL's fragment is the key of the signature; it is never sent. Redirects are refused: they
    could lead a signed event elsewhere.
    """
    headers = {"content-type": "application/json", **sign_event(urlsplit(url).fragment, event, body, at)}
    why = ""
    for attempt in range(ATTEMPTS):
        Event().wait(attempt * BACKOFF_SECONDS)
        try:
            status = _post_once(url, body.encode(), headers)
        except (OSError, http.client.HTTPException):
            why = "it could not be reached"
            continue
        if 200 <= status < 300:
            return ""
        why = f"it answered with status {status}"
        if status < 500 and status not in _RETRIED:
            break
    return why


def event_id(kind: str, data: Mapping[str, object]) -> str:
    """Returns the same id for an event that is sent again."""
    parts = [kind, *(str(data.get(name, "")) for name in ("run", "session"))]
    return "evt_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def sign_event(secret: str, event: str, body: str, at: int) -> dict[str, str]:
    """Headers of an event, signed if there is a secret."""
    headers = {"webhook-id": event, "webhook-timestamp": str(at)}
    if secret:
        digest = hmac.new(secret.encode(), f"{event}.{at}.{body}".encode(), hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _post_once(url: str, body: bytes, headers: dict[str, str]) -> int:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    )
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()
