"""Parts of docs/costs.md, computed from the price table and from cited speeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchscribe.adapters.aws.prices import load_packaged_prices
from batchscribe.core.decide.fixed import MONTH_HOURS
from batchscribe.core.decide.hosted import HOSTED, HostedService
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, Rate, Usd, cost
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.prices import (
    ADDRESS,
    FUNCTION_TIME,
    GP3,
    INVOCATIONS,
    READS,
    SCHEDULED,
    SNAPSHOT,
    WRITES,
    Price,
    PriceKind,
)
from docs.tables import table

REGION = "us-east-1"
"""The region with a price of everything on the page."""
TYPE = "g4dn.xlarge"
GPUS = {
    "g4dn.xlarge": "T4, 16 GB",
    "g5.xlarge": "A10G, 24 GB",
    "g6.xlarge": "L4, 24 GB",
    "g6e.xlarge": "L40S, 48 GB",
    "g6f.2xlarge": "a quarter of an L4, 5.7 GB",
}
CHUNK_SECONDS = 10.0
THRESHOLDS = (50, 100, 200, 500, 1000)
DISK_GB, HOST_DISK_GB = 20, 8
PASS_CPU_SECONDS = 0.9
"""Of a pass that finds nothing to do, measured: docs/serverless.md."""
FUNCTION_CPU_GB = 1.769
"""Memory of a function that has one processor; less memory has a part of it, for as many GB-seconds."""
PASSES = MONTH_HOURS * 60 + MONTH_HOURS
"""Of the watchdog each minute and the tick each hour, a month."""
FREE_GB_SECONDS, FREE_INVOCATIONS, FREE_SCHEDULED = 400_000, 1_000_000, 14_000_000
"""Each month, of Lambda and of EventBridge Scheduler."""
VOLUMES = (10, 100, 1000)
"""Audio hours a month."""
COMPARED = tuple(each for each in HOSTED if each.name.startswith(("AWS", "AssemblyAI Universal-2", "Groq")))
LONGEST_WAIT_HOURS = 24.0
"""The default of BATCH_MAX_WAIT_HOURS."""
ORIGINAL = {
    100: ("15 min", "$0.13", "20 min"),
    500: ("1 h", "$0.53", "70 min"),
    1000: ("2 h", "$1.05", "140 min"),
}
"""Of the original's README, by chunks: GPU time, cost, total time."""


@dataclass(frozen=True)
class Speed:
    """A published speed: audio seconds for each second of work."""

    engine: str
    instance_type: str
    times: float
    source: str


CITED = (
    Speed("Whisper large-v3, file by file", "g4dn.xlarge", 16.0, "whisper-jax#186"),
    Speed("Parakeet TDT 0.6b v2", "g4dn.xlarge", 57.6, "onnx-asr, benchmarks"),
    Speed("Whisper large-v3-turbo, batches of 60", "g6.xlarge", 73.0, "ahxxm/serverless-audio-transcriber"),
    Speed("Parakeet, bf16, batches of 8", "g6.xlarge", 238.0, "E2E Networks, 2026-03"),
)


def describe_fixed() -> str:
    """Prices of what is billed beside the GPU, each with an example."""
    disk, snapshot, address = _find(PriceKind.DISK, GP3), _find(PriceKind.DISK, SNAPSHOT), _address()
    host, read, write = _host(), _find(PriceKind.REQUESTS, READS), _find(PriceKind.REQUESTS, WRITES)
    listing = write.high.times(100_000 / 1000 * 24 * 30 / 1000)
    chunk_hour = (read.high + write.high).times(3600 / CHUNK_SECONDS / 1000)
    fixed_address = "not needed, see [Addresses](aws.md#addresses)"
    whole_host = f"{_host_month()} a month with {HOST_DISK_GB} GB and an address"
    disks = f"20 GB: {_month(disk, 20)}; 60 GB: {_month(disk, 60)}"
    each_chunk = f"one for each chunk; with its read, chunks of ten seconds: {chunk_hour} an audio hour"
    rows = [
        ("disk of the GPU instance (gp3), also while it is stopped", _show(disk), disks),
        ("snapshot of an image to launch from", _show(snapshot), f"20 GB: {_month(snapshot, 20)}"),
        ("Elastic IP", _show(address), f"{_month(address, MONTH_HOURS)}: {fixed_address}"),
        (
            "address assigned at the start",
            "the same rate, while it runs",
            f"{address.high} for an hour of GPU",
        ),
        (
            f"scheduler host, such as `{host.name}`",
            _show(host),
            f"{whole_host}; your own machine: nothing more",
        ),
        ("listing: one request for 1,000 keys", _show(write), f"hourly, 100,000 keys: {listing} a month"),
        ("reads of a run", _show(read), "one for each chunk"),
        ("writes of a run", _show(write), each_chunk),
    ]
    return table(("what", "price", "example (computed)"), rows)


