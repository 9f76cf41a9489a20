"""Seals: what this scheduler stored is recognized, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest

from batchscribe.core.run.seals import is_sealed, seal

DATA = b'{"id":"run-1","cost":{"micros":1}}'
SEALED = seal(DATA, "secret")


def test_a_sealed_object_is_recognized_and_reads_as_before() -> None:
    assert is_sealed(SEALED, "secret")
    assert msgspec.json.decode(SEALED).items() >= msgspec.json.decode(DATA).items()


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        (DATA, "secret"),
        (SEALED, "another"),
        (SEALED, ""),
        (SEALED.replace(b":1}", b":2}"), "secret"),
        (SEALED + b" ", "secret"),
        (seal(DATA, ""), ""),
        (b"", "secret"),
        (seal(DATA, "secret").replace(b'"id"', b'"no"'), "secret"),
    ],
    ids=[
        "unsealed",
        "another key",
        "no key",
        "another value",
        "more",
        "never sealed",
        "empty",
        "another field",
    ],
)
def test_anything_else_is_not(data: bytes, secret: str) -> None:
    assert not is_sealed(data, secret)
