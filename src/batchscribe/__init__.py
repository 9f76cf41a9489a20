"""Transcribes everything in a bucket on a GPU that exists only while it is worth paying for."""

__version__ = "0.2.0"
