"""A bucket of any size on 127.0.0.1: pages of ListObjectsV2 made from the number of a key, after a latency.

It holds no object and little memory, so that the client is measured and not the server. Each page costs it
about 1.5 ms of CPU. It runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, overload
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
AUDIO, TRANSCRIPTS = 50, 47
SESSION = AUDIO + TRANSCRIPTS
SESSIONS_OF_USER = 100
NOW = datetime(2026, 3, 1, tzinfo=UTC)
"""A time at which no object of the bucket is too young."""
_XML = "http://s3.amazonaws.com/doc/2006-03-01/"


def session_key(number: int) -> str:
    """Sessions of 50 chunks, 47 of them transcribed: the shape of a recorder's bucket."""
    session, place = divmod(number, SESSION)
    user, session = divmod(session, SESSIONS_OF_USER)
    name = f"chunk-{place:03}.webm" if place < AUDIO else f"transcription-chunk-{place - AUDIO:03}.json"
    return f"users/u{user:06}/audio/sessions/session_{session:05}/{name}"


def flat_key(number: int) -> str:
    """One folder with audio alone, numbered as calls are: no delimiter divides it."""
    return f"calls/2026-{number:012}.mp3"


SHAPES: dict[str, Callable[[int], str]] = {"sessions": session_key, "flat": flat_key}


@dataclass(frozen=True)
class Keys(Sequence[str]):
    """`size` sorted keys, each made when it is read."""

    size: int
    key: Callable[[int], str]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self.key(each) for each in range(*number.indices(self.size))]
        if not 0 <= number < self.size:
            raise IndexError(number)
        return self.key(number)


def render(keys: Keys, query: dict[str, list[str]]) -> bytes:
    """The page that S3 sends for this query, with a delimiter or without one."""
    asked = {name: values[0] for name, values in query.items()}
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    after = max(asked.get("continuation-token", ""), asked.get("start-after", ""))
    first = max(bisect_left(keys, prefix), bisect_right(keys, after) if after else 0)
    end = bisect_left(keys, prefix + "\U0010ffff") if prefix else len(keys)
    size = min(PAGE, int(asked.get("max-keys", PAGE)))
    text = quote if asked.get("encoding-type") == "url" else escape
    numbers = range(first, end)
    page = (
        _folders(keys, prefix, delimiter, numbers, size)
        if delimiter
        else _objects(keys, numbers[:size], text)
    )
    body, last, following = page
    more = following < end
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
    head = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{_XML}"><Name>bench</Name>'
        f"<Prefix>{text(prefix)}</Prefix><MaxKeys>{size}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
    )
    return f"{head}{token}{body}</ListBucketResult>".encode()


def _objects(keys: Keys, numbers: range, text: Callable[[str], str]) -> tuple[str, str, int]:
    body = "".join([_object(number, text(keys.key(number))) for number in numbers])
    return body, keys.key(numbers[-1]) if numbers else "", numbers.stop


def _object(number: int, key: str) -> str:
    written = f"2026-01-{1 + number % 28:02}T{number % 24:02}:{number % 60:02}:00.000Z"
    return (
        f"<Contents><Key>{key}</Key><LastModified>{written}</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>150000</Size><StorageClass>STANDARD</StorageClass>"
        "</Contents>"
    )


def _folders(keys: Keys, prefix: str, delimiter: str, numbers: range, size: int) -> tuple[str, str, int]:
    rows, last = list[str](), ""
    first, end = numbers.start, numbers.stop
    while first < end and len(rows) < size:
        name, found, _ = keys.key(first)[len(prefix) :].partition(delimiter)
        last = prefix + name + found
        if found:
            rows.append(f"<CommonPrefixes><Prefix>{last}</Prefix></CommonPrefixes>")
            last += "\U0010ffff"
            first = bisect_right(keys, last)
        else:
            rows.append(_object(first, last))
            first += 1
    return "".join(rows), last, first


class _Connection(asyncio.Protocol):
    def __init__(self, keys: Keys, requests: Any, latency: float) -> None:
        self._keys, self._requests, self._latency = keys, requests, latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (at := self._received.find(b"\r\n\r\n")) >= 0:
            line = self._received[:at].split(b"\r\n", 1)[0].decode()
            self._received = self._received[at + 4 :]
            self._requests.value += 1
            method, target, _ = line.split()
            asyncio.get_running_loop().call_later(self._latency, self._answer, method, target)

    def _answer(self, method: str, target: str) -> None:
        place = urlsplit(target)
        query = parse_qs(place.query, keep_blank_values=True)
        body = render(self._keys, query) if "list-type" in query else b""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        if method == "HEAD":
            # Each key that was listed exists.
            head = (
                'HTTP/1.1 200 OK\r\nContent-Length: 150000\r\nETag: "e"\r\n'
                "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
            )
        self._transport.write(head.encode() + body)


@dataclass
class CannedBucket:
    """The server's process: its address, and its requests so far."""

    endpoint: str
    requests: Any


@contextmanager
def canned_bucket(count: int, shape: str, latency: float) -> Iterator[CannedBucket]:
    """Serves `count` keys on 127.0.0.1 until the end of the block; `latency` in seconds."""
    context = multiprocessing.get_context("spawn")
    requests = context.Value("i", 0, lock=False)
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, count, shape, requests, latency), daemon=True)
    process.start()
    try:
        yield CannedBucket(ours.recv(), requests)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Any, count: int, shape: str, requests: Any, latency: float) -> None:
    asyncio.run(_serve_forever(pipe, Keys(count, SHAPES[shape]), requests, latency))


async def _serve_forever(pipe: Any, keys: Keys, requests: Any, latency: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(keys, requests, latency), "127.0.0.1", 0, backlog=512
    )
    pipe.send("http://{}:{}".format(*server.sockets[0].getsockname()))
    await server.serve_forever()
