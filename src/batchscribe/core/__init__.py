"""Rules of batchscribe as pure functions: no I/O, clock or environment."""
