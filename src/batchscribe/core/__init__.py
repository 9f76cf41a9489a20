"""The rules of batchscribe as pure functions over frozen values: no I/O, no clock, no environment."""
