"""Admission of requests, and the headers of every answer."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import socket
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`, with which browsers send `Origin: null` from our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer that does not set them itself."""
SAFE = frozenset({"GET", "HEAD"})
HEAD_BYTES = 32 * 1024
"""Maximum size of a request's head; uvicorn limits only one that arrives in pieces."""


class Gate:
    """ASGI middleware that refuses requests before any page sees them.

    Refused are: names of other hosts (DNS rebinding), requests without the `token` if there is one, requests
    from pages of other sites but links, and bodies: no page needs one.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], token: str) -> None:
        self._app = app
        self._hosts = hosts
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":  # the server's own start and end
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(Request(scope)) or self._app
        await answer(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        """Refusal, or redirect that keeps the token; None if admitted."""
        if not self._is_own_host(request.headers.get("host", "")):
            return PlainTextResponse("this host name is not served here\n", status_code=421)
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            return PlainTextResponse("no request has a body here\n", status_code=413)
        head = sum(len(name) + len(value) for name, value in request.headers.raw)
        if head + len(request.url.path) + len(request.url.query) > HEAD_BYTES:
            return PlainTextResponse("the head of this request is too large\n", status_code=431)
        if self._token and (refusal := self._check_token(request)):
            return refusal
        if is_embedded_elsewhere(request) or (request.method not in SAFE and not is_same_origin(request)):
            return PlainTextResponse("this request comes from a page of another site\n", status_code=403)
        return None

    def _is_own_host(self, host: str) -> bool:
        name = split_url(f"//{host}").hostname if host.isprintable() else None
        # An address cannot be rebound; it is served on every interface but the loopback's.
        return bool(name) and (name in self._hosts or ("*" in self._hosts and _is_address(name or "")))

    def _check_token(self, request: Request) -> Response | None:
        cookie = name_cookie(self._token)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if any(map(self._is_token, (request.cookies.get(cookie, ""), bearer))):
            return None
        if request.method in SAFE and self._is_token(request.query_params.get("token", "")):
            there = RedirectResponse(
                request.url.remove_query_params("token").replace(scheme="", netloc="").components.geturl(),
                status_code=303,
            )
            there.set_cookie(
                cookie, self._token, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
            return there
        return PlainTextResponse(
            "open the URL that `batchscribe dashboard` printed, with its token\n", status_code=401
        )

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(errors="replace"), self._token.encode())


def name_cookie(token: str) -> str:
    """Name of the cookie: one for each token, since cookies ignore ports."""
    return f"batchscribe-{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def is_same_origin(request: Request) -> bool:
    """True if the browser's headers name one of our own pages."""
    if site := request.headers.get("sec-fetch-site"):
        return site == "same-origin"
    # Browsers send no Sec-Fetch-Site to an address without TLS.
    origin = split_url(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == request.headers.get("host")


def split_url(url: str) -> SplitResult:
    """Splits a URL; one that is none has no parts."""
    try:
        return urlsplit(url)
    except ValueError:  # a bracket without its partner
        return SplitResult("", "", "", "", "")


def is_embedded_elsewhere(request: Request) -> bool:
    """True if a page of another site embeds this one.

    Other sites may only link to it.
    """
    others = request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}
    return others and request.headers.get("sec-fetch-mode") != "navigate"


def list_hosts(host: str) -> frozenset[str]:
    """Host names that a server on `host` answers; `*`: any IP address."""
    if host in LOOPBACK:
        return LOOPBACK
    return LOOPBACK | {"*", host, socket.gethostname().lower(), socket.getfqdn().lower()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
