"""Real receivers of messages on loopback: an SMTP server and an HTTP endpoint."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from support.http_server import LoopbackServer, serving

HOST = "127.0.0.1"


@dataclass
class Mailbox:
    """An SMTP server. `login` is the (user, password) it wants, or None where it wants none."""

    login: tuple[str, str] | None = None
    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.login and not session.authenticated:
            return "530 login first"
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.recipients.append(list(envelope.rcpt_tos))
        return "250 OK"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: LoginPassword
    ) -> AuthResult:
        given = (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self.login, handled=False)


class _Controller(Controller):
    """Listens on a port that the system chose."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.socket = socket.create_server((HOST, 0))
        super().__init__(
            mailbox,
            hostname=HOST,
            server_hostname="localhost",
            port=self.socket.getsockname()[1],
            authenticator=mailbox.authenticate if mailbox.login else None,
            auth_require_tls=False,
        )

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self.socket)


@contextmanager
def smtp_receiver(login: tuple[str, str] | None = None) -> Iterator[Mailbox]:
    mailbox = Mailbox(login)
    controller = _Controller(mailbox)
    mailbox.port = controller.port
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


@dataclass
class Endpoint:
    """An HTTP endpoint that keeps what is posted and answers with `status`, or never (`hang`)."""

    status: int = 200
    hang: bool = False
    url: str = ""
    """Without a slash at its end."""
    posts: list[tuple[str, bytes]] = field(default_factory=list)
    """(path with query, body)"""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def http_receiver(status: int = 200, *, hang: bool = False) -> Iterator[Endpoint]:
    endpoint = Endpoint(status=status, hang=hang)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.headers.append(dict(self.headers.items()))
            endpoint.posts.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            if endpoint.hang:
                endpoint.released.wait(60)
                return
            self.send_response(endpoint.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Nothing: the tests look at `posts`."""

    server = LoopbackServer(Handler)
    endpoint.url = server.url
    with serving(server, at_end=endpoint.released.set):
        yield endpoint
