"""A seeded simulator that tries to break the production tick: one process, one clock, any fault, any step.

`python -m simulation --help` plays episodes; `episode.play` plays one.
"""
