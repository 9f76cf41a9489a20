"""Seeded simulator of the production tick, with faults at any step."""
