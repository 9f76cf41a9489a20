"""Values that cost requests or seconds, shown with their age."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

import structlog

from batchscribe.errors import BatchscribeError
from batchscribe.protocols import Clock

T = TypeVar("T")
log = structlog.get_logger("batchscribe")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """A value or an error, and the time its read began."""

    at: datetime
    value: T | None = None
    error: str = ""


class Cached(Generic[T]):
    """The last reading of a value.

    One read at a time, in a thread; requests do not start more. After an error, the value of the reading
    before it is lost: what is shown is never older than its time.
    """

    def __init__(self, read: Callable[[], T], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._done.set()
        self.last: Reading[T] | None = None

    @property
    def reading(self) -> bool:
        """True while a read is in progress."""
        return not self._done.is_set()

    def refresh(self, *, patience: float = 0.0) -> Reading[T] | None:
        """Starts a read unless one runs; waits up to `patience` seconds."""
        with self._lock:
            if self._done.is_set():
                self._done.clear()
                threading.Thread(target=self._read_value, daemon=True).start()
        self._done.wait(patience)
        return self.last

    def get(self, lasts: timedelta, *, patience: float = 0.0) -> Reading[T] | None:
        """The last reading, renewed first if it is older than `lasts`."""
        if self.last is None or self._clock.now() - self.last.at > lasts:
            return self.refresh(patience=patience)
        return self.last

    def _read_value(self) -> None:
        begin = self._clock.now()  # what changes during the read may be missing in it
        try:
            self.last = Reading(begin, self._read())
        except BatchscribeError as error:
            self.last = Reading(begin, error=str(error))
        except Exception as error:
            log.exception("dashboard.read_failed")
            self.last = Reading(begin, error=f"internal error: {type(error).__name__}")
        finally:
            self._done.set()
