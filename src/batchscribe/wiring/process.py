"""Prepares a process of batchscribe: its log, and its environment."""

from __future__ import annotations

from batchscribe import aws_environment
from batchscribe import settings as configuration
from batchscribe.adapters.machine import logs
from batchscribe.settings import Settings


def apply_settings(settings: Settings) -> None:
    """Applies the settings to the AWS environment and the log."""
    settings.apply_aws_environment()
    logs.configure(secrets=settings.secrets(), journal_stream=configuration.journal_stream())


def configure_host_log() -> None:
    """Configures the log of a process on the GPU host, which has no settings file."""
    logs.configure(secrets=aws_environment.secrets())
