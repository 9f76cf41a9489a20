"""Settings of the original scripts: kept, renamed, or not needed any more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fate(StrEnum):
    """Treatment of a setting of the original scripts."""

    KEPT = "kept"
    RENAMED = "renamed"
    GONE = "not needed any more"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Original:
    """One setting of the original scripts; `successor` may be empty."""

    fate: Fate
    note: str
    successor: str = ""


def _kept(note: str = "same meaning") -> Original:
    return Original(Fate.KEPT, note)


def _gone(note: str) -> Original:
    return Original(Fate.GONE, note)


_ADDRESS = "the address is looked up by GPU_INSTANCE_ID at each start"
_TRANSFER = "transfers run beside the engine, within a memory budget"
_UPLOADS = "recorder and uploads are no part of batchscribe"
_STREAMING = "live streaming is no part of batchscribe"
_DOCUMENTS = "Google Docs are no part of batchscribe"
ORIGINALS: dict[str, Original] = {
    "BATCH_THRESHOLD": _kept(),
    "BATCH_MAX_RUNTIME_HOURS": _kept("same meaning; fractions work"),
    "BATCH_SCHEDULER_CHECK_HOURS": _kept("same meaning; `batchscribe install` makes the schedule from it"),
    "BATCH_NOTIFY_EMAIL": _kept("same meaning; BATCH_SMTP_URL sends without a local mail system"),
    "BATCH_LIMIT": _kept("same meaning; 0 (no limit) is an empty value now"),
    "SLACK_WEBHOOK_URL": _kept(),
    "WHISPER_MODEL": _kept(),
    "WHISPER_COMPUTE_TYPE": _kept("same meaning; `auto` chooses by the GPU"),
    "GPU_INSTANCE_ID": _kept(),
    "GPU_INSTANCE_TYPE": _kept("the type of the instance, for prices and rights"),
    "GPU_SSH_KEY_PATH": _kept(),
    "GPU_HOURLY_COST": _kept("same meaning; without it the price table applies"),
    "AWS_REGION": _kept(),
    "COGNITO_S3_BUCKET": Original(
        Fate.RENAMED, "as s3://BUCKET/users, where the recorder puts audio", "BATCH_SOURCE"
    ),
    "MAX_RETRY_ATTEMPTS": Original(
        Fate.RENAMED, "counted for each chunk, over all runs", "BATCH_MAX_ATTEMPTS"
    ),
    "AWS_ACCOUNT_ID": _gone("the credentials name the account"),
    "SERVICE_NAME": _gone("only the guard's stack has a name: batchscribe-guard"),
    "SSH_KEY_NAME": _gone("GPU_SSH_KEY_PATH names the key file"),
    "BATCH_SIZE": _gone("a run takes what fits into BATCH_MAX_RUNTIME_HOURS; BATCH_LIMIT is an upper bound"),
    "BATCH_MAX_PARALLEL_DOWNLOAD": _gone(_TRANSFER),
    "BATCH_MAX_PARALLEL_UPLOAD": _gone(_TRANSFER),
    "BATCH_DOWNLOAD_THRESHOLD": _gone("the engine starts with the first chunk"),
    "BATCH_DOWNLOAD_TIMEOUT": _gone("requests have their own timeouts and retries"),
    "EDGE_LOG_FILE": _gone("BATCH_LOG_DIR has one log for each run, and the journal has all"),
    "GPU_INSTANCE_IP": _gone(_ADDRESS),
    "GPU_HOST": _gone(_ADDRESS),
    "WHISPERLIVE_HOST": _gone(_ADDRESS),
    "RIVA_HOST": _gone(_ADDRESS),
    "WHISPERLIVE_PORT": _gone(_STREAMING),
    "WHISPERLIVE_WS_URL": _gone(_STREAMING),
    "EDGE_BOX_DNS": _gone(_STREAMING),
    "EDGE_BOX_INSTANCE_ID": _gone(_STREAMING),
    "COGNITO_DOMAIN": _gone(_UPLOADS),
    "COGNITO_USER_POOL_ID": _gone(_UPLOADS),
    "COGNITO_USER_POOL_CLIENT_ID": _gone(_UPLOADS),
    "COGNITO_IDENTITY_POOL_ID": _gone(_UPLOADS),
    "COGNITO_API_ENDPOINT": _gone(_UPLOADS),
    "COGNITO_CLOUDFRONT_URL": _gone(_UPLOADS),
    "CLOUDDRIVE_TEST_EMAIL": _gone(_UPLOADS),
    "CLOUDDRIVE_TEST_PASSWORD": _gone(_UPLOADS),
    "HEADLESS": _gone(_UPLOADS),
    "GOOGLE_DOC_ID": _gone(_DOCUMENTS),
    "GOOGLE_CREDENTIALS_PATH": _gone(_DOCUMENTS),
    "GOOGLE_CREDENTIALS_BASE64": _gone(_DOCUMENTS),
    "ANTHROPIC_API_KEY": _gone("no analysis of transcripts by a language model"),
}
"""By name; docs/migration.md has the same table."""
SUPERSEDED = frozenset(name for name, original in ORIGINALS.items() if original.fate is not Fate.KEPT)
"""Names that are not settings of batchscribe."""
_EXAMPLE = re.compile(r"i-x+|your-.*|/.*/your-key\.pem|<.*>", re.IGNORECASE)
"""Values of the original's example file that stand for a missing one."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Settings from a file of the original scripts, one line for each."""

    values: Mapping[str, str]
    lines: tuple[str, ...] = field(default=())


def take_over(old: Mapping[str, str], known: frozenset[str]) -> TakenOver:
    """Translates the settings of the original scripts; `known` are batchscribe's."""
    values: dict[str, str] = {}
    lines = []
    for name, text in old.items():
        original = _find_original(name, known)
        successor = f" to {original.successor}" if original.successor else ""
        lines.append(f"{name}: {original.fate}{successor} ({original.note})")
        values |= dict(_translate_value(name, text.strip(), original))
    return TakenOver(values, tuple(lines))


def _find_original(name: str, known: frozenset[str]) -> Original:
    if name in ORIGINALS:
        return ORIGINALS[name]
    if name in known or name.startswith("AWS_"):
        return _kept()
    return Original(Fate.UNKNOWN, "not a setting of the original scripts or of batchscribe; left out")


def _translate_value(name: str, text: str, original: Original) -> Iterator[tuple[str, str]]:
    if not text or _EXAMPLE.fullmatch(text) or original.fate in {Fate.GONE, Fate.UNKNOWN}:
        return
    if name == "COGNITO_S3_BUCKET":
        yield original.successor, f"s3://{text}/users"
    elif (name, text) != ("BATCH_LIMIT", "0"):
        yield original.successor or name, text


def explain_superseded(names: list[str], place: str) -> Iterator[str]:
    """Yields a warning for each name with a successor, and the rest."""
    for name in names:
        if successor := ORIGINALS[name].successor:
            note = ORIGINALS[name].note
            yield f"{name} in {place} belongs to the original scripts: use {successor} ({note})"
    ignored = ", ".join(name for name in names if not ORIGINALS[name].successor)
    if ignored:
        yield f"{place} has settings of the original scripts, not needed any more and ignored: {ignored}"
