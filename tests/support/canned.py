"""A few lines of S3 that answer as a test wants: refusals, and replies that get lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.http_server import LoopbackServer, serving


@dataclass
class Canned:
    """`answers` are taken in turn by the requests; where none is left, objects are kept and given.

    An answer is HTTP's status and S3's code. Status 0 loses the reply: the write happens, and the
    connection is closed.
    """

    answers: list[tuple[int, str]] = field(default_factory=list)
    always: tuple[int, str] | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    bodiless: dict[str, int] = field(default_factory=dict)
    """Objects of which only the size is sent, and never the content."""
    endpoint: str = ""

    def next(self) -> tuple[int, str] | None:
        return self.answers.pop(0) if self.answers else self.always


LOST = (0, "")


class _Server(LoopbackServer):
    canned: Canned


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if size := self.server.canned.bodiless.get(self.path):
            self._head(200, size)
            self.close_connection = True
            return
        data = self.server.canned.objects.get(self.path)
        if self._canned():
            return
        self._refuse(404, "NoSuchKey") if data is None else self._give(200, data)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        objects = self.server.canned.objects
        if self._canned(data):
            return
        if self.path in objects and self.headers.get("If-None-Match") == "*":
            self._refuse(412, "PreconditionFailed")
        else:
            objects[self.path] = data
            self._give(200, b"")

    def _canned(self, data: bytes = b"") -> bool:
        answer = self.server.canned.next()
        if answer is None:
            return False
        if answer == LOST:
            self.server.canned.objects.setdefault(self.path, data)
            self.close_connection = True
        else:
            self._refuse(*answer)
        return True

    def _refuse(self, status: int, code: str) -> None:
        self._give(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _give(self, status: int, body: bytes) -> None:
        self._head(status, len(body))
        self.wfile.write(body)

    def _head(self, status: int, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 12:00:00 GMT")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def canned_server() -> Iterator[Canned]:
    """Serves on 127.0.0.1 until the end of the block."""
    server = _Server(_Handler)
    server.canned = Canned(endpoint=server.url)
    with serving(server):
        yield server.canned
