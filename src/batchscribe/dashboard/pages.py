"""HTML from templates: the server's pages, and self-contained files."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from batchscribe.core.figures import format_clock, format_count, format_hours, format_minutes, format_size
from batchscribe.core.messages import require_extra
from batchscribe.core.redaction import printable

with require_extra("HTML pages need their extra", "dashboard"):
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

ASSETS: Mapping[str, str] = {
    "style.css": "text/css",
    "report.css": "text/css",
    "page.js": "text/javascript",
    "plots.js": "text/javascript",
    "live.js": "text/javascript",
    "reader.css": "text/css",
    "reader.js": "text/javascript",
    "vendor/uPlot.min.css": "text/css",
    "vendor/uPlot.iife.min.js": "text/javascript",
    "vendor/htmx.min.js": "text/javascript",
    "vendor/idiomorph-ext.min.js": "text/javascript",
}
"""Every file that a page may name, with its media type."""
_MARKED = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d(?::\d\d)?) UTC|`([^`]+)`")
Kind = Literal["server", "file"]


def render_page(template: str, kind: Kind = "file", **values: Any) -> str:
    """Renders a template of `templates/`.

    A page of kind `file` holds its assets; others refer to `/assets/`. Every value is escaped, and characters
    that manipulate the display are shown as escapes.
    """
    return _open_environment(kind).get_template(template).render(**values)


@cache
def read_asset(name: str) -> bytes:
    """Content of one of ASSETS."""
    return (files(__package__) / "assets" / name).read_bytes()


@cache
def name_version(name: str) -> str:
    """Part of an asset's URL that changes with its content.

    So browsers may keep it for ever.
    """
    return hashlib.sha256(read_asset(name)).hexdigest()[:12]


@cache
def _open_environment(kind: Kind) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_show_escapes,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":")}
    environment.filters |= {
        "clock": format_clock,
        "count": format_count,
        "hours": format_hours,
        "minutes": format_minutes,
        "sentence": _mark_text,
        "size": format_size,
        "time": _format_time,
    }
    environment.globals |= {
        "kind": kind,
        "asset": _embed_asset if kind == "file" else _link_asset,
        "file_policy": file_policy,
    }
    return environment


def _show_escapes(value: Any) -> Any:
    """Escapes control and bidirectional characters: keys and transcripts are untrusted."""
    return printable(value, keep="\n\t") if type(value) is str else value


def _format_time(at: datetime, *, seconds: bool = False) -> Markup:
    """A `<time>` in UTC, which the page's script makes local."""
    shown = f"{at:%Y-%m-%d %H:%M:%S}" if seconds else f"{at:%Y-%m-%d %H:%M}"
    exact = Markup(" data-seconds") if seconds else Markup("")
    return Markup('<time datetime="{}"{}>{} UTC</time>').format(at.isoformat(), exact, shown)


def _mark_text(text: str) -> Markup:
    """Marks times such as "2026-11-23 12:00 UTC", and commands between backticks."""
    text, marked, done = printable(text, keep="\n\t"), Markup(), 0
    for found in _MARKED.finditer(text):
        marked += escape(text[done : found.start()])
        day, hour, command = found.groups()
        marked += (
            Markup("<code>{}</code>").format(command)
            if command
            else Markup('<time datetime="{0}T{1}Z">{0} {1} UTC</time>').format(day, hour)
        )
        done = found.end()
    return marked + escape(text[done:])


def _link_asset(name: str) -> Markup:
    """Element that refers to an asset of the server."""
    if name.endswith(".css"):
        return Markup('<link rel="stylesheet" href="/assets/{}?v={}">').format(name, name_version(name))
    return Markup('<script src="/assets/{}?v={}" defer></script>').format(name, name_version(name))


def _embed_asset(name: str) -> Markup:
    """Element that holds an asset: our own text, without end tags (tested)."""
    element = "style" if name.endswith(".css") else "script"
    return Markup(f"<{element}>{read_asset(name).decode()}</{element}>")  # noqa: S704


@cache
def file_policy() -> str:
    """Content-Security-Policy of a single file: our scripts, by their hashes."""
    scripts = [name for name, media in ASSETS.items() if media == "text/javascript"]
    hashes = (base64.b64encode(hashlib.sha256(read_asset(name)).digest()).decode() for name in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    others = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: blob:"
    return f"{others}; script-src {allowed}"
