"""The server of the pages."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from importlib import import_module

import uvicorn
from markupsafe import escape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from batchscribe.core.redaction import Redactor
from batchscribe.dashboard.context import Context, open_context, page
from batchscribe.dashboard.pages import ASSETS, read_asset
from batchscribe.dashboard.security import HEAD_BYTES, LOOPBACK, Gate, list_hosts
from batchscribe.errors import BatchscribeError, MisconfiguredError, ObjectNotFoundError
from batchscribe.settings import Settings

PARTS = (
    "overview",
    "money",
    "metrics",
    "runs",
    "actions",
    "lookup",
    "sessions",
)
"""Modules of this package, each with `routes(context)`."""
CONNECTIONS = 64
"""Open at a time; a client beyond that gets an error at once."""
HEAD_SECONDS = 10.0
"""From a connection, or the end of an answer, to the next complete head."""


class PromptProtocol(H11Protocol):
    """Drops a client that sends no complete request in time.

    uvicorn would wait for it for ever.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit of the first request."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._drop_idle, None)

    def on_response_complete(self) -> None:
        """Starts the next request's time limit: uvicorn's own ends too soon."""
        self.loop.call_later(HEAD_SECONDS, self._drop_idle, self.cycle)
        super().on_response_complete()

    def _drop_idle(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


def create_app(context: Context, *, hosts: frozenset[str] = LOOPBACK, token: str = "") -> ASGIApp:
    """Builds the application: the pages of PARTS behind the gate.

    `hosts` are the names under which it may be addressed. With a `token`, each request needs it.
    """
    modules = [import_module(f"{__package__}.{name}") for name in PARTS]
    app = Starlette(
        routes=[
            *(route for module in modules for route in module.routes(context)),
            Route("/assets/{name:path}", serve_asset),
        ],
        exception_handlers={
            HTTPException: show_http_error,
            BatchscribeError: show_error,
            Exception: show_bug,
        },
    )
    app.state.redact = make_redactor(context.settings, token)
    return Gate(app, hosts=hosts, token=token)  # outside of the page of an unexpected error, too


def make_redactor(settings: Settings, token: str = "") -> Redactor:
    """Redactor of a whole page: secrets may be escaped in it."""
    known = [*settings.list_secrets(), *filter(None, [token])]
    return Redactor(
        form for secret in known for form in (secret, str(escape(secret)), json.dumps(secret)[1:-1])
    )


def serve_asset(request: Request) -> Response:
    """One of ASSETS; its URL changes with its content."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(read_asset(name), media_type=ASSETS[name], headers=headers)


def show_http_error(request: Request, error: Exception) -> Response:
    """Page of a wrong path or method."""
    assert isinstance(error, HTTPException)
    known = {404: "There is no such page.", 405: "This page cannot be used this way."}
    text = known.get(error.status_code, error.detail)
    return page("error.html", request, status=error.status_code, text=text)


def show_error(request: Request, error: Exception) -> Response:
    """Page of an expected error: store, ledger or settings."""
    status = 404 if isinstance(error, ObjectNotFoundError) else 503
    return page("error.html", request, status=status, text=str(error))


def show_bug(request: Request, error: Exception) -> Response:
    """Page of an unexpected error, which is also raised and logged."""
    return page("error.html", request, status=500, text=f"internal error: {type(error).__name__}")


def serve(settings: Settings, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves the pages until interrupted; `announce` gets the URL.

    Outside the loopback interface a token is generated unless BATCH_DASHBOARD_TOKEN is set.
    """
    token = settings.dashboard_token or ("" if host in LOOPBACK else secrets.token_urlsafe(24))
    app = create_app(open_context(settings), hosts=list_hosts(host), token=token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Not uvicorn's own: that one is inherited by processes, which would keep the port.
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        raise MisconfiguredError(
            f"{host} port {port} cannot be used: nothing was started; choose another --port"
            f" ({error.strerror})"
        ) from error
    config = uvicorn.Config(
        app,
        ws="none",
        http=PromptProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=3,
    )
    with bound:
        shown = f"[{host}]" if ":" in host else host
        asked = f"?token={token}" if token else ""
        announce(f"http://{shown}:{bound.getsockname()[1]}/{asked}")
        uvicorn.Server(config).run(sockets=[bound])