def describe_function() -> str:
    """Monthly price of a scheduler as a function, beside a small machine's."""
    rows = [
        (name, f"{quantity:,.0f}", _show(price), f"${price.high.times(quantity / 1000).text(2)}")
        for name, quantity, price in _function_parts()
    ]
    total, billed = _function_month(), _function_month(free=True)
    rows += [
        ("sum, without free amounts", "", "", f"${total.text(2)}"),
        ("sum, if nothing else uses the account's free amounts", "", "", f"${billed.text(2)}"),
        (f"`{_host().name}` with {HOST_DISK_GB} GB and an address", "", "", f"${_host_month().text(2)}"),
    ]
    return table(("what", "a month", "price", "dollars"), rows)


def describe_prices() -> str:
    """Prices of GPUs, and the costs of a minute and of a month."""
    rows = []
    for name, gpu in GPUS.items():
        rate, spot = _rate(name), _find(PriceKind.SPOT, name)
        minute, month = (cost(rate, seconds).text(places) for seconds, places in ((60, 4), (30 * 86400, 0)))
        typical = f"${spot.low.text(3)} to ${spot.high.text(3)}"
        rows.append((f"`{name}`", gpu, f"${rate.per_hour.text(4)}", typical, f"${minute}", f"${month}"))
    return table(
        ("type", "GPU", "an hour", "typical spot", "shortest bill of a start", "left on for 30 days"), rows
    )


def describe_thresholds() -> str:
    """Cost and delay of one start by threshold, with the assumed values."""
    rows = []
    for chunks in THRESHOLDS:
        audio, seconds, amount = _estimate(chunks)
        each = amount.per(audio / 3600)
        assert each is not None
        waits = (_describe_wait(audio, volume) for volume in (1, 10))
        minutes = (f"{value / 60:.1f} min" for value in (audio, seconds))
        rows.append((str(chunks), *minutes, f"${amount.text(3)}", f"${each.text(3)}", *waits))
    head = ("chunks", "audio", "billed", "cost of the start", "cost of an audio hour")
    return table((*head, "first chunk waits at 1 audio hour a day", "at 10 a day"), rows)


def describe_designs() -> str:
    """Dollars of an audio hour with fixed costs, beside hosted services."""
    rows = [
        (
            name,
            f"${fixed.text(2)}",
            *(f"${_all_in(fixed, hours, 100).text(3)}" for hours in VOLUMES),
        )
        for name, fixed in _designs()
    ]
    rows += [(each.name, "$0.00", *[f"${each.per_audio_hour.text(3)}"] * len(VOLUMES)) for each in COMPARED]
    return table(("design", "fixed, a month", *(f"at {hours:,} h a month" for hours in VOLUMES)), rows)


def describe_break_even() -> str:
    """Audio hours a month from which each design is cheaper."""
    rows = [
        (
            name,
            str(chunks),
            *(_break_even_hours(fixed, chunks, each) for each in COMPARED),
        )
        for name, fixed in _designs()
        for chunks in (100, 1000)
    ]
    return table(("design", "chunks a start", *(f"than {each.name}" for each in COMPARED)), rows)


def describe_hosted() -> str:
    """Break-even of one start against hosted services, in chunks."""
    priors = Priors()
    assumed = (priors.setup_seconds + priors.release_seconds, priors.speed)
    rows = [
        (
            each.name,
            str(each.per_audio_hour),
            f"{each.as_of}, {each.source}",
            *(_break_even_chunks(each.per_audio_hour, *speed) for speed in (assumed, (90.0, 57.6))),
        )
        for each in HOSTED
    ]
    return table(("service", "an audio hour", "as of", "before the first run", "with published speed"), rows)


def describe_original() -> str:
    """The performance table of the original, beside cited speeds."""
    rows: list[Sequence[str]] = [
        ("the original, by its README", *(", ".join(shown) for shown in ORIGINAL.values()))
    ]
    for speed in CITED:
        cells = (_describe_session(speed, chunks) for chunks in ORIGINAL)
        rows.append(
            (
                f"{speed.engine}, `{speed.instance_type}` ({speed.times:g} times speech: {speed.source})",
                *cells,
            )
        )
    return table(("GPU time, cost, total time", *(f"{chunks:,} chunks" for chunks in ORIGINAL)), rows)


def _describe_session(speed: Speed, chunks: int) -> str:
    priors = Priors()
    seconds = priors.setup_seconds + chunks * CHUNK_SECONDS / speed.times + priors.release_seconds
    amount = cost(_rate(speed.instance_type), seconds)
    minutes = f"{seconds / 60:.1f} min"
    return f"{minutes}, ${amount.text(3)}, {minutes}"


