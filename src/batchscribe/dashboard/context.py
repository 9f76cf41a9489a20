"""Shared parts of the handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse

from batchscribe.controller.commands.overview import Surroundings, observe_surroundings
from batchscribe.dashboard.cached import Cached, Reading
from batchscribe.dashboard.pages import render_page
from batchscribe.ledger import Ledger
from batchscribe.protocols import Clock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.install import describe_schedule
from batchscribe.wiring.scheduler import Scheduler, make_observer
from batchscribe.wiring.seams import open_ledger_to_read

T = TypeVar("T")
CHANGED = timedelta(seconds=5)
"""Longest life of a reading after a tick or a step of a run was recorded."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Sources of the pages. Handlers run in threads, several at a time."""

    settings: Settings
    scheduler: Scheduler
    """Without a ledger, which belongs to one thread: see `open_scheduler`."""

    @property
    def clock(self) -> Clock:
        return self.scheduler.world.clock

    @property
    def source(self) -> Store:
        return self.scheduler.world.source

    @property
    def output(self) -> Store:
        return self.scheduler.world.output

    def open_ledger(self) -> Ledger:
        """Opens the ledger for reading; it is empty if there is none.

        A context manager for one thread.
        """
        return open_ledger_to_read(self.settings)

    @contextmanager
    def open_scheduler(self) -> Iterator[Scheduler]:
        """The scheduler with a ledger for this thread."""
        with self.open_ledger() as ledger:
            yield self.scheduler.with_ledger(ledger)

    @cached_property
    def around(self) -> Cached[Surroundings]:
        """Store, cloud and guard, as they were polled last."""
        return Cached(self._observe, self.clock)

    @cached_property
    def schedule(self) -> Cached[str]:
        """The schedule of ticks, which systemd or cron reports."""
        return Cached(partial(describe_schedule, self.settings), self.clock)

    def renew(self, cached: Cached[T], lasts: timedelta, *, patience: float = 0.0) -> Reading[T] | None:
        """The last reading; it ends sooner after a newer ledger record."""
        last = cached.last
        with self.open_ledger() as ledger:
            latest = ledger.last_tick()
        changed = last is not None and latest is not None and latest >= last.at
        return cached.get(CHANGED if changed else lasts, patience=patience)

    def _observe(self) -> Surroundings:
        with self.open_scheduler() as made:
            return observe_surroundings(made.world, made.config)


def open_context(settings: Settings) -> Context:
    """Opens the stores of the settings; makes no request."""
    return Context(settings=settings, scheduler=make_observer(settings))


def page(template: str, request: Request, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Renders a template as the answer; secrets are hidden."""
    here = "/" + request.url.path.split("/")[1]
    html = render_page(template, "server", here=here, **values)
    return HTMLResponse(request.app.state.redact(html), status_code=status)
