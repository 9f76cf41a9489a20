"""Log of a process on the GPU host, without a settings file.

A module of its own: paid time passes while a host's process imports, and the settings are slow to import.
"""

from __future__ import annotations

from batchscribe import aws_environment
from batchscribe.adapters.machine import logs


def configure_host_log() -> None:
    """Configures the log of an agent or a worker."""
    logs.configure(secrets=aws_environment.list_secrets())
