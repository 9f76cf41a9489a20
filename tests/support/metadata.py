"""A double of EC2's instance metadata service (IMDSv2), bound to loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from support.http_server import LoopbackServer, serving

TOKEN = "a-token"
ROOT = "/latest/meta-data/"
TAGS = f"{ROOT}tags/instance/"


class Metadata(LoopbackServer):
    """Shows `tags`, which may change; None is an instance whose metadata shows no tags."""

    def __init__(self, tags: Mapping[str, str] | None = None) -> None:
        super().__init__(_Reply)
        self.tags = tags
        self.shown: dict[str, str] = {}
        """What it shows besides, by its path."""
        self.error = 0
        """A status that answers every request instead."""


class _Reply(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        timed = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
        self._answer(200 if timed and self.path == "/latest/api/token" else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "")
            return
        tag = (self.server.tags or {}).get(self.path.removeprefix(TAGS))
        value = self.server.shown.get(self.path.removeprefix(ROOT), tag)
        self._answer(404 if value is None else 200, value or "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(self.server.error or status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def metadata_service(tags: Mapping[str, str] | None = None) -> Iterator[Metadata]:
    """The service while the block lasts."""
    server = Metadata(tags)
    with serving(server):
        yield server
