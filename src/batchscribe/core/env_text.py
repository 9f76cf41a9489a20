"""Renders `.env`: values grouped under comments, and common settings with their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

HEADER = (
    "Settings of batchscribe. `batchscribe config` shows what is in effect and where it comes from;",
    "docs/settings.md explains every name. The environment wins over this file.",
)
GROUPS: dict[str, dict[str, str]] = {
    "Where the audio is, and where control objects go": {
        "BATCH_SOURCE": "",
        "BATCH_OUTPUT": "",
        "BATCH_CONTROL": "apart from the audio: uploaders need no right to it",
    },
    "The GPU": {
        "GPU_PROVIDER": "",
        "GPU_INSTANCE_ID": "",
        "GPU_INSTANCE_TYPE": "",
        "AWS_REGION": "",
        "GPU_SSH_KEY_PATH": "",
        "GPU_SSH_USER": "",
        "BATCH_GUARD_ROLE_ARN": "stops the GPU from outside",
        "BATCH_CLOUD_GUARD": "",
    },
    "The engine": {"BATCH_ENGINE": "", "WHISPER_MODEL": "", "WHISPER_COMPUTE_TYPE": "", "BATCH_LANGUAGE": ""},
    "When a start pays, and limits": {
        "BATCH_POLICY": "",
        "BATCH_THRESHOLD": "",
        "BATCH_MAX_WAIT_HOURS": "",
        "BATCH_HOURS": "",
        "BATCH_MAX_RUNTIME_HOURS": "",
        "BATCH_SCHEDULER_CHECK_HOURS": "",
        "BATCH_MAX_DOLLARS_PER_DAY": "",
    },
    "Messages": {
        "BATCH_NOTIFY_EMAIL": "",
        "BATCH_SMTP_URL": "",
        "SLACK_WEBHOOK_URL": "",
        "BATCH_WEBHOOK_URL": "",
    },
}
"""Names by group, each with a remark."""
SUGGESTED = {
    "WHISPER_MODEL": ("auto", "a name or a folder"),
    "BATCH_LANGUAGE": ("auto", "or a code such as fr"),
    "BATCH_POLICY": ("threshold", "when a start pays; or deadline, balanced, now"),
    "BATCH_THRESHOLD": ("100", "chunks that make a start pay"),
    "BATCH_MAX_WAIT_HOURS": ("24", "no chunk waits longer"),
    "BATCH_HOURS": ("mon-fri 22:00-06:00 Europe/Berlin", "starts only then; default: any time"),
    "BATCH_MAX_RUNTIME_HOURS": ("2", "then the GPU is stopped; transcripts are kept"),
    "BATCH_SCHEDULER_CHECK_HOURS": ("1", "hours between two ticks of the schedule"),
    "BATCH_MAX_DOLLARS_PER_DAY": ("5.00", "default: no budget"),
    "BATCH_NOTIFY_EMAIL": ("me@example.com", "default: no message"),
}
"""Defaults or examples that are written as comments, each with a remark."""
_PLAIN = re.compile(r"[\w./:@,+~=%-]+")


def render_env(values: Mapping[str, str]) -> str:
    """The text of a `.env`; names outside the groups come last."""
    lines = [f"# {line}" for line in HEADER]
    grouped = {name for names in GROUPS.values() for name in names}
    for title, names in GROUPS.items():
        body = [line for name, remark in names.items() for line in _lines_of(name, remark, values)]
        lines += ["", f"# {title}", *body] if body else []
    rest = [f"{name}={quote_value(text)}" for name, text in values.items() if name not in grouped and text]
    lines += ["", "# Others", *rest] if rest else []
    return "\n".join(lines) + "\n"


def quote_value(text: str) -> str:
    """The value as in `.env`, quoted unless it is plain."""
    if _PLAIN.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _lines_of(name: str, remark: str, values: Mapping[str, str]) -> Iterator[str]:
    if text := values.get(name, ""):
        yield f"{name}={quote_value(text)}" + (f"  # {remark}" if remark else "")
    elif name in SUGGESTED:
        example, note = SUGGESTED[name]
        yield f"# {name}={example}  # {note}"
