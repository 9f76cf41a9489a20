"""Writes run reports to `batch-YYYY-MM-DD-HHMMSS.json`: atomic, never overwritten."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from batchscribe.core.run import report as reports
from batchscribe.core.run.report import RunReport
from batchscribe.errors import MisconfiguredError
from batchscribe.private_files import make_folder


def write_report(folder: Path, report: RunReport) -> Path:
    """Writes the report; returns its path.

    The file is named after the time (UTC) at which the run was settled. A second report of the same second
    gets `-2`, and so on. Raises MisconfiguredError if the folder cannot be written.
    """
    at = report.timestamps.settled or report.timestamps.created
    try:
        make_folder(folder)
        return _write_file(folder, at, reports.encode(report))
    except OSError as error:
        raise MisconfiguredError(
            f"the report of run {report.run} cannot be written to {folder} ({error.strerror}): the run "
            "itself is settled and in the ledger; fix the folder or set BATCH_REPORTS_DIR"
        ) from error


def _write_file(folder: Path, at: datetime, data: bytes) -> Path:
    """Writes the report under the first free name, through a temporary file."""
    stem = f"batch-{at.astimezone(UTC):%Y-%m-%d-%H%M%S}"
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".batch-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return _link_to_free_name(Path(name), folder, stem)
    finally:
        Path(name).unlink()


def _link_to_free_name(written: Path, folder: Path, stem: str) -> Path:
    for number in count(1):
        target = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            target.hardlink_to(written)
        except FileExistsError:
            continue
        return target
    raise AssertionError("count() has no end")
