"""Double of the tick's lock, without a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchscribe.errors import LockHeldError


class FakeLock:
    """A protocols.Lock; `by` is its holder, which a test may set to another process."""

    def __init__(self) -> None:
        self.by: str | None = None
        self.taken = 0
        """Number of times that it was acquired."""

    @contextmanager
    def held(self, *, patience: float = 0.0) -> Iterator[None]:  # noqa: ARG002 - its holder never moves meanwhile
        if self.by:
            raise LockHeldError(f"another tick is running ({self.by}); nothing was done")
        self.taken += 1
        self.by = "this process"
        try:
            yield
        finally:
            self.by = None

    def holder(self) -> str | None:
        return self.by
