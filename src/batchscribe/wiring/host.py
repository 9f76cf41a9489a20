"""Handles a controller's request on the GPU host, over ssh.

`python -m batchscribe.wiring.host WORD`: the request's data is JSON on standard input; the last line of
standard output is the reply.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from batchscribe import __version__, aws_environment
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import AGENT_COMMAND, GpuHost
from batchscribe.core.run.host import (
    CREDENTIALS,
    CREDENTIALS_FIX,
    CheckRequest,
    EnvironmentRequest,
    Finding,
    HostPlace,
    HostReply,
    StartRequest,
    failed,
    passed,
)
from batchscribe.core.run.manifest import EngineSpec, decode
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    MissingCredentialsError,
    TransientError,
)
from batchscribe.wiring.engines import engine_factory, find_problems, known_factory
from batchscribe.wiring.environments import ask_other, find_other_python
from batchscribe.wiring.stores import open_store


def main(words: Sequence[str] | None = None, *, agent: Sequence[str] = AGENT_COMMAND) -> int:
    """Replies to one request on standard output; returns the exit status."""
    os.umask(0o077)
    home = Path.home()
    os.chdir(home)
    asked = list(sys.argv[1:] if words is None else words)
    reply = answer(asked, GpuHost(home, SystemClock(), agent=agent), sys.stdin.buffer.read)
    # A library may have printed an incomplete line before.
    sys.stdout.write(f"\n{msgspec.json.encode(reply).decode()}\n")
    sys.stdout.flush()
    return 1 if reply.error else 0


def answer(words: Sequence[str], asked: GpuHost, data: Callable[[], bytes]) -> HostReply:
    """The reply to one request; a BatchscribeError becomes an error reply."""
    try:
        return _handle_request(words, asked, data)
    except BatchscribeError as error:
        lasting = not isinstance(error, TransientError)
        return HostReply(release=__version__, error=str(error), permanent=lasting)


def _handle_request(words: Sequence[str], asked: GpuHost, data: Callable[[], bytes]) -> HostReply:
    if list(words) == ["version"]:
        return asked.report_version()
    kind, respond = _HANDLERS.get(" ".join(words), (None, None))
    if kind is None or respond is None:
        raise MisconfiguredError(
            f"the GPU host does not support the request {' '.join(words)!r}: run `batchscribe gpu setup`"
        )
    return respond(asked, decode(data(), kind))


def inspect(request: CheckRequest) -> HostReply:
    """Loads the engine and lists the stores, in this process's environment."""
    if python := find_other_python(request.engine.engine):
        return ask_other(python, "inspect", request)
    engine = _check_engine(request.engine, busy=request.busy)
    return HostReply(release=__version__, findings=(engine, *_check_stores(request)))


def fetch(host: GpuHost, spec: EngineSpec) -> HostReply:
    """Fetches the engine's model, if it has one, and records its files."""
    if python := find_other_python(spec.engine):
        return ask_other(python, "fetch", spec)
    factory = known_factory(spec.engine)
    done = factory.fetch(spec) is not None
    if spec.speakers:
        from batchscribe.adapters.engines.speaker_model import fetch_speaker_model

        fetch_speaker_model()
    with suppress(MisconfiguredError):  # the check of the engine, which follows, reports it
        host.keep_model_files(factory.model_files(spec))
    return HostReply(release=__version__, done=done)


def _check_engine(spec: EngineSpec, *, busy: bool) -> Finding:
    what = f"engine {spec.engine}"
    if busy:
        detail = "not tested: a run is in progress, and a second model could exhaust the GPU's memory"
        return passed(what, detail)
    try:
        if problems := find_problems(spec):
            raise MisconfiguredError("; ".join(problems))
        engine = engine_factory(spec.engine).load(spec)
    except BatchscribeError as error:
        return failed(what, str(error), "batchscribe gpu setup")
    return passed(what, f"loads {spec.model or 'its own model'} ({engine.device})")


def _check_stores(request: CheckRequest) -> Iterator[Finding]:
    region, endpoint = aws_environment.find_place(region=request.region, endpoint=request.endpoint)
    for url in dict.fromkeys(filter(None, (request.source, request.output, request.control))):
        remedy = "fix this; rights: the instance's role, or `batchscribe gpu setup --env-file FILE`"
        try:
            expected = url != request.control
            store = open_store(url, region=region, endpoint=endpoint, expected=expected)
            next(iter(store.list()), None)
        except MissingCredentialsError:
            yield failed(CREDENTIALS, f"no AWS credentials on the host, for {url}", CREDENTIALS_FIX)
        except BatchscribeError as error:
            yield failed("store", str(error), remedy)
        else:
            yield passed("store", f"{url} can be listed")


_HANDLERS: dict[str, tuple[type[msgspec.Struct], Callable[[GpuHost, Any], HostReply]]] = {
    "start": (StartRequest, GpuHost.start),
    "check": (CheckRequest, GpuHost.check_host),
    "environment": (EnvironmentRequest, GpuHost.keep_environment),
    "place": (HostPlace, GpuHost.keep_place),
    "prefetch": (EngineSpec, GpuHost.prefetch_model),
    "inspect": (CheckRequest, lambda _, request: inspect(request)),
    "fetch": (EngineSpec, fetch),
}
"""Requests besides `version`: (type of the data, handler)."""


if __name__ == "__main__":
    raise SystemExit(main())
