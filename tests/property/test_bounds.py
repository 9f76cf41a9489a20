"""Whatever JSON lies in the store, a control object is read within its bounds or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.core import bounds
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.run import host
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import EngineSpec, Tally, Timings, WorkerEnd
from batchscribe.core.run.records import decode_run, encode_run
from batchscribe.core.run.runs import Machine, Run
from batchscribe.errors import MisconfiguredError

AT = datetime(2026, 5, 1, tzinfo=UTC)
FAILURE = wire.Failure(key="k", etag="e", run="r", kind=wire.FailureKind.CHUNK, message="m", at=AT)
CHUNK = wire.ManifestChunk(key="k", etag="e", size=1, session="s/", transcript="t")
VALUES: list[msgspec.Struct] = [
    wire.Manifest(
        run="r",
        worker=0,
        release="1",
        source="s",
        output="o",
        deadline=AT,
        engine=EngineSpec(engine="e"),
        settings_hash="h",
        chunks=(CHUNK,),
    ),
    wire.Progress(
        run="r",
        worker=0,
        sequence=1,
        phase=wire.Phase.WORKING,
        at=AT,
        total=1,
        tally=Tally(),
        timings=Timings(starved_by={"fetch": 1.0}),
        in_flight=("k",),
    ),
    wire.ExitRecord(
        run="r",
        worker=0,
        end=WorkerEnd.FINISHED,
        at=AT,
        tally=Tally(done=1),
        timings=Timings(),
        failures=(FAILURE,),
        seconds_by_type={"mp3": 1.0},
        bytes_by_type={"mp3": 1},
        flags={"partial": 1},
    ),
    FAILURE,
    wire.QuarantineRecord(key="k", etag="e", decoder="d", attempts=3, message="m", at=AT),
    host.HostClaim(run="r", created=AT, deadline=AT, output="o", launch=host.ClaimLaunch.BOOT),
    host.BootRecord(run="r", boot="b", at=AT, release="1"),
    host.HostEnd(run="r", worker=0, why="w", at=AT),
    host.InstanceRecord(
        instance="i-1",
        release="1",
        at=AT,
        claim=host.HostClaim(run="r", created=AT, deadline=AT, output="o", launch=host.ClaimLaunch.BOOT),
    ),
    host.HostPlace(instance="i-1", home="s3://b"),
    host.CheckRequest(now=AT, engine=EngineSpec(engine="e"), gpu=True),
]
RUN = Run(
    id="r",
    provider="ec2",
    machines=(Machine(id="i-1"),),
    policy="now",
    reason="due",
    created=AT,
    deadline=AT,
    rate=Rate(per_hour=Usd(526_000), source="table"),
)
HUGE = "an integer of 5,000 digits"
EXTREMES = st.sampled_from(
    [
        -1,
        -0.5,
        -1e308,
        1e308,
        2**63,
        -(2**63),
        10**400,
        HUGE,
        "nan",
        "NaN",
        "-Infinity",
        "1e999",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "2026-05-01T00:00:00",
        "\x1b[2J",
        "../..",
        "x" * 5000,
        "r\n",
        None,
        True,
        [],
        {},
        {"k": -1},
        {"": 1e308},
        [-1],
    ]
)
JSON = st.recursive(
    EXTREMES | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """JSON, huge integers too: those that no strict writer takes."""
    if value == HUGE:
        return "1" + "0" * 4999
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return msgspec.json.encode(value).decode()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(key)}:{written(item)}" for key, item in value.items()) + "}"
    return "[" + ",".join(map(written, value)) + "]"


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document that can be replaced."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(item, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[type[msgspec.Struct], str]:
    value = draw(st.sampled_from(VALUES))
    document = msgspec.json.decode(msgspec.json.encode(value))
    for path in draw(st.lists(st.sampled_from(list(paths(document))), min_size=1, max_size=3, unique=True)):
        try:
            document = replaced(document, path, draw(JSON))
        except (KeyError, IndexError, TypeError):
            continue  # another replacement took that place away
    return type(value), written(document)


def numbers(value: object) -> Iterator[object]:
    if isinstance(value, msgspec.Struct):
        yield from (each for name in value.__struct_fields__ for each in numbers(getattr(value, name)))
    elif isinstance(value, dict):
        yield from (each for item in value.items() for part in item for each in numbers(part))
    elif isinstance(value, tuple):
        yield from (each for item in value for each in numbers(item))
    else:
        yield value


def in_bounds(value: object) -> bool:
    match value:
        case bool() | None | msgspec.UnsetType():
            return True
        case int() | float():
            return 0 <= value <= 2**60
        case datetime():
            # What is computed from it does not overflow either.
            spans = timedelta(seconds=1e10), timedelta(days=30)
            return bounds.EARLIEST <= value <= bounds.LATEST and all(
                value - span < value.astimezone(UTC) < value + span for span in spans
            )
    return isinstance(value, str)


@settings(max_examples=200, deadline=None)
@given(spoilt())
def test_what_is_read_is_in_bounds(case: tuple[type[msgspec.Struct], str]) -> None:
    kind, text = case
    try:
        value = wire.decode(text.encode(errors="surrogatepass"), kind)
    except MisconfiguredError:
        return
    assert all(map(in_bounds, numbers(value)))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_we_write_is_read(value: msgspec.Struct) -> None:
    assert wire.decode(msgspec.json.encode(value), type(value)) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "../other"),
        ("created", "9999-12-31T23:59:59Z"),
        ("created", "2026-05-01T00:00:00"),
        ("cost", {"micros": -5_000_000}),
        ("cost", {"micros": 10**16}),
        ("audio_seconds", "nan"),
        ("chunks_done", -1),
        ("worked", {"starved_by": {"\x1b]0;title": 1}}),
    ],
)
def test_a_run_out_of_bounds_is_not_readable(field: str, value: object) -> None:
    assert decode_run(encode_run(RUN)) == RUN
    document = msgspec.json.decode(encode_run(RUN)) | {field: value}
    with pytest.raises(MisconfiguredError, match="not a readable run"):
        decode_run(msgspec.json.encode(document))
