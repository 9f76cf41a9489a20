"""Pages of the sessions: list, reader, audio and downloads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from batchscribe.controller.commands.why import list_errors
from batchscribe.controller.sessions import (
    AssembledSession,
    add_names,
    assemble_session,
    known_unreadable,
    read_session,
)
from batchscribe.core.decide.packing import Priors
from batchscribe.core.redaction import printable
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.text.flags import ALL as ALL_FLAGS
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.subtitles import FORMATS
from batchscribe.dashboard.audio import ChunkAudio
from batchscribe.dashboard.cached import Cached
from batchscribe.dashboard.context import Context, page
from batchscribe.dashboard.index import (
    FLAGS,
    STATES,
    SessionEntry,
    SessionIndex,
    build_index,
    keep_details,
    read_details,
)
from batchscribe.dashboard.reader import MEDIA_TYPES, ReaderAudio, describe_session, name_download
from batchscribe.errors import (
    AudioError,
    BatchscribeError,
    ObjectNotFoundError,
    PermanentError,
    TransientError,
)
from batchscribe.wiring.estimates import read_expected
from batchscribe.wiring.scanners import new_scanner

ROWS = 50
"""Sessions of one page of the list."""
MAX_AGE = timedelta(minutes=5)
"""Age from which a page has the index made again."""
PAUSE = timedelta(seconds=15)
"""Shortest time between two listings that users ask for."""
SIMILAR = 5
KEPT = 4
"""Sessions kept for the requests that follow their page; one of ten hours takes 50 MB."""
NOT_IN_PARTS = ("being recorded", "stale")
"""Flags of the index that a session's transcript does not have."""
ORDERS = {"newest": "newest first", "name": "by name", "longest": "longest first"}
SEARCH = ("q", "state", "flag", "min", "max", "order")


class _KeyConvertor(Convertor[str]):
    """A session's id in a path: any characters, line breaks too."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("key", _KeyConvertor())


def routes(context: Context) -> list[Route]:
    """Routes of the sessions' pages."""
    library = SessionLibrary(context)
    return [
        Route("/sessions", library.show_list),
        Route("/sessions/refresh", library.refresh, methods=["POST"]),
        Route("/sessions/{session:key}", library.show_reader),
        Route("/audio/{number}/{session:key}", library.serve_audio),
        Route("/transcripts/{kind}/{session:key}", library.serve_transcript),
    ]


def make_url(prefix: str, session: str) -> str:
    """URL of a session below a prefix, as one segment."""
    return f"/{prefix}/{quote(session, safe='')}"


@dataclass(frozen=True)
class _KeptSession:
    """An assembled session, current as long as its mark."""

    mark: str
    found: AssembledSession

    @cached_property
    def values(self) -> dict[str, Any]:
        """Values of the reader's template."""
        session = self.found.transcript.session
        name, url = name_download(session), make_url("audio/*", session)
        downloads = [(kind, f"{name}.{kind}", make_url(f"transcripts/{kind}", session)) for kind in FORMATS]
        return describe_session(self.found, ReaderAudio(url=url), downloads)


