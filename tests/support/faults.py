"""A proxy on loopback that makes single EC2 actions go wrong, in front of any endpoint.

It knows EC2's query protocol only: POST, with the action in the body.
"""

from __future__ import annotations

import http.client
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from urllib.parse import parse_qs, urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"}


class Drop(Enum):
    """Whether the connection breaks before the action was done, or after: the reply is lost."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Refusal:
    """An error reply in EC2's form."""

    code: str
    status: int = 400


@dataclass(frozen=True)
class Hang:
    """No reply for as long as the proxy lives; whether the action was done."""

    done: bool = False


Fault = Drop | Refusal | Hang | None


class FaultProxy:
    """`plan` says what the next calls of an action meet; `calls` is what came through, in order."""

    def __init__(self, upstream: str, on_call: Callable[[Fault], None] | None) -> None:
        self._on_call = on_call
        self.calls: list[str] = []
        self.closing = Event()
        self._upstream = urlsplit(upstream)
        self._plans: dict[str, deque[Fault]] = {}
        self._lock = Lock()
        self.endpoint = ""

    def plan(self, action: str, *faults: Fault) -> None:
        with self._lock:
            self._plans.setdefault(action, deque()).extend(faults)

    def forget(self) -> None:
        """As new: nothing planned, nothing seen."""
        with self._lock:
            self._plans.clear()
            self.calls.clear()

    def meet(self, action: str) -> Fault:
        with self._lock:
            self.calls.append(action)
            plan = self._plans.get(action)
            fault = plan.popleft() if plan else None
        if self._on_call:
            self._on_call(fault)
        return fault

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=30
        )
        try:
            connection.request(method, path, body=body, headers=headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()


@contextmanager
def fault_proxy(upstream: str, *, on_call: Callable[[Fault], None] | None = None) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream, on_call)

    handler = type("Handler", (_Handler,), {"faults": proxy})

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    faults: FaultProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests read `calls`, not a log."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        action = parse_qs(body.decode("latin-1")).get("Action", [""])[0]
        fault = self.faults.meet(action)
        if fault is None:
            self._answer(*self._done(body))
        elif isinstance(fault, Refusal):
            self._answer(fault.status, [("Content-Type", "text/xml")], _error(fault.code))
        else:
            if fault is Drop.AFTER or (isinstance(fault, Hang) and fault.done):
                self._done(body)
            if isinstance(fault, Hang):
                self.faults.closing.wait()
            self.close_connection = True

    def _done(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        return self.faults.forward(self.command, self.path, dict(self.headers.items()), body)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(code: str) -> bytes:
    return (
        "<?xml version='1.0' encoding='UTF-8'?><Response><Errors><Error>"
        f"<Code>{code}</Code><Message>planned by the test</Message>"
        "</Error></Errors><RequestID>planned</RequestID></Response>"
    ).encode()
