"""Parsers of setting values; they raise ValueError and have no defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from batchscribe.core.decide.money import HIGHEST_PRICE, ZERO, Usd
from batchscribe.core.run.cloud_account import FurtherRegion

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Name:
    """A setting's name, parser, and allowed values for the error text."""

    name: str
    parse: Callable[[str], Any]
    allowed: str
    other: str = ""
    secret: bool = False
    placed: bool = False
    """The value is relative to a folder: `parse` gets an absolute path or a URL."""


def matching(pattern: str = r".+") -> Callable[[str], str]:
    """Parser of printable text that matches the whole pattern."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text) or not text.isprintable():
            raise ValueError
        return text

    return parse


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError
        return text.lower()

    return parse


def member(kind: type[E]) -> Callable[[str], E]:
    return lambda text: kind(text.lower())


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def number(above: float, high: float) -> Callable[[str], float]:
    """Parser of a decimal number above `above` and up to `high`."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{0,12}(\.[0-9]{0,12})?", text) or not above < float(text) <= high:
            raise ValueError
        return float(text)

    return parse


def dollars(text: str) -> Usd:
    amount = Usd.parse(text)
    if not ZERO <= amount <= HIGHEST_PRICE:
        raise ValueError
    return amount


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\s,]+", text) if word)


def further_regions(text: str) -> tuple[FurtherRegion, ...]:
    """Parses regions, each with launch template, guard's role, and subnets."""
    regions: list[list[str]] = []
    for word in words(text):
        if _REGION.fullmatch(word):
            regions.append([])
        elif not regions:
            raise ValueError
        regions[-1].append(word)
    return tuple(_parse_region(*region) for region in regions)


def _parse_region(name: str, *details: str) -> FurtherRegion:
    roles = [word for word in details if word.startswith("arn:")]
    subnets = tuple(word for word in details if word.startswith("subnet-"))
    (template,) = (word for word in details if word not in {*roles, *subnets})
    (role,) = map(role_arn, roles) if roles else ("",)
    return FurtherRegion(name=name, template=launch_template(template), role=role, subnets=subnets)


def language(text: str) -> str | None:
    """Parses a language code, to lower case; None for `auto`."""
    return None if text.lower() == "auto" else matching(r"[A-Za-z]{2,3}")(text).lower()


def milliseconds(text: str) -> int | None:
    """Parses milliseconds up to half a minute; None for `auto`."""
    return None if text.lower() == "auto" else whole(0, 30_000)(text)


def addresses(text: str) -> tuple[str, ...]:
    """Parses e-mail addresses, separated by commas or spaces."""
    found = words(text)
    if not found or not all(re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", address) for address in found):
        raise ValueError
    return found


def urls(text: str) -> tuple[str, ...]:
    """Parses URLs separated by blanks or commas; URLs may contain commas."""
    found = tuple(re.split(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", text.strip(" ,")))
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", url) for url in found):
        raise ValueError
    return found


launch_template = matching(r"[A-Za-z0-9()./_-]{3,128}")
role_arn = matching(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+")
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,3}-[0-9]")


def store_url(text: str) -> str:
    """Parses a store's URL or an absolute path, without a trailing slash."""
    if text.startswith("/"):
        return f"file://{quote(matching()(text))}"
    parts = urlsplit(matching()(text))
    if suggest_url(text):
        raise ValueError
    local = parts.scheme == "file"
    if parts.scheme not in _STORES or parts.query or parts.fragment or bool(parts.netloc) == local:
        raise ValueError
    return "file:///" if local and not parts.path.strip("/") else text.rstrip("/")


def folder_or_url(text: str) -> str:
    """Parses a folder, which stays as it is, or a store's URL."""
    return store_url(text) if "://" in text or suggest_url(text) else matching()(text)


def suggest_url(text: str) -> str:
    """Text with the URL that one such as `s3:/x` stands for."""
    found = re.fullmatch(rf"({'|'.join(sorted(_STORES))}):(/?)([^/].*)", text, re.IGNORECASE)
    if found is None:
        return ""
    scheme = found[1].lower()
    return f": did you mean {scheme}://{'/' if scheme == 'file' else ''}{found[3]}?"


_STORES = frozenset({"s3", "gs", "az", "file"})
_HOSTED = frozenset({"http", "https", "smtp", "smtps", "mailto", "mailtos", "json", "jsons", "xml", "xmls"})


def secret_parts(url: str) -> Iterator[str]:
    """Yields a URL and its parts that vendors may print alone.

    These are password, path and its words, query, and fragment. A path of plain lower-case words is no
    secret, because messages contain such words. If the scheme names a vendor, the host part is a token, too.
    """
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    password = login.partition(":")[2]
    path = parts.path.strip("/")
    words = [word for word in (path, *path.split("/")) if not re.fullmatch(r"[a-z/_-]*", word)]
    token = "" if parts.scheme.lower() in _HOSTED else host
    yield from filter(None, (url, password, unquote(password), *words, parts.query, parts.fragment, token))
