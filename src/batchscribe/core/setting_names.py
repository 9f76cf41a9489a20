"""Checks names of settings, and collects errors in settings.

Names are checked for typing errors, other programs' variables, and names of the original scripts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from batchscribe.core.original_settings import SUPERSEDED, explain_superseded
from batchscribe.errors import MisconfiguredError

T = TypeVar("T")
STRICT = ("BATCH_", "GPU_", "WHISPER_", "CAPTION_")
"""Prefixes under which an unknown name is an error."""
_NEAR = 0.8
_SHARED = ("AWS_", "SLACK_")
"""Prefixes with names of other programs: a near miss is only a warning."""
_VENDOR = frozenset(
    {
        "GPU_ARCHS",
        "GPU_DEVICE_ORDINAL",
        "GPU_ENABLE_COOP_GROUPS",
        "GPU_ENABLE_LARGE_ALLOCATION",
        "GPU_ENABLE_PAL",
        "GPU_FORCE_64BIT_PTR",
        "GPU_FORCE_BLIT_COPY_SIZE",
        "GPU_MAX_ALLOC_PERCENT",
        "GPU_MAX_HEAP_SIZE",
        "GPU_MAX_HW_QUEUES",
        "GPU_MAX_SUBALLOC_SIZE",
        "GPU_MAX_USWC_ALLOC_SIZE",
        "GPU_MAX_WORKGROUP_SIZE",
        "GPU_NUM_COMPUTE_RINGS",
        "GPU_NUM_MEM_DEPENDENCY",
        "GPU_SINGLE_ALLOC_PERCENT",
        "GPU_TARGETS",
        "GPU_USE_SYNC_OBJECTS",
        "GPU_XFER_BUFFER_SIZE",
    }
)
"""Variables of AMD's OpenCL and ROCm: they pass in the environment."""
_AWS = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_ACCOUNT_ID",
        "AWS_CA_BUNDLE",
        "AWS_CONFIG_FILE",
        "AWS_DEFAULT_OUTPUT",
        "AWS_DEFAULT_PROFILE",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_MAX_ATTEMPTS",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_RETRY_MODE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SECURITY_TOKEN",
        "AWS_SESSION_TOKEN",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    }
)
"""Variables of AWS's own tools."""


@dataclass(frozen=True, slots=True)
class GivenNames:
    """Names in one place, such as `.env`; `known` are our settings."""

    names: tuple[str, ...]
    known: frozenset[str]
    place: str
    environment: bool
    """True if other programs' names are there, too."""

    def refuse_unknown(self) -> None:
        """Raises MisconfiguredError for an unknown name under our prefixes."""
        passes = self.known | SUPERSEDED | (_VENDOR if self.environment else set())
        for name in self.names:
            if name.startswith(STRICT) and name not in passes:
                near = _find_near(name, self.known)
                meant = f"did you mean {near}?" if near else "`batchscribe config` lists the names"
                raise MisconfiguredError(f"{name} in {self.place} is not a setting of batchscribe: {meant}")

    def list_warnings(self) -> Iterator[str]:
        """Yields warnings about names without effect: superseded ones, near misses."""
        counted = [name for name in self.names if name.startswith(STRICT) or not self.environment]
        yield from explain_superseded([name for name in counted if name in SUPERSEDED], self.place)
        known = self.known | _AWS
        for name in self.names:
            near = _find_near(name, known) if name.startswith(_SHARED) and name not in known else ""
            if near and not name.startswith(f"{near}_"):
                yield f"{name} in {self.place} has no effect: did you mean {near}?"


def _find_near(name: str, known: frozenset[str]) -> str:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=_NEAR)), "")


@dataclass(slots=True)
class SettingChecks:
    """Calls functions; if `lenient`, collects their errors in `problems`."""

    lenient: bool
    problems: list[str] = field(default_factory=list)

    def __call__(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except MisconfiguredError as error:
            if not self.lenient:
                raise
            self.problems.append(str(error))
            return None
