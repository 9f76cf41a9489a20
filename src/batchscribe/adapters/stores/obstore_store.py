"""Object stores over a network, through obstore's synchronous API.

Its asynchronous API aborts the process at exit, and a call that blocks in Rust delays Ctrl-C, so the main
thread waits on futures and only pooled threads call obstore. Never fork while a store is open.

obstore cannot address keys with an empty, `.` or `..` segment or a control character, and one such key ends
its listing. These keys go through `fallback`, a second store at the same place.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from operator import lt
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from batchscribe.adapters.stores.rules import (
    CONNECT_SECONDS,
    READ_SECONDS,
    RETRIES,
    Action,
    ConflictError,
    check_size,
    convert_error,
    create_verified,
    is_odd,
)
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    MissingCredentialsError,
    ObjectNotFoundError,
)
from batchscribe.protocols import Store

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")
PAGE = 1000
NAMED_ODD_KEYS = 20
TURN_SECONDS = 0.5
CLIENT: ClientConfig = {
    "allow_http": True,  # a local endpoint (AWS_ENDPOINT_URL); an https:// one stays https
    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
    "read_timeout": timedelta(seconds=READ_SECONDS),
    "timeout": timedelta(minutes=15),  # for audio files of gigabytes; a stalled read ends at read_timeout
}
RETRY: RetryConfig = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=30)}
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Error>\s*<Code>(\w+)</Code>")
_METADATA_SERVICE = "169.254."


class _OddKeyError(Exception):
    """The listing reached a key that obstore cannot address."""


class ObstoreStore:
    """A Store over one obstore store.

    `base`, empty or ending in `/`, is the prefix of every key.
    """

    def __init__(
        self,
        url: str,
        vendor: ObjectStore,
        *,
        base: str = "",
        fallback: Callable[[], Store] | None = None,
        doubt: Callable[[], str] = str,
    ) -> None:
        self.url = url
        self._vendor = vendor
        self._base = base
        self._open_fallback = fallback
        self._doubt = doubt
        self._fallback: Store | None = None
        self._opening = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="store")
        self._odd: list[str] = []

    @property
    def odd_keys(self) -> tuple[str, ...]:
        """The first odd keys found so far, with reasons."""
        return tuple(self._odd)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        last, quota = after, PAGE
        while True:
            before = last
            try:
                for info in self._list_with_obstore(prefix, last):
                    last = info.key
                    yield info
            except _OddKeyError:
                # If odd keys are close together, use the tolerant listing for longer each time.
                quota = PAGE if last != before else quota * 2
            else:
                return
            seen = 0
            for info in self._list_with_fallback(prefix, last, quota):
                last, seen = info.key, seen + 1
                yield info
            if seen < quota:
                return

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        if is_odd(self._base + key):
            return self._require_fallback().get(key, limit=limit)
        return self._call_in_pool(Action.GET, key, lambda path: self._read_object(path, key, limit))

    def get_range(self, key: str, start: int, length: int) -> Blob:
        if is_odd(self._base + key):
            return self._require_fallback().get_range(key, start, length)
        return self._call_in_pool(Action.GET, key, lambda path: self._read_part(path, start, length))

    def create(self, key: str, data: bytes) -> bool:
        if is_odd(self._base + key):
            return self._require_fallback().create(key, data)
        return create_verified(
            lambda: self._call_in_pool(Action.PUT, key, lambda path: _put_new(self._vendor, path, data)),
            lambda: self.get(key, limit=len(data)),
            data,
        )

    def replace(self, key: str, data: bytes) -> None:
        if is_odd(self._base + key):
            self._require_fallback().replace(key, data)
        else:
            put = partial(obstore.put, self._vendor, file=data, mode="overwrite", use_multipart=False)
            self._call_in_pool(Action.PUT, key, put)

    def delete(self, key: str) -> None:
        if is_odd(self._base + key):
            self._require_fallback().delete(key)
            return
        with suppress(ObjectNotFoundError):
            self._call_in_pool(Action.DELETE, key, lambda path: obstore.delete(self._vendor, path))

    def _read_object(self, path: str, key: str, limit: int | None) -> Blob:
        result = obstore.get(self._vendor, path)  # the body is fetched on request only
        check_size(key, result.meta["size"], limit)
        return Blob(bytes(result.bytes()), _clean_etag(result.meta))

    def _read_part(self, path: str, start: int, length: int) -> Blob:
        try:
            part = obstore.get(self._vendor, path, options={"range": (start, start + length)})
        except BaseError:
            # Stores differ in their errors for a range behind the end.
            meta = obstore.head(self._vendor, path)
            if start < meta["size"]:
                raise
            return Blob(b"", _clean_etag(meta), meta["size"])
        return Blob(bytes(part.bytes()), _clean_etag(part.meta), part.meta["size"])

    def _list_with_fallback(self, prefix: str, after: str, quota: int) -> Iterator[ObjectInfo]:
        """Lists at least `quota` objects, up to a key that obstore supports."""
        for seen, info in enumerate(self._require_fallback().list(prefix, after=after), start=1):
            self._record_odd_key(info.key)
            yield info
            if seen >= quota and not is_odd(self._base + info.key):
                return

    def _list_with_obstore(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Lists through obstore by folder; filters by the rest of the prefix."""
        wanted, start = self._base + prefix, self._base + after if after else ""
        folder, _, rest = wanted.rpartition("/")
        if any(is_odd(name) for name in (folder, start, wanted if rest else "") if name):
            raise _OddKeyError
        if rest and wanted > start:
            yield from self._find_exact_key(prefix)
            start = wanted
        yield from self._list_folder(wanted, folder, start)

    def _find_exact_key(self, key: str) -> Iterator[ObjectInfo]:
        """Yields the object of that key: obstore lists only what follows it."""
        with suppress(ObjectNotFoundError):
            meta = self._call_in_pool(Action.GET, key, lambda path: obstore.head(self._vendor, path))
            yield self._to_info(meta, meta["path"])

    def _list_folder(self, wanted: str, folder: str, start: str) -> Iterator[ObjectInfo]:
        last, checked = start, bool(wanted) or start > "/"
        for page in self._fetch_pages(folder, start):
            paths = [meta["path"] for meta in page]
            if not checked and (first := next((path for path in paths if path > "/"), None)):
                self._check_first_key(first)
                checked = True
            increasing = paths and all(map(lt, (last, *paths), paths))
            if increasing and paths[0].startswith(wanted) and paths[-1].startswith(wanted):
                yield from map(self._to_info, page, paths)
                last = paths[-1]
                continue
            for meta in page:
                path = self._restore_slash(meta["path"], last)
                if path.startswith(wanted):
                    yield self._to_info(meta, path)
                elif path > wanted:
                    return
                last = path

    def _check_first_key(self, path: str) -> None:
        """Raises _OddKeyError if obstore dropped the leading `/` of the first key."""
        try:
            self._call_in_pool(Action.GET, path, lambda name: obstore.head(self._vendor, name))
        except (ObjectNotFoundError, MisconfiguredError) as error:
            raise _OddKeyError from error

    def _fetch_pages(self, folder: str, start: str) -> Iterator[Sequence[ObjectMeta]]:
        """Yields the listing's pages; in the main thread, one is prefetched."""
        stream = obstore.list(self._vendor, folder or None, offset=start or None, chunk_size=PAGE)
        if threading.current_thread() is not threading.main_thread():
            with self._convert_errors(Action.LIST, ""):
                yield from stream
            return
        ahead = self._pool.submit(next, stream, None)
        while True:
            with self._convert_errors(Action.LIST, ""):
                page = await_result(ahead)
            if page is None:
                return
            ahead = self._pool.submit(next, stream, None)
            yield page

    def _restore_slash(self, path: str, last: str) -> str:
        """Restores a trailing `/` that obstore dropped, detected by the order."""
        if path > last:
            return path
        if path + "/" > last:
            self._record_odd_key(path + "/")
            return path + "/"
        raise _OddKeyError

    def _to_info(self, meta: ObjectMeta, path: str) -> ObjectInfo:
        return ObjectInfo(path[len(self._base) :], meta["size"], meta["last_modified"], _clean_etag(meta))

    def _record_odd_key(self, key: str) -> None:
        if len(self._odd) < NAMED_ODD_KEYS and is_odd(self._base + key):
            row = f"{key!r}: listed in another way"
            if row not in self._odd:
                self._odd.append(row)

    def _require_fallback(self) -> Store:
        with self._opening:
            if self._fallback is None:
                if self._open_fallback is None:
                    raise MisconfiguredError(
                        f"{self.url} contains a key with a control character, `//`, `.` or `..`, which is "
                        "not supported in this kind of store: rename it"
                    )
                self._fallback = self._open_fallback()
            return self._fallback

    def _call_in_pool(self, action: Action, key: str, act: Callable[[str], T]) -> T:
        path = self._base + key
        with self._convert_errors(action, key):
            if threading.current_thread() is threading.main_thread():
                return await_result(self._pool.submit(act, path))
            return act(path)

    @contextmanager
    def _convert_errors(self, action: Action, key: str) -> Iterator[None]:
        try:
            yield
        except InvalidPathError as error:
            raise _OddKeyError from error
        except (BaseError, FileNotFoundError) as error:
            raise self._to_own_error(error, action, key) from error

    def _to_own_error(self, error: Exception, action: Action, key: str) -> BatchscribeError:
        path, text = self._base + key, str(error)
        if _STATUS.search(path) or _CODE.search(path):
            text = text.replace(path, "")  # the key must not be mistaken for the response
        status = _find_status(error, text)
        # 404: the machine has no role; 403: a proxy is between.
        if status in {None, 403, 404} and _METADATA_SERVICE in text and _METADATA_SERVICE not in path:
            return MissingCredentialsError(
                f"no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or assign "
                "an instance role to this machine"
            )
        code = _CODE.search(text)
        doubt = "" if status else self._doubt()
        return convert_error(action, self.url, key, status=status, code=code[1] if code else "", doubt=doubt)


def await_result(future: Future[T]) -> T:
    """Waits for a result in short intervals.

    A signal just before a wait, or to another thread, would not end a long one.
    """
    while not future.done():
        wait((future,), timeout=TURN_SECONDS)
    return future.result()


def _put_new(vendor: ObjectStore, path: str, data: bytes) -> None:
    try:
        obstore.put(vendor, path, data, mode="create", use_multipart=False)
    except (AlreadyExistsError, PreconditionError) as error:
        raise ConflictError from error


def _clean_etag(meta: ObjectMeta) -> str:
    return (meta["e_tag"] or "").removeprefix("W/").strip('"')


def _find_status(error: Exception, text: str) -> int | None:
    """The HTTP status; for stores without HTTP, by the error's type."""
    if match := _STATUS.search(text):
        return int(match[1])
    kinds = ((FileNotFoundError, 404), (PermissionDeniedError, 403), (UnauthenticatedError, 401))
    return next((status for kind, status in kinds if isinstance(error, kind)), None)
