"""Log of a simulated controller: production redaction, then a listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from batchscribe.adapters.machine.logs import Event, make_cleaner
from batchscribe.core.redaction import Redactor


class Listener:
    """Receives every log event, for the current episode."""

    def __init__(self) -> None:
        self.collect: Callable[[Event], None] = lambda _event: None

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        self.collect(event)
        raise structlog.DropEvent


@contextmanager
def listening() -> Iterator[Listener]:
    """Sends all events to a listener during the block."""
    before = structlog.get_config()
    listener = Listener()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            make_cleaner(Redactor()),  # without the canary: the code itself must keep it out of the log
            listener,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield listener
    finally:
        structlog.configure(**before)
