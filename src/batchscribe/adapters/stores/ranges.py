"""Lists a large bucket in parallel ranges of keys, in key order.

S3 sends at most 1,000 keys for a request, and the next page only after it: a million keys at 40 ms take 40 s.
Ranges are independent of each other. Their limits are keys of the last complete listing, about SPACING apart,
so that each range is one request. They are hints: the ranges between any limits cover every key exactly once.
A range that turns out to be long (the whole bucket at its first listing) is measured before it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from batchscribe.adapters.stores.obstore_store import PAGE, TURN_SECONDS, await_result
from batchscribe.adapters.stores.rules import is_odd
from batchscribe.core.objects import ObjectInfo
from batchscribe.detached import write_atomically
from batchscribe.protocols import Store

STREAMS = 64
SPACING = 950
"""Keys of a range when its limits are remembered: 50 more still fit into its one page."""
LONG = 10
"""Pages after which a range is divided."""
PARTS = 3
"""More parts find the end of a range sooner, but more of them are empty: `python -m bench.listing` sends 2.3
requests for each page of a first listing with 3, and 3.8 with 64."""
_DIGITS = "0123456789:"
_KINDS = (_DIGITS, "abcdefghijklmnopqrstuvwxyz{", "ABCDEFGHIJKLMNOPQRSTUVWXYZ[", "/0")
"""Kinds of characters in order, each with the character behind it."""


class _Page(NamedTuple):
    objects: list[ObjectInfo]
    complete: bool
    """True if the range has no further keys."""


class _Extent(NamedTuple):
    """A page without its objects."""

    first: str
    last: str
    size: int
    complete: bool


Range = tuple[str, str | None]
"""Keys above the first, up to and including the second; None is the end of the bucket."""


class RangeLister:
    """Lists whole stores on S3 in ranges, anything else as it is.

    `folder` holds the limits of the last listings; it is made when it is needed. `keep_alive` is called for
    each page.
    """

    def __init__(self, folder: Path, keep_alive: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._keep_alive = keep_alive

    def __call__(self, store: Store, prefix: str = "") -> Iterator[ObjectInfo]:
        """Lists as `Store.list` does, with its errors: no listing is partial."""
        # A prefix is one session. Only S3 starts at any key; other services read everything before it.
        if prefix or not store.url.startswith("s3://"):
            return store.list(prefix)
        path = self._folder / f"{sha256(store.url.encode()).hexdigest()}.txt"
        pages = list_pages(store, _read_limits(path), self._keep_alive)
        return chain.from_iterable(_remember_limits(pages, path))


def list_pages(
    store: Store, limits: Iterable[str], keep_alive: Callable[[], None] = lambda: None
) -> Iterator[list[ObjectInfo]]:
    """Yields the objects of all ranges in key order.

    At most PAGE objects at once; STREAMS pages are read ahead.
    """
    with _open_pool() as pool:
        yield from _Listing(store, pool, keep_alive).read(_join_up("", limits, None))


class _Listing:
    """One listing; only `_fetch` and `_survey` run in the pool's threads."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor, keep_alive: Callable[[], None]) -> None:
        self._store = store
        self._pool = pool
        self._keep_alive = keep_alive

    def read(self, ranges: Iterable[Range]) -> Iterator[list[ObjectInfo]]:
        """Yields the pages of consecutive ranges, read ahead."""
        ahead: deque[tuple[str | None, Future[_Page]]] = deque()
        for start, end in ranges:
            if len(ahead) == STREAMS:
                yield from self._follow(*ahead.popleft())
            ahead.append((end, self._submit((start, end))))
        while ahead:
            yield from self._follow(*ahead.popleft())

    def _submit(self, keys: Range) -> Future[_Page]:
        return self._pool.submit(_fetch, self._store, *keys)

    def _follow(self, end: str | None, first: Future[_Page]) -> Iterator[list[ObjectInfo]]:
        """Yields a range from its first page on; divides a long one."""
        page, pages = await_result(first), 1
        while True:
            self._keep_alive()
            if page.objects:
                yield page.objects
            if page.complete:
                return
            last = page.objects[-1].key
            if pages == LONG:
                break
            page, pages = await_result(self._submit((last, end))), pages + 1
        yield from self.read(_join_up(last, self._measure((last, end)), end))

    def _measure(self, keys: Range) -> list[str]:
        """Limits of pages in a range of unknown size.

        They are from a first listing of it in no order. A listing that is not complete after its page
        continues in several parts while a stream is idle.
        """
        sizes: dict[str, int] = {}
        rest, running = [keys], dict[Future[_Extent], Range]()
        while rest or running:
            running |= {self._pool.submit(_survey, self._store, *each): each for each in rest}
            rest = []
            done, _ = wait(running, timeout=TURN_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._keep_alive()
                page, (_, end) = future.result(), running.pop(future)
                if page.size:
                    sizes[page.last] = page.size
                if not page.complete:
                    idle = len(running) + len(rest) < STREAMS
                    rest += divide(page.first, page.last, end, parts=PARTS if idle else 1)
        return _join_small(sizes)


def _fetch(store: Store, start: str, end: str | None) -> _Page:
    """The first page of a range."""
    found = list(islice(store.list(after=start), PAGE))
    if len(found) == PAGE and (end is None or found[-1].key < end):
        return _Page(found, complete=False)
    while end is not None and found and found[-1].key > end:
        found.pop()
    return _Page(found, complete=True)


def _survey(store: Store, start: str, end: str | None) -> _Extent:
    found, complete = _fetch(store, start, end)
    return _Extent(found[0].key if found else "", found[-1].key if found else "", len(found), complete)


def divide(first: str, last: str, end: str | None, *, parts: int) -> list[Range]:
    """Divides the rest of a range into up to `parts` ranges.

    The rest is behind a page from `first` to `last`. The borders are `last` with one character counted on: a
    digit, the end of a folder, and the leftmost character that can be. Characters behind the first that
    changed within the page would change again within one.
    """
    cuts: list[str] = []
    for at in range(min(len(last), _count_common(first, last) + 1)):
        following = [last[:at] + each for each in _count_on(last[at])]
        possible = [cut for cut in following if (end is None or cut < end) and not is_odd(cut)]
        if last[at] in _DIGITS or last[at] == "/" or not cuts:
            cuts += possible
    cuts.sort()
    wanted = min(parts - 1, len(cuts))
    chosen = (cuts[number * len(cuts) // wanted] for number in range(wanted))
    return list(_join_up(last, chosen, end))


def _count_common(one: str, other: str) -> int:
    """Length of the common start."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def _count_on(character: str) -> str:
    """Likely characters after this one, and the one behind its kind."""
    kind = next((kind for kind in _KINDS if character in kind[:-1]), "")
    later = kind[kind.index(character) + 1 :] if kind else ""
    return later[:: -(len(later) // len(_DIGITS) + 1)]


def _join_small(sizes: dict[str, int]) -> list[str]:
    """Limits of ranges of at most PAGE keys, from smaller ones.

    `sizes` are those of the smaller ranges, by their last key.
    """
    limits, held, last = list[str](), 0, ""
    for key, size in sorted(sizes.items()):
        if held + size > PAGE:
            limits.append(last)
            held = 0
        held, last = held + size, key
    return limits


def _join_up(start: str, limits: Iterable[str], end: str | None) -> Iterator[Range]:
    """The ranges from `start` to `end` between limits.

    Limits that do not increase or are odd are ignored.
    """
    for key in limits:
        if key > start and not is_odd(key):
            yield start, key
            start = key
    yield start, end


@contextmanager
def _open_pool() -> Iterator[ThreadPoolExecutor]:
    """Opens a pool that is not awaited: a listing may be abandoned."""
    pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="listing")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_limits(path: Path) -> Iterator[str]:
    # Limits that cannot be read cost time, nothing else.
    with suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8", newline="\n") as file:
        yield from (line.removesuffix("\n") for line in file)


def _remember_limits(pages: Iterator[list[ObjectInfo]], path: Path) -> Iterator[list[ObjectInfo]]:
    """Passes the pages on; finally writes every SPACING-th key."""
    limits: list[str] = []
    following = SPACING - 1
    for page in pages:
        limits += (info.key for info in page[following::SPACING] if not is_odd(info.key))
        following = (following - len(page)) % SPACING
        yield page
    if limits:
        with suppress(OSError):
            write_atomically(path, "".join(f"{key}\n" for key in limits).encode())
