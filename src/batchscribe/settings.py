"""Settings as one frozen value: flags override the environment, which overrides `.env`.

Only this module and `aws_environment` read os.environ. `.env` is parsed, never executed. Each field declares
its setting's name and parser; an undeclared name under our prefixes is an error, so no typo is ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

from batchscribe import aws_environment
from batchscribe.core import setting_parsers as parse
from batchscribe.core.decide.hours import Hours, UnknownPartError, parse_hours
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import PolicyName
from batchscribe.core.decide.offers import EC2, FLEET, LOCAL
from batchscribe.core.setting_conflicts import CONFLICTS
from batchscribe.core.setting_names import GivenNames, SettingChecks
from batchscribe.core.setting_parsers import Name
from batchscribe.env_file import read_env_file, refuse_open_file, single_quoted
from batchscribe.errors import MisconfiguredError
from batchscribe.machine_settings import MachineSettings
from batchscribe.text_settings import as_path

DEFAULT, DOTENV, ENVIRONMENT, FLAG = "default", ".env", "environment", "flag"
MASK = "(hidden)"


_VARIABLE = re.compile(r"\$[A-Za-z_]\w*|\$\{[^}]*\}?|%[A-Za-z_]\w*%", re.ASCII)
_POSITIVE = "a whole number, 1 or more"
_HOURS = "hours above 0, such as 2 or 0.5"
_STORE = "s3://bucket/prefix, gs://…, az://…, file:///folder or a folder"
_FOLDER = "a folder; relative paths start at the folder of .env"
_STATE = f"{_FOLDER}; or a URL as of BATCH_SOURCE"


class Effective(NamedTuple):
    """One row of `batchscribe config`, masked if secret."""

    name: str
    value: str | float | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(MachineSettings):
    """All settings, typed. `folder` contains `.env`; relative paths start there."""

    source: Annotated[str, Name("BATCH_SOURCE", parse.store_url, _STORE, placed=True)] = ""
    output: Annotated[str, Name("BATCH_OUTPUT", parse.store_url, _STORE, placed=True)] = ""
    control: Annotated[str, Name("BATCH_CONTROL", parse.store_url, _STORE, placed=True)] = ""
    policy: Annotated[PolicyName, Name("BATCH_POLICY", parse.member(PolicyName), ", ".join(PolicyName))] = (
        PolicyName.THRESHOLD
    )
    cpu_lane: Annotated[str, Name("BATCH_CPU_LANE", parse.one_of("auto", "off"), "auto or off")] = "off"
    threshold: Annotated[int, Name("BATCH_THRESHOLD", parse.whole(1, 10**9), _POSITIVE)] = 100
    max_wait_hours: Annotated[float, Name("BATCH_MAX_WAIT_HOURS", parse.number(0, 8760), _HOURS)] = 24.0
    hours: Annotated[
        Hours | None, Name("BATCH_HOURS", parse_hours, "hours such as mon-fri 22:00-06:00 Europe/Berlin")
    ] = None
    max_runtime_hours: Annotated[float, Name("BATCH_MAX_RUNTIME_HOURS", parse.number(0, 168), _HOURS)] = 2.0
    check_hours: Annotated[
        float, Name("BATCH_SCHEDULER_CHECK_HOURS", parse.number(0, 24), _HOURS + ", up to 24")
    ] = 1.0
    min_age_minutes: Annotated[
        float, Name("BATCH_MIN_AGE_MINUTES", parse.number(-1, 10_080), "minutes, 0 or more")
    ] = 5.0
    live_lock: Annotated[str, Name("BATCH_LIVE_LOCK", parse.matching(), "a root key or off")] = (
        "batch-lock.json"
    )
    poll_seconds: Annotated[float | None, Name("BATCH_POLL_SECONDS", parse.number(0, 600), "up to 600 s")] = (
        None
    )
    """Seconds between two polls of a run; None: the provider's default."""
    limit: Annotated[int | None, Name("BATCH_LIMIT", parse.whole(1, 10**9), _POSITIVE)] = None
    max_dollars_per_day: Annotated[
        Usd | None, Name("BATCH_MAX_DOLLARS_PER_DAY", parse.dollars, "dollars, such as 5.00")
    ] = None
    max_attempts: Annotated[int, Name("BATCH_MAX_ATTEMPTS", parse.whole(1, 100), "1 to 100")] = 3
    max_audio_hours: Annotated[float, Name("BATCH_MAX_AUDIO_HOURS", parse.number(0, 1000), _HOURS)] = 12.0
    max_object_mb: Annotated[int, Name("BATCH_MAX_OBJECT_MB", parse.whole(1, 10**6), _POSITIVE)] = 4096
    launch: Annotated[
        str, Name("BATCH_LAUNCH", parse.one_of("auto", "boot", "ssh", "local"), "auto, boot, ssh or local")
    ] = "auto"
    cloud_guard: Annotated[
        str, Name("BATCH_CLOUD_GUARD", parse.one_of("eventbridge", "off"), "eventbridge or off")
    ] = "off"
    guard_role_arn: Annotated[
        str,
        Name(
            "BATCH_GUARD_ROLE_ARN",
            parse.role_arn,
            "arn:aws:iam::<account>:role/<name>",
        ),
    ] = ""
    region: Annotated[
        str,
        Name("AWS_REGION", parse.matching(r"[a-z0-9-]+"), "a region, e.g. us-east-2", "AWS_DEFAULT_REGION"),
    ] = ""
    endpoint_url: Annotated[
        str, Name("AWS_ENDPOINT_URL", parse.matching(r"https?://\S+"), "http://… or https://…")
    ] = ""
    price_file: Annotated[Path | None, Name("BATCH_PRICE_FILE", as_path, "a file", placed=True)] = None
    host_hourly_cost: Annotated[
        Usd | None, Name("BATCH_HOST_HOURLY_COST", parse.dollars, "dollars, e.g. 0.0042")
    ] = None
    engine: Annotated[str, Name("BATCH_ENGINE", parse.matching(r"[a-z0-9-]+"), "auto or an engine")] = "auto"
    model: Annotated[str, Name("WHISPER_MODEL", parse.matching(), "auto, a model name or a folder")] = "auto"
    compute_type: Annotated[
        str, Name("WHISPER_COMPUTE_TYPE", parse.matching(r"[a-z0-9_]+"), "auto, float16, int8, …")
    ] = "auto"
    language: Annotated[str | None, Name("BATCH_LANGUAGE", parse.language, "auto or a code, e.g. en")] = None
    task: Annotated[
        str, Name("BATCH_TASK", parse.one_of("transcribe", "translate"), "transcribe or translate")
    ] = "transcribe"
    chunk_overlap_ms: Annotated[
        int | None, Name("BATCH_CHUNK_OVERLAP_MS", parse.milliseconds, "auto or milliseconds up to 30000")
    ] = None
    channels: Annotated[str, Name("BATCH_CHANNELS", parse.one_of("mix", "split"), "mix or split")] = "mix"
    notify_email: Annotated[
        tuple[str, ...], Name("BATCH_NOTIFY_EMAIL", parse.addresses, "e-mail addresses")
    ] = ()
    smtp_url: Annotated[
        str,
        Name("BATCH_SMTP_URL", parse.matching(r"smtps?://\S+"), "smtp(s)://user:pass@host:port", secret=True),
    ] = field(default="", repr=False)
    slack_webhook_url: Annotated[
        str, Name("SLACK_WEBHOOK_URL", parse.matching(r"https?://\S+"), "an https:// URL", secret=True)
    ] = field(default="", repr=False)
    notify_urls: Annotated[
        tuple[str, ...], Name("BATCH_NOTIFY_URLS", parse.urls, "space-separated apprise URLs", secret=True)
    ] = field(default=(), repr=False)
    webhook_url: Annotated[
        str, Name("BATCH_WEBHOOK_URL", parse.matching(r"https?://\S+"), "an https:// URL", secret=True)
    ] = field(default="", repr=False)
    dashboard_token: Annotated[
        str,
        Name(
            "BATCH_DASHBOARD_TOKEN",
            parse.matching(r"[A-Za-z0-9._~-]{16,}"),
            "16 or more letters and digits",
            secret=True,
        ),
    ] = field(default="", repr=False)
    state: Annotated[str, Name("BATCH_STATE_DIR", parse.folder_or_url, _STATE, placed=True)] = ".batchscribe"
    reports_dir: Annotated[Path, Name("BATCH_REPORTS_DIR", as_path, _FOLDER, placed=True)] = Path(
        "batch-reports"
    )
    log_dir: Annotated[Path, Name("BATCH_LOG_DIR", as_path, _FOLDER, placed=True)] = Path("logs")

    state_dir: Path = Path(".batchscribe")
    """The folder of `state`, or the command's copy of the state in a store (`ledger.kept_state`)."""
    folder: Path = Path()
    origins: Mapping[str, str] = field(default_factory=dict)
    """Origin by name: default, .env, environment or flag."""
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The AWS_* names of `.env`: boto3 and obstore read them only from the environment."""
    problems: tuple[str, ...] = ()
    """Errors in the settings that were skipped, so that a command can still stop a GPU."""
    warnings: tuple[str, ...] = ()
    """Names without effect: settings of the original scripts, near misses of other programs' names."""
    hidden: tuple[str, ...] = field(default=(), repr=False)
    """AWS secrets from any origin, for redaction only."""

    @property
    def max_wait(self) -> timedelta:
        return timedelta(hours=self.max_wait_hours)

    @property
    def max_runtime(self) -> timedelta:
        return timedelta(hours=self.max_runtime_hours)

    @property
    def check_interval(self) -> timedelta:
        return timedelta(hours=self.check_hours)

    @property
    def has_lane(self) -> bool:
        """True if this machine's processor works beside a GPU elsewhere."""
        return self.cpu_lane != "off" and self.provider != LOCAL

    @property
    def state_url(self) -> str:
        """URL of the store with the state directory; empty for a folder."""
        return self.state if "://" in self.state else ""

    @property
    def min_age(self) -> timedelta:
        return timedelta(minutes=self.min_age_minutes)

    @property
    def live_lock_key(self) -> tuple[str, str] | None:
        """(URL, key) of the live lock; None if it is off.

        The URL is that of the bucket's root or of the source folder.
        """
        if self.live_lock.lower() == "off" or not self.source:
            return None
        parts = urlsplit(self.source)
        root = self.source if parts.scheme == "file" else f"{parts.scheme}://{parts.netloc}"
        return root, self.live_lock.lstrip("/")

    def by_region(self) -> tuple[Settings, ...]:
        """The settings of each region of created machines; else these alone."""
        if self.provider != FLEET or not self.further_regions:
            return (self,)
        home = replace(self, further_regions=())
        return (
            home,
            *(
                replace(
                    home,
                    region=there.name,
                    launch_template=there.template,
                    subnets=there.subnets,
                    guard_role_arn=there.role,
                )
                for there in self.further_regions
            ),
        )

    def require(self, name: str) -> str:
        """Value of a required setting. Raises MisconfiguredError if it is missing."""
        attribute, declared = _DECLARED[name]
        value = getattr(self, attribute)
        if not value:
            file = self.folder / DOTENV
            other = "" if file.exists() else "; `batchscribe init` writes that file"
            tip = next((f"; {text}" for text in self.warnings if f"use {name} " in text), other)
            raise MisconfiguredError(f"{name} is not set: put {name}=… into {file} ({declared.allowed}){tip}")
        return str(value)

    def list_secrets(self) -> tuple[str, ...]:
        """Texts to redact from logs, messages and reports, longest first."""
        urls = filter(None, (self.smtp_url, self.slack_webhook_url, self.webhook_url, *self.notify_urls))
        found = {
            *self.hidden,
            self.dashboard_token,
            *(part for url in urls for part in parse.secret_parts(url)),
        }
        return tuple(sorted(filter(None, found), key=len, reverse=True))

    def list_effective(self) -> list[Effective]:
        """All settings with their values, masked if secret, and their origins."""
        rows = [
            Effective(name, _shown_value(self, attribute, declared), self.origins.get(name, DEFAULT))
            for name, (attribute, declared) in _DECLARED.items()
        ]
        rows += [Effective(name, MASK, DOTENV) for name in self.aws if name not in KNOWN]
        return rows

    def child_environment(self) -> dict[str, str]:
        """Environment of workers on this machine, with `.env`'s AWS_* names."""
        environ = dict(os.environ)
        aws_environment.export_settings(self.aws, self.region, environ)
        return environ

    def apply_aws_environment(self) -> None:
        """Adds `.env`'s AWS_* names to this process's environment."""
        aws_environment.export_settings(self.aws, self.region, os.environ)


