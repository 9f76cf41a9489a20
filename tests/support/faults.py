"""An endpoint on loopback that makes single calls to AWS go wrong, and gives the others to moto.

A call has a name: EC2's is its action (`StartInstances`), the scheduler's too (`CreateSchedule`), and
S3's is the method with the last part of the key (`PUT intent.json`).
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from urllib.parse import parse_qs, urlsplit

from support.http_server import LoopbackServer, serving
from support.s3 import call_moto

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "upgrade"}
_SCHEDULES = {
    "POST": "CreateSchedule",
    "PUT": "UpdateSchedule",
    "GET": "GetSchedule",
    "DELETE": "DeleteSchedule",
}
_LISTED = "ListSchedules"


class Drop(Enum):
    """Whether the connection breaks before the action was done, or after: the reply is lost."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Refusal:
    """An error reply, in the form of the service that was called."""

    code: str
    status: int = 400


@dataclass(frozen=True)
class Hang:
    """No reply for as long as the proxy lives; whether the action was done."""

    done: bool = False


@dataclass(frozen=True)
class Pretend:
    """EC2 says yes to an action, and nothing comes of it."""


Fault = Drop | Refusal | Hang | Pretend | None


class FaultProxy:
    """`plan` says what the next calls of a name meet; `calls` is what came through, in order.

    `written` counts by path how often a PUT was done, whoever heard of it.
    """

    def __init__(self, on_call: Callable[[Fault], None] | None) -> None:
        self._on_call = on_call
        self.calls: list[str] = []
        self.written: Counter[str] = Counter()
        self.closing = Event()
        self.plans: dict[str, deque[Fault]] = {}
        self._lock = Lock()
        self.endpoint = ""

    def plan(self, action: str, *faults: Fault) -> None:
        with self._lock:
            self.plans.setdefault(action, deque()).extend(faults)

    def forget(self) -> None:
        """As new: nothing planned, nothing seen."""
        with self._lock:
            self.plans.clear()
            self.calls.clear()
            self.written.clear()

    def meet(self, action: str) -> Fault:
        with self._lock:
            self.calls.append(action)
            plan = self.plans.get(action)
            fault = plan.popleft() if plan else None
        if self._on_call:
            self._on_call(fault)
        return fault

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        code, found, content = call_moto(method, path, headers, body)
        if method == "PUT" and code < 300:
            with self._lock:
                self.written[urlsplit(path).path] += 1
        return code, found, content


@contextmanager
def fault_proxy(*, on_call: Callable[[Fault], None] | None = None) -> Iterator[FaultProxy]:
    proxy = FaultProxy(on_call)

    methods = {f"do_{method}": _Handler.meet for method in ("GET", "HEAD", "POST", "PUT", "DELETE")}
    handler = type("Handler", (_Handler,), {"faults": proxy} | methods)
    server = LoopbackServer(handler)
    proxy.endpoint = server.url
    with serving(server, at_end=proxy.closing.set):
        yield proxy


class _Handler(BaseHTTPRequestHandler):
    faults: FaultProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests read `calls`, not a log."""

    def meet(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faults.meet(call_name(self.command, self.path, body))
        if fault is None:
            self._answer(*self._done(body))
        elif isinstance(fault, Refusal):
            self._refuse(fault, ec2=b"Action=" in body)
        elif isinstance(fault, Pretend):
            self._answer(
                200, [("Content-Type", "text/xml")], b"<Response><requestId>planned</requestId></Response>"
            )
        else:
            if fault is Drop.AFTER or (isinstance(fault, Hang) and fault.done):
                self._done(body)
            if isinstance(fault, Hang):
                self.faults.closing.wait()
            self.close_connection = True

    def _done(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        return self.faults.forward(self.command, self.path, dict(self.headers.items()), body)

    def _refuse(self, refusal: Refusal, *, ec2: bool) -> None:
        if self.path.startswith("/schedule"):
            headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", refusal.code)]
            self._answer(refusal.status, headers, json.dumps({"Message": "planned by the test"}).encode())
        else:
            self._answer(refusal.status, [("Content-Type", "text/xml")], _error(refusal.code, ec2=ec2))

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        told = {name.lower(): value for name, value in headers}
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        # A HEAD has the length of what it does not send.
        self.send_header(
            "Content-Length", told.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        )
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # killed callers do not listen
            self.wfile.write(body)


def call_name(method: str, target: str, body: bytes) -> str:
    """What a call is planned by."""
    path = urlsplit(target).path
    if path.startswith("/schedule"):
        return _LISTED if path == "/schedules" else _SCHEDULES[method]
    action = parse_qs(body.decode("latin-1")).get("Action") if method == "POST" else None
    return action[0] if action else f"{method} {path.rpartition('/')[2]}"


def _error(code: str, *, ec2: bool) -> bytes:
    error = f"<Error><Code>{code}</Code><Message>planned by the test</Message></Error>"
    whole = f"<Response><Errors>{error}</Errors><RequestID>planned</RequestID></Response>" if ec2 else error
    return f"<?xml version='1.0' encoding='UTF-8'?>{whole}".encode()
