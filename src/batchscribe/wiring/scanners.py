"""Builds scanners from settings, and explains an empty source."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from itertools import islice

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.stores.ranges import RangeLister
from batchscribe.audio.decoding.frames import decoder_version
from batchscribe.controller.scan import Scanner, no_lock, read_live_lock
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.decide.packing import Priors
from batchscribe.core.scan.backlog import Backlog, LiveLock
from batchscribe.core.scan.chunks import audio_name
from batchscribe.errors import BatchscribeError
from batchscribe.protocols import Clock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.seams import open_settings_store, open_stores

LISTINGS = "listings"
"""Folder in the state directory: the limits of the last listings."""
SETUP = timedelta(seconds=Priors().setup_seconds)
MOST_NAMED = 3
MOST_PROBED = 20
"""Folders above an empty source in which audio is searched."""
PROBE = 200
"""Objects listed of one folder."""


def open_scanner(settings: Settings) -> Scanner:
    """Builds the scanner of a command that only reads."""
    source, output = open_stores(settings)
    return new_scanner(settings, source, output, SystemClock(), manual=False)


def new_scanner(
    settings: Settings,
    source: Store,
    output: Store,
    clock: Clock,
    *,
    manual: bool,
    keep_alive: Callable[[], None] = lambda: None,
    only: frozenset[str] = frozenset(),
) -> Scanner:
    """Builds the scanner; a `manual` one ignores age and live lock."""
    return Scanner(
        source,
        output,
        clock=clock,
        min_age=timedelta(0) if manual else settings.min_age,
        live_lock=no_lock if manual else _find_live_lock(settings, clock),
        longest_lock=max(timedelta(0), settings.max_wait - settings.check_interval - SETUP),
        decoder=decoder_version() if settings.provider == LOCAL else None,  # else a GPU host decodes
        max_attempts=settings.max_attempts,
        keep_alive=keep_alive,
        only=only,
        list_all=RangeLister(settings.state_dir / LISTINGS, keep_alive),
    )


def _find_live_lock(settings: Settings, clock: Clock) -> Callable[[], LiveLock | None]:
    place = settings.live_lock_key
    if place is None:
        return no_lock
    url, key = place
    open_once = cache(lambda: open_settings_store(settings, url))
    return lambda: read_live_lock(open_once(), key, clock.now())


def explain_empty(settings: Settings, backlog: Backlog) -> str:
    """Reports a source without audio, and any beside it; empty with audio."""
    if backlog.sessions or backlog.passed_over:
        return ""
    beside = list_audio_beside(settings.source, partial(open_settings_store, settings))
    hint = f"; audio is under {', '.join(beside)}: set BATCH_SOURCE or --source" if beside else ""
    return f"nothing was found under {settings.source}{hint}"


def list_audio_beside(source: str, open_parent: Callable[[str], Store]) -> list[str]:
    """URLs with audio below the source's nearest parent that has any."""
    scheme, _, path = source.partition("://")
    while path := path.rpartition("/")[0]:
        try:
            found = audio_prefixes(open_parent(f"{scheme}://{path}"))
        except BatchscribeError:  # no right to list there
            return []
        if found or scheme == "file":
            return [f"{scheme}://{path}/{prefix}".rstrip("/") for prefix in found]
    return []


def audio_prefixes(store: Store) -> list[str]:
    """The first MOST_NAMED folders with audio; "" is the top."""
    found: list[str] = []
    after = ""
    for _ in range(MOST_PROBED):
        listed = [info.key for info in islice(store.list(after=after), PROBE)]
        audio = next((key for key in listed if audio_name(key)), None)
        if not listed or len(found) == MOST_NAMED:
            break
        folder, slash, _name = (audio or listed[-1]).partition("/")
        if audio:
            found.append(folder if slash else "")
        after = f"{folder}0" if slash else folder  # "0" follows "/"
    return list(dict.fromkeys(found))