class SessionLibrary:
    """The sessions of the stores. Handlers run in threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._scanner = new_scanner(
            context.settings, context.source, context.output, context.clock, manual=False
        )
        self._audio = ChunkAudio(context.settings, context.source)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _KeptSession] = OrderedDict()
        self._index = Cached(self._make_index, context.clock)
        self._listed: SessionIndex | None = None
        """The last index: a failed listing does not remove it."""

    def show_list(self, request: Request) -> Response:
        """The list: search, one page of rows, age of the index."""
        problem = self._read_index(patience=1.0)
        index = self._listed
        asked = {name: request.query_params.get(name, "")[:200] for name in SEARCH}
        found = list(search_sessions(index, asked)) if index else []
        last = max(1, -(-len(found) // ROWS))
        number = min(last, _parse_count(request.query_params.get("page", "")) or 1)
        search = {name: value for name, value in asked.items() if value}
        rows = found[(number - 1) * ROWS : number * ROWS]
        return page(
            "sessions.html",
            request,
            index=index,
            busy=self._index.reading,
            problem=problem,
            source=self._context.settings.source,
            asked=asked,
            found=len(found),
            rows=[(entry, make_url("sessions", entry.session)) for entry in rows],
            number=number,
            last=last,
            links={n: f"/sessions?{urlencode({**search, 'page': n})}" for n in (number - 1, number + 1)},
            states=STATES,
            flags=(*FLAGS, *ALL_FLAGS),
            orders=ORDERS,
        )

    def refresh(self, _request: Request) -> Response:
        """Lists the stores again, then shows the list."""
        last = self._index.last
        if last is None or self._context.clock.now() - last.at >= PAUSE:
            self._index.refresh(patience=1.0)
        return RedirectResponse("/sessions", status_code=303)

    def show_reader(self, request: Request) -> Response:
        """The reader of one session, or the reason why there is none."""
        session = request.path_params["session"]
        entry = self._find_entry(session)
        if entry is None:
            return self._show_unknown(request, session)
        try:
            found = self._assemble(entry)
        except (ObjectNotFoundError, TransientError, PermanentError) as error:
            errors = list_errors(self._scanner, session)
            return page("no_transcript.html", request, entry=entry, reason=str(error), errors=errors)
        listed = [(flag, count, FLAGS[flag]) for flag, count in entry.flags if flag in NOT_IN_PARTS]
        return page("session.html", request, **found.values, listed=listed)

    def serve_audio(self, request: Request) -> Response:
        """The audio of one chunk, by its number in the session.

        An error is one line of plain text.
        """
        try:
            key = self._find_chunk(request.path_params["session"], request.path_params["number"])
            return self._audio.answer(request, key, decoded="decoded" in request.query_params)
        except BatchscribeError as error:
            status = (
                503 if isinstance(error, TransientError) else 415 if isinstance(error, AudioError) else 404
            )
            text = request.app.state.redact(printable(str(error)))
            return PlainTextResponse(f"{text}\n", status_code=status)

    def serve_transcript(self, request: Request) -> Response:
        """A session's transcript as a file."""
        session, kind = request.path_params["session"], request.path_params["kind"]
        entry = self._find_entry(session)
        if entry is None or kind not in FORMATS:
            return self._show_unknown(request, session)
        data = self._context.settings.open_rendering().render(self._assemble(entry).found.transcript, kind)
        name = f"{name_download(session)}.{kind}"
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        return Response(data, headers=headers, media_type=MEDIA_TYPES[kind])

    def _make_index(self) -> SessionIndex:
        try:
            priors = read_expected(self._context.settings)[1]
        except BatchscribeError:  # the index requires neither a price nor a GPU host's record
            priors = Priors()
        with self._context.open_ledger() as ledger:
            scanner = replace(self._scanner, unreadable=known_unreadable(ledger))
        listed = keep_details(build_index(scanner, priors), self._listed)
        self._listed = listed  # the list can be shown while lengths and flags are read
        self._listed = read_details(listed, self._context.output)
        return self._listed

    def _read_index(self, *, patience: float) -> str:
        """Renews an old index; returns the last listing's error."""
        last = self._index.last
        lasts = PAUSE if last is not None and last.error else MAX_AGE
        found = self._context.renew(self._index, lasts, patience=patience)
        return found.error if found else ""

    def _find_entry(self, session: str) -> SessionEntry | None:
        """The session of the index. Raises the listing's error without index."""
        problem = self._read_index(patience=30.0 if self._listed is None else 1.0)
        if self._listed is None:
            raise TransientError(problem or "the store is being listed; try again in a minute")
        return self._listed.by_id.get(session)

    def _show_unknown(self, request: Request, session: str) -> Response:
        names = list(self._listed.by_id) if self._listed else []
        asked = session.rstrip("/")
        near = [name for name in names if asked == name.rstrip("/")]
        near = near or get_close_matches(session[:200], names, SIMILAR)
        links = [(name, make_url("sessions", name)) for name in near]
        return page("no_session.html", request, status=404, session=session, links=links)

    def _find_chunk(self, session: str, number: str) -> str:
        """Key of a chunk. Raises ObjectNotFoundError."""
        entry = self._find_entry(session)
        parts = self._assemble(entry).found.transcript.parts if entry else ()
        key = next((part.key for at, part in enumerate(parts) if str(at) == number), "")
        name = audio_name(key)
        # The session file is an object like others: it names no object outside its session.
        if name is None or name.session != session:
            raise ObjectNotFoundError(f"session {session!r} has no chunk {number}")
        return key

    def _assemble(self, entry: SessionEntry) -> _KeptSession:
        """The session's transcript, from its current session file or its chunks.

        Kept until the session changes. Raises ObjectNotFoundError without a transcript, and what the stores
        raise.
        """
        output = self._context.output
        rendering = add_names(output, entry.session, self._context.settings.open_rendering())
        mark = rendering.sign(entry.digest if entry.complete else str(self._listed and self._listed.at))
        with self._lock:
            kept = self._kept.get(entry.session)
        if kept is not None and kept.mark == mark:
            return kept
        published = read_session(output, entry.session, mark) if entry.complete else None
        if published and not any(MISSING in part.flags for part in published.parts):
            found = AssembledSession(transcript=published, chunks=entry.chunks, missing={})
        else:
            found = assemble_session(self._scanner, entry.session, rendering)
        with self._lock:
            self._kept[entry.session] = made = _KeptSession(mark, found)
            self._kept.move_to_end(entry.session)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def search_sessions(index: SessionIndex, asked: Mapping[str, str]) -> Iterator[SessionEntry]:
    """Yields the sessions that match every condition; lengths are in minutes."""
    part = asked["q"].casefold()
    shortest, longest = (_parse_minutes(asked[name]) for name in ("min", "max"))
    for entry in _sort_entries(index, asked["order"]):
        flags = {flag for flag, _count in entry.flags}
        if (
            part in entry.name.casefold()
            and asked["state"] in {"", entry.state}
            and (not asked["flag"] or asked["flag"] in flags)
            and (shortest is None or entry.seconds >= shortest * 60)
            and (longest is None or entry.seconds <= longest * 60)
        ):
            yield entry


def _sort_entries(index: SessionIndex, order: str) -> list[SessionEntry]:
    entries = list(index.entries)
    if order == "name":
        entries.sort(key=lambda entry: entry.session)
    elif order == "longest":
        entries.sort(key=lambda entry: -entry.seconds)
    return entries


def _parse_minutes(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _parse_count(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0
