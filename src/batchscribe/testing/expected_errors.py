"""Check of the conformance suites for errors, which needs no test runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def expect_error(kind: type[Exception]) -> Iterator[None]:
    """Fails unless the block raises an error of this kind."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")
