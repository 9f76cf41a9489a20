"""Reads the tags of this EC2 instance from its metadata service (IMDSv2)."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from batchscribe.errors import ComputeUnavailableError

TIMEOUT = 5.0
"""Seconds; the service is on the instance's own host."""
LONGEST = 1024
"""Maximum bytes read of a response; a tag has at most 256 characters."""
_TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105  a header's name


def read_tag(name: str, endpoint: str) -> str | None:
    """Value of a tag; None if there is no such tag, or the metadata does not show tags.

    Raises ComputeUnavailableError. No proxy is used: it would return another machine's tags.
    """
    token = _send_request(endpoint, "PUT", "/latest/api/token", {f"{_TOKEN}-ttl-seconds": "60"})
    return _send_request(endpoint, "GET", f"/latest/meta-data/tags/instance/{name}", {_TOKEN: token or ""})


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
