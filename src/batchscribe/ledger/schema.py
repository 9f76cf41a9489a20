"""The ledger's SQL: named queries and numbered migrations."""

from __future__ import annotations

import re
import sqlite3
from functools import cache
from importlib import resources

from batchscribe.errors import MisconfiguredError

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")
_FILE = re.compile(r"(\d{4})_\w+\.sql")


@cache
def queries() -> dict[str, str]:
    text = (resources.files(__package__) / "queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))


@cache
def migrations() -> dict[int, str]:
    """Migrations by number, in order."""
    folder = resources.files(__package__) / "migrations"
    found = ((match, file) for file in folder.iterdir() if (match := _FILE.fullmatch(file.name)))
    texts = {int(match[1]): file.read_text(encoding="utf-8") for match, file in found}
    return dict(sorted(texts.items()))


def migrate(db: sqlite3.Connection) -> None:
    """Applies the missing migrations in one transaction.

    `db` is in autocommit mode. Raises MisconfiguredError if a newer batchscribe wrote the ledger.
    """
    known = migrations()
    if _read_version(db) == max(known):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY) STRICT")
        done = _read_version(db)
        _refuse_newer(done, max(known))
        for number in [number for number in known if number > done]:
            for statement in _split_statements(known[number]):
                db.execute(statement)
            db.execute("INSERT INTO migrations (number) VALUES (?)", (number,))
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def refuse_damage(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError if pages are damaged or a table is missing."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _make_damage_error(found)
    done = _read_version(db)
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    texts = [text for number, text in migrations().items() if number <= done]
    if missing := {name for text in texts for name in _TABLE.findall(text)} - there:
        raise _make_damage_error(f"no table {', '.join(sorted(missing))}")


def _make_damage_error(found: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(found)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _refuse_newer(done: int, known: int) -> None:
    if done > known:
        raise MisconfiguredError(
            f"the ledger was written by a newer batchscribe (tables {done}, this one supports {known}): "
            "install that version again; nothing was changed"
        )


def _read_version(db: sqlite3.Connection) -> int:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone():
        return 0
    return int(db.execute("SELECT coalesce(max(number), 0) FROM migrations").fetchone()[0])


def _split_statements(script: str) -> list[str]:
    """Splits a script into statements: `executescript` would commit the surrounding transaction."""
    found, statement = [], ""
    for piece in script.split(";")[:-1]:
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