def journal_stream() -> str:
    """The journal's stream ("device:inode") as systemd sets it; empty without systemd."""
    return os.environ.get("JOURNAL_STREAM", "")


def load(
    environ: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
    flags: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> Settings:
    """The settings in effect: flags override `environ`, which overrides `.env`.

    `environ` is by default this process's. `.env` is read only from `folder` (default: the working
    directory). An empty value means the default. Raises MisconfiguredError for an unknown name, an invalid
    value, an unreadable line, or a `.env` with secrets that others can read. With `lenient` these errors go
    to `problems` and defaults are used: a broken settings file must not prevent stopping a GPU.
    """
    home = (folder or Path.cwd()).absolute()
    checked = SettingChecks(lenient)
    written = checked(lambda: read_env_file(home / DOTENV)) or {}
    layers = {DOTENV: written, ENVIRONMENT: os.environ if environ is None else environ, FLAG: flags or {}}
    warnings: list[str] = []
    for origin, layer in layers.items():
        given = GivenNames(tuple(layer), KNOWN, WHERE[origin], environment=origin == ENVIRONMENT)
        checked(given.refuse_unknown)
        warnings += given.list_warnings()
    checked(lambda: refuse_open_file(home / DOTENV, [name for name in _SECRET_NAMES if written.get(name)]))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, (attribute, declared) in _DECLARED.items():
        text, origins[name] = _find_text(declared, layers)
        if text and declared.placed:
            checked(partial(_refuse_variables, name, text, origins[name], home))
        parsed = checked(partial(_parse_value, declared, text, origins[name], home)) if text else None
        if parsed is not None:
            values[attribute] = parsed
    completed = _with_defaults(values, home)
    for refuse_conflict in CONFLICTS:
        checked(partial(refuse_conflict, completed))
    found: dict[str, Any] = {"problems": tuple(checked.problems), "warnings": tuple(warnings)}
    return Settings(**completed, folder=home, origins=origins, **found, **_find_aws_names(layers))


def _with_defaults(values: dict[str, Any], home: Path) -> dict[str, Any]:
    """Adds the defaults that depend on other values."""
    for name in ("reports_dir", "log_dir"):
        values.setdefault(name, home / getattr(_BARE, name))
    values.setdefault("state", str(home / _BARE.state_dir))
    values["state_dir"] = home / _BARE.state_dir if "://" in values["state"] else Path(values["state"])
    values.setdefault("output", values.get("source", ""))
    values.setdefault("provider", EC2 if values.get("instance_id") else LOCAL)
    values.setdefault("cloud_guard", "eventbridge" if values["provider"] in {EC2, FLEET} else "off")
    return values


def _find_text(declared: Name, layers: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """(text, origin) of a setting, from the highest layer with a text."""
    for origin in (FLAG, ENVIRONMENT, DOTENV):
        for name in (declared.name, declared.other):
            text = layers[origin].get(name, "").strip()
            if text:
                return text, origin
    return "", DEFAULT


def _refuse_variables(name: str, text: str, origin: str, home: Path) -> None:
    """Refuses `$HOME` and the like: a folder would get that name."""
    found = _VARIABLE.search(text)
    if origin == FLAG or "://" in text or found is None:
        return
    if origin == DOTENV and name in single_quoted(home / DOTENV):
        return
    raise MisconfiguredError(
        f"{name} from {WHERE[origin]} is {text!r}, and {found[0]} is not expanded: write the full path, "
        "or start it with ~ (nothing was started)"
    )


def _parse_value(declared: Name, text: str, origin: str, home: Path) -> Any:
    tip = parse.suggest_url(text) if declared.placed else ""
    try:
        if declared.placed and "://" not in text and not tip:
            text = os.path.normpath(home / Path(text).expanduser())
        return declared.parse(text)
    except (ValueError, RuntimeError) as error:
        shown = MASK if declared.secret else repr(text)
        part = f" ({error})" if isinstance(error, UnknownPartError) else ""
        raise MisconfiguredError(
            f"{declared.name} from {WHERE[origin]} is {shown}: must be {declared.allowed}{part}{tip}"
        ) from None


def _find_aws_names(layers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    written = {name: text for name, text in layers[DOTENV].items() if name.startswith("AWS_") and text}
    hidden = {layer.get(name, "") for layer in layers.values() for name in aws_environment.SECRETS}
    return {"aws": written, "hidden": tuple(sorted(hidden - {""}))}


def _shown_value(settings: Settings, attribute: str, declared: Name) -> str | float | None:
    value = getattr(settings, attribute)
    if value in ("", None, ()):
        return None
    if declared.secret:
        return MASK
    if isinstance(value, int | float | Usd):
        return value.dollars if isinstance(value, Usd) else value
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_BARE = Settings()
_DECLARED: dict[str, tuple[str, Name]] = {
    hint.__metadata__[0].name: (attribute, hint.__metadata__[0])
    for attribute, hint in get_type_hints(Settings, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""By name: (attribute, declaration)."""
KNOWN = frozenset(_DECLARED) | {declared.other for _, declared in _DECLARED.values()} - {""}
_SECRET_NAMES = (
    *(name for name, (_, declared) in _DECLARED.items() if declared.secret),
    *aws_environment.SECRETS,
)
WHERE = {DOTENV: "the .env file", ENVIRONMENT: "the environment", FLAG: "the command line"}
"""Origins in messages."""