def _designs() -> Iterator[tuple[str, Usd]]:
    """(name, fixed dollars a month)."""
    disk, snapshot = _find(PriceKind.DISK, GP3), _find(PriceKind.DISK, SNAPSHOT)
    parked, image = disk.high.times(DISK_GB), snapshot.high.times(DISK_GB)
    host = _host_month()
    yield f"stopped instance with {DISK_GB} GB, scheduler host `{_host().name}`", parked + host
    yield f"launch from an image of {DISK_GB} GB, the same host", image + host
    yield "no host: stopped instance, scheduler in AWS Lambda", parked + _function_month()
    yield "no host: stopped instance, schedule on a machine that you have", parked


def _function_parts() -> Iterator[tuple[str, float, Price]]:
    """(name, quantity a month, price of 1,000) of each part of a scheduler as a function."""
    seconds = PASSES * PASS_CPU_SECONDS * FUNCTION_CPU_GB
    yield "GB-seconds of the passes", seconds, _find(PriceKind.FUNCTION, FUNCTION_TIME)
    yield "invocations", PASSES, _find(PriceKind.FUNCTION, INVOCATIONS)
    yield "scheduled invocations", PASSES, _find(PriceKind.FUNCTION, SCHEDULED)
    # A tick records its decision: one write, and one listing after it.
    yield "listings and writes of the state", PASSES + 2 * MONTH_HOURS, _find(PriceKind.REQUESTS, WRITES)
    yield "reads of the state", PASSES, _find(PriceKind.REQUESTS, READS)


def _function_month(*, free: bool = False) -> Usd:
    """Dollars a month; with `free`, without what AWS gives away each month."""
    given = {FUNCTION_TIME: FREE_GB_SECONDS, INVOCATIONS: FREE_INVOCATIONS, SCHEDULED: FREE_SCHEDULED}
    return sum(
        (
            price.high.times(max(0.0, quantity - (given.get(price.name, 0) if free else 0)) / 1000)
            for _, quantity, price in _function_parts()
        ),
        start=Usd(0),
    )


def _all_in(fixed: Usd, hours: int, chunks: int) -> Usd:
    share = fixed.per(hours)
    assert share is not None
    return share + _per_audio_hour(chunks)


def _per_audio_hour(chunks: int) -> Usd:
    """Cost of an audio hour on the GPU, with its address."""
    audio, seconds, amount = _estimate(chunks)
    each = (amount + _address().high.times(seconds / 3600)).per(audio / 3600)
    assert each is not None
    return each


def _break_even_hours(fixed: Usd, chunks: int, service: HostedService) -> str:
    saved = service.per_audio_hour - _per_audio_hour(chunks)
    if saved.micros <= 0:
        return "never"
    return f"{math.ceil(fixed.micros / saved.micros):,} h"


def _break_even_chunks(price: Usd, billed: float, speed: float) -> str:
    """Fewest chunks for which a start costs less than the hosted price."""
    rate = _rate(TYPE)
    saved = price.dollars - rate.per_hour.dollars / speed
    hours = cost(rate, billed).dollars / saved
    return f"{math.ceil(hours * 3600 / CHUNK_SECONDS)} chunks"


def _estimate(chunks: int) -> tuple[float, float, Usd]:
    """(audio seconds, billed seconds, cost) of one start, with the assumed values."""
    priors, audio = Priors(), chunks * CHUNK_SECONDS
    seconds = priors.setup_seconds + audio / priors.speed + priors.release_seconds
    assert seconds > MINIMUM_BILLED_SECONDS
    return audio, seconds, cost(_rate(TYPE), seconds)


def _describe_wait(audio: float, hours_a_day: float) -> str:
    """Time until so much audio has arrived, bounded by the longest wait."""
    hours = audio / 3600 / hours_a_day * 24
    return (
        f"{hours:.1f} h" if hours < LONGEST_WAIT_HOURS else f"{LONGEST_WAIT_HOURS:.0f} h (the longest wait)"
    )


def _host_month() -> Usd:
    """Scheduler host with disk and address, a month."""
    hourly = (_host().high + _address().high).times(MONTH_HOURS)
    return hourly + _find(PriceKind.DISK, GP3).high.times(HOST_DISK_GB)


def _host() -> Price:
    return _find(PriceKind.HOST, "t4g.nano")


def _address() -> Price:
    return _find(PriceKind.ADDRESS, ADDRESS)


def _month(price: Price, quantity: int) -> str:
    return f"{price.high.times(quantity)} a month"


def _show(price: Price) -> str:
    return f"{price.high} per {price.kind.unit} ({price.source}, {price.as_of})"


def _find(kind: PriceKind, name: str) -> Price:
    found = load_packaged_prices().find(kind, name, REGION)
    assert found is not None, name
    return found


def _rate(name: str) -> Rate:
    found = load_packaged_prices().find_rate(name, REGION)
    assert found is not None, name
    return found
