"""Another scheduler on the same source, as its run records show."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from batchscribe.core.run.runs import Run

RECENT = timedelta(days=7)
"""Older runs may be of a scheduler that was removed."""
_SHOWN = 64
"""Characters of a name: a record in the store is untrusted input."""


class OtherScheduler(msgspec.Struct, frozen=True):
    """The last run of another scheduler; the ledger keeps one."""

    scheduler: str
    host: str
    run: str
    created: datetime

    @classmethod
    def of(cls, record: Run) -> OtherScheduler:
        return cls(record.scheduler[:_SHOWN], record.host[:_SHOWN], record.id, record.created)

    def is_recent(self, now: datetime) -> bool:
        return abs(now - self.created) < RECENT

    @property
    def sentence(self) -> str:
        who = f"scheduler {self.scheduler or '(unnamed)'} on {self.host or 'an unnamed host'}"
        return (
            f"{who} works on this source, too (run {self.run}, {self.created:%Y-%m-%d %H:%M} UTC): "
            "chunks may be transcribed and paid twice"
        )


FIX = "run `batchscribe uninstall` in the folder of one of them, or give each a BATCH_SOURCE of its own"
