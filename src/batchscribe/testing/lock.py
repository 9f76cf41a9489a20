"""Double of the tick's lock, without a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchscribe.errors import LockHeldError


class FakeLock:
    """A protocols.Lock; a test may set its holder, `held_by`."""

    def __init__(self) -> None:
        self.held_by: str | None = None
        self.taken = 0
        """Number of times that it was acquired."""

    @contextmanager
    def held(self, *, patience: float = 0.0) -> Iterator[None]:  # noqa: ARG002 - its holder never moves meanwhile
        if self.held_by:
            raise LockHeldError(f"another tick is running ({self.held_by}); nothing was done")
        self.taken += 1
        self.held_by = "this process"
        try:
            yield
        finally:
            self.held_by = None

    def holder(self) -> str | None:
        return self.held_by
