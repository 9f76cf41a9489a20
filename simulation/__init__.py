"""Seeded simulator of the production tick: one process, one clock, faults at any step.

`python -m simulation --help` plays episodes; `episode.play` plays one.
"""
