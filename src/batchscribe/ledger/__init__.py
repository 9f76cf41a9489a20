"""The durable record of runs and money on this machine."""

from batchscribe.ledger.ledger import FILE_NAME, Ledger
from batchscribe.ledger.rows import Speed

__all__ = ["FILE_NAME", "Ledger", "Speed"]
