"""Languages of sessions, identified before a start to choose engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from batchscribe.controller.context import RunConfig, World, log
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.scan.chunks import Chunk
from batchscribe.errors import BatchscribeError, InterruptedRunError, TransientError

LANGUAGE = "language/"
"""Ledger facts: the identified language of a session; empty if it could not be identified."""
MOST_SESSIONS = 20
MOST_SECONDS = 60.0
"""Bounds of one pass: the rest is for the next one."""
MOST_BYTES = 100 * 1024 * 1024
"""Largest file that is read for its language: a scheduler's host may have little memory."""


def identify_sessions(world: World, candidates: Iterable[Chunk]) -> None:
    """Identifies the language of the oldest sessions, each once."""
    known = world.ledger.facts(LANGUAGE)
    open_sessions = dict[str, Chunk]()
    for chunk in candidates:
        if f"{LANGUAGE}{chunk.session}" not in known and not chunk.previously_failed:
            open_sessions.setdefault(chunk.session, chunk)
    try:
        identify = world.open_identifier() if open_sessions else None
    except InterruptedRunError:
        raise
    except BatchscribeError as error:
        log.warning("languages.not_identified", error=str(error))
        return
    if identify is None:
        return
    begin = world.clock.monotonic()
    for chunk in islice(open_sessions.values(), MOST_SESSIONS):
        if world.clock.monotonic() - begin >= MOST_SECONDS:
            return
        world.keep_alive()
        if not _identify_session(world, identify, chunk):
            return


def _identify_session(world: World, identify: Callable[[bytes], str], chunk: Chunk) -> bool:
    """Records a session's language; False if the store does not answer now."""
    fact, language = f"{LANGUAGE}{chunk.session}", ""
    # Recorded before: a file that kills this process is not tried again.
    world.ledger.put(fact, "")
    try:
        language = identify(world.source.get(chunk.key, limit=MOST_BYTES).data)
    except InterruptedRunError:
        world.ledger.put(fact, None)
        raise
    except BatchscribeError as error:
        log.warning("session.not_identified", session=chunk.session, error=str(error))
        if isinstance(error, TransientError):
            world.ledger.put(fact, None)
            return False
    world.ledger.put(fact, language)
    log.info("session.identified", session=chunk.session, language=language or "unknown")
    return True


def take_one_engine(
    world: World, config: RunConfig, chunks: Iterable[Chunk]
) -> tuple[EngineSpec, tuple[Chunk, ...]]:
    """Returns (engine, chunks) of one manifest, by the first chunk's engine."""
    pairs = find_engines(world, config, chunks)
    engine = pairs[0][0] if pairs else config.engine
    return engine, tuple(chunk for needed, chunk in pairs if needed == engine)


def find_engines(world: World, config: RunConfig, chunks: Iterable[Chunk]) -> list[tuple[EngineSpec, Chunk]]:
    """Each chunk behind its engine."""
    known = world.ledger.facts(LANGUAGE)
    return [(config.choose_engine(known.get(f"{LANGUAGE}{chunk.session}", "")), chunk) for chunk in chunks]
