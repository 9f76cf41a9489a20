"""All errors that batchscribe raises on purpose.

    BatchscribeError                 one line for the user: what happened, what was kept, what to do
    |-- TransientError               may pass by itself; the only branch that is ever retried
    |   |-- StoreUnavailableError    the object store did not answer, or answered with 5xx or a throttle
    |   |-- ComputeUnavailableError  the cloud's API did not answer, throttled, or lost a reply
    |   `-- LaunchError              the GPU host was not reachable, or the worker did not start
    |       |-- PortClosedError      the GPU host is up, but refuses the connection
    |       `-- HostTimeoutError     the GPU host did not answer in time
    |-- PermanentError               the same input will fail again
    |   |-- ObjectNotFoundError      no object under that key
    |   |-- ObjectArchivedError      the object exists, but must be restored first (Glacier)
    |   |-- ObjectTooLargeError      the object exceeds the size that its reader accepts
    |   |-- AudioError               the audio cannot be decoded within the limits
    |   |   `-- UnsupportedAudioError  it is of a kind that is never decoded here
    |   `-- EngineError              the speech model cannot run, or broke while it ran
    |       `-- OutOfMemoryError     a batch does not fit into the engine's memory
    |-- RefusedError                 a rule of batchscribe forbids the action; nothing was done
    |   |-- LockHeldError            another tick is running
    |   |-- NotOursError             the instance or the run is foreign
    |   `-- NoCapacityError          the cloud has no machine of this type right now
    |       `-- QuotaError           the account's quota does not allow one more
    |-- MisconfiguredError           a setting, a credential or an installation must be fixed first
    |   |-- CredentialsError         the cloud does not accept these credentials (any more)
    |   |-- MissingCredentialsError  no credentials for the store were found
    |   |-- MissingRightError        the credentials lack a right
    |   |-- UnreadableError          a control object is torn, out of bounds or too large
    |   |-- DamagedLedgerError       the ledger's file is damaged and set aside; the store has the rest
    |   `-- GpuError                 a GPU is required, and there is no usable one
    |-- NotStoppedError              an instance of ours could not be proved stopped
    `-- InterruptedRunError          SIGTERM, Ctrl-C, or the deadline asked the run to end

The exit code of the command line is a property of the error: see `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar


class BatchscribeError(Exception):
    """Root of the tree; its text is one line for users."""

    exit_code: ClassVar[int] = 1


class TransientError(BatchscribeError):
    """May pass by itself; retried within a limit."""


class StoreUnavailableError(TransientError):
    """The object store did not answer, or failed (5xx, throttle)."""


class ComputeUnavailableError(TransientError):
    """The cloud's API failed: the effect of the call is unknown."""


class LaunchError(TransientError):
    """The GPU host was not reachable, or the worker did not start."""

    fix: ClassVar[str] = ""
    """The remedy if it does not pass."""

    @property
    def advice(self) -> str:
        """Its text with the fix, if there is one."""
        return f"{self}: {self.fix}" if self.fix else str(self)


class PortClosedError(LaunchError):
    """The GPU host is up, but refuses the connection."""

    fix: ClassVar[str] = "start its ssh server, or correct GPU_SSH_PORT"


class HostTimeoutError(LaunchError):
    """The GPU host did not answer in time."""

    fix: ClassVar[str] = "check its security group"


class PermanentError(BatchscribeError):
    """The same input will fail again."""


class ObjectNotFoundError(PermanentError):
    """No object is stored under that key."""


class ObjectArchivedError(PermanentError):
    """The object exists, but must be restored from its archive first."""


class ObjectTooLargeError(PermanentError):
    """The object exceeds its reader's limit, and was not read."""


class AudioError(PermanentError):
    """The audio cannot be decoded within the limits."""


class UnsupportedAudioError(AudioError):
    """The audio is of a kind that is never decoded."""


class EngineError(PermanentError):
    """The speech model cannot run, or broke while it ran."""


class OutOfMemoryError(EngineError):
    """A batch exceeds the engine's memory; a smaller one may fit."""


class RefusedError(BatchscribeError):
    """A rule of batchscribe forbids the action; nothing was done."""


class LockHeldError(RefusedError):
    """Another tick is running; nothing is wrong."""

    exit_code: ClassVar[int] = 0


class NotOursError(RefusedError):
    """The instance or the run is foreign."""


class NoCapacityError(RefusedError):
    """The cloud has no machine of this type right now."""


class QuotaError(NoCapacityError):
    """The account's quota does not allow one more machine of this type."""


class MisconfiguredError(BatchscribeError):
    """A setting, a credential or an installation must be fixed first."""

    exit_code: ClassVar[int] = 2


class CredentialsError(MisconfiguredError):
    """The cloud does not accept these credentials, or not any more."""


class MissingCredentialsError(MisconfiguredError):
    """No credentials for the store were found."""


class MissingRightError(MisconfiguredError):
    """The credentials lack a right."""


class DamagedLedgerError(MisconfiguredError):
    """The ledger's file is damaged; the store has all transcripts."""


class UnreadableError(MisconfiguredError):
    """A control object is torn, out of bounds or too large."""


class GpuError(MisconfiguredError):
    """A required GPU is not usable: driver, device or libraries."""


class NotStoppedError(BatchscribeError):
    """An instance of ours could not be proved stopped."""

    exit_code: ClassVar[int] = 3


class InterruptedRunError(BatchscribeError):
    """SIGTERM or Ctrl-C ended the run; its instance was stopped."""

    exit_code: ClassVar[int] = 130


SEVERITY = (0, 1, 130, 2, 3)
"""Exit codes, the most serious one last."""


def choose_worst(codes: Iterable[int]) -> int:
    """The most serious of these exit codes; 0 if there are none."""
    return max(codes, key=SEVERITY.index, default=0)


def exit_code(errors: Iterable[BatchscribeError]) -> int:
    """Exit code for these errors: the most serious one; 0 without errors."""
    return choose_worst(error.exit_code for error in errors)


def combine_errors(errors: Sequence[BatchscribeError]) -> BatchscribeError:
    """The most serious of these errors, with the texts of all."""
    worst = max(errors, key=lambda error: SEVERITY.index(error.exit_code))
    texts = dict.fromkeys(map(str, errors))
    return worst if len(texts) == 1 else type(worst)("; ".join(texts))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, else its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
