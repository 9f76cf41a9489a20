"""The durable record of runs and money on this machine."""

from batchscribe.ledger.ledger import FILE_NAME, Ledger, Speed

__all__ = ["FILE_NAME", "Ledger", "Speed"]
