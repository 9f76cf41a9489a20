"""Reads this EC2 instance's tags and interruption notice from IMDSv2."""

from __future__ import annotations

from functools import cache
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import msgspec

from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import ComputeUnavailableError

TIMEOUT = 5.0
"""Seconds; the service is on the instance's own host."""
LONGEST = 1024
"""Maximum bytes read of a response; a tag has at most 256 characters."""
SPOT = "spot"
_TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105  a header's name


class _InstanceAction(msgspec.Struct, frozen=True):
    """Interruption notice: `terminate`, `stop` or `hibernate`, 2 minutes ahead."""

    action: str
    time: str


def read_tag(name: str, endpoint: str) -> str | None:
    """Value of a tag; None if it is absent or not shown.

    Raises ComputeUnavailableError. No proxy is used: it would return another machine's tags.
    """
    return _read_metadata(f"tags/instance/{name}", endpoint)


def read_interruption(endpoint: str) -> str:
    """Reason why EC2 revokes this spot instance; empty if it does not.

    Raises ComputeUnavailableError. Rebalance recommendations are ignored: they announce a risk, not an end,
    and the notice leaves enough time to publish what is in the engine.
    """
    if _read_life_cycle(endpoint) != SPOT:
        return ""
    notice = _read_metadata("spot/instance-action", endpoint)
    if notice is None:
        return ""
    try:
        known = msgspec.json.decode(notice, type=_InstanceAction)
    except UNREADABLE:
        return "EC2 revokes this spot instance"
    return f"EC2 revokes this spot instance ({known.action} at {known.time})"


@cache
def _read_life_cycle(endpoint: str) -> str:
    """`spot` or `on-demand`, which never changes; empty if it is not shown."""
    return _read_metadata("instance-life-cycle", endpoint) or ""


def _read_metadata(path: str, endpoint: str) -> str | None:
    token = _send_request(endpoint, "PUT", "/latest/api/token", {f"{_TOKEN}-ttl-seconds": "60"})
    return _send_request(endpoint, "GET", f"/latest/meta-data/{path}", {_TOKEN: token or ""})


def _send_request(endpoint: str, method: str, path: str, headers: dict[str, str]) -> str | None:
    place = urlsplit(endpoint)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        text = reply.read(LONGEST).decode()
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        raise ComputeUnavailableError(
            f"the instance's metadata service did not answer ({type(error).__name__})"
        ) from error
    finally:
        connection.close()
    if reply.status not in {200, 404}:
        raise ComputeUnavailableError(f"the instance's metadata service answered {reply.status}")
    return text if reply.status == 200 else None
