"""Log, environment and clock of a process of batchscribe."""

from __future__ import annotations

from batchscribe import settings as configuration
from batchscribe.adapters.machine import logs
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.protocols import Clock
from batchscribe.settings import Settings


def apply_settings(settings: Settings, *, log_level: str = "info") -> None:
    """Applies the settings to the AWS environment and the log; events below `log_level` are not shown."""
    settings.apply_aws_environment()
    logs.configure(
        secrets=settings.list_secrets(), journal_stream=configuration.journal_stream(), level=log_level
    )


def open_clock() -> Clock:
    """This machine's clock, for commands that never wait."""
    return SystemClock()
