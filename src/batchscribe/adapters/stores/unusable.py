"""Stands in for a store that cannot be opened: each use raises the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import MisconfiguredError


class UnusableStore:
    """A protocols.Store with a URL only; everything else raises MisconfiguredError."""

    def __init__(self, url: str, error: MisconfiguredError) -> None:
        self.url = url
        self._error = error

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:  # noqa: ARG002  the protocol's
        self._raise_reason()

    def get(self, key: str, *, limit: int | None = None) -> Blob:  # noqa: ARG002  the protocol's signature
        self._raise_reason()

    def create(self, key: str, data: bytes) -> bool:  # noqa: ARG002  the protocol's signature
        self._raise_reason()

    def replace(self, key: str, data: bytes) -> None:  # noqa: ARG002  the protocol's signature
        self._raise_reason()

    def delete(self, key: str) -> None:  # noqa: ARG002  the protocol's signature
        self._raise_reason()

    def _raise_reason(self) -> NoReturn:
        raise MisconfiguredError(str(self._error))
