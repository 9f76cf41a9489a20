"""Shared parts of the handlers: what they read from, and how they answer with a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from batchscribe.dashboard.pages import render_page
from batchscribe.ledger import Ledger
from batchscribe.protocols import Clock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.seams import open_ledger, open_stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the pages read from. Handlers run in threads, several at a time."""

    settings: Settings
    clock: Clock
    source: Store
    output: Store

    def open_ledger(self) -> Ledger:
        """Opens the ledger, which is empty if there is none; a context manager for one thread."""
        return open_ledger(self.settings, remember=False)


def open_context(settings: Settings) -> Context:
    """Opens the stores of the settings; makes no request."""
    source, output = open_stores(settings)
    return Context(settings=settings, clock=open_clock(), source=source, output=output)


def page(template: str, request: Request, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Renders a template as the answer; secrets are hidden."""
    here = "/" + request.url.path.split("/")[1]
    html = render_page(template, "server", here=here, **values)
    return HTMLResponse(request.app.state.redact(html), status_code=status)
