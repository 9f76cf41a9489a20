"""Stand-in for a store that cannot be opened; each use raises."""

from __future__ import annotations

from typing import NoReturn

from batchscribe.errors import MisconfiguredError


class UnusableStore:
    """A protocols.Store with a URL only; everything else raises MisconfiguredError."""

    def __init__(self, url: str, error: MisconfiguredError) -> None:
        self.url = url
        self._error = error

    def get(self, *_asked: object, **_options: object) -> NoReturn:
        """Raises the reason, as all other calls do."""
        raise MisconfiguredError(str(self._error))

    get_range = list = create = replace = delete = get
