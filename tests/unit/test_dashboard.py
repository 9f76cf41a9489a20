"""The server of the pages: who is admitted, what the pages show, what the buttons do."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from batchscribe.core import keys
from batchscribe.core.decide.money import Usd
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, FailureKind
from batchscribe.dashboard import actions
from batchscribe.dashboard.cached import Cached
from batchscribe.dashboard.context import Context
from batchscribe.dashboard.security import HEADERS, list_hosts
from batchscribe.dashboard.server import PromptProtocol, create_app, serve
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.testing.clock import FakeClock
from batchscribe.wiring.fallback import Fallbacks
from batchscribe.wiring.scheduler import Scheduler
from batchscribe.wiring.seams import tick_lock
from support.cli import put_speech, spoken
from support.dashboards import OWN, Pages, fill_ledger, open_pages, quarantine_chunk, settings_of
from support.played_tick import put_in_progress
from support.world import stage

PATHS = ("/", "/live", "/runs", "/run", "/quarantine", "/why", "/settings", "/doctor")
TOKEN = "a-token-of-letters-123"
HOOK = "https://hooks.slack.com/services/T00/B00/abcdefghijklmnop"


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    with open_pages(tmp_path) as made:
        yield made


@pytest.mark.parametrize("path", PATHS)
def test_a_page_without_any_data(pages: Pages, path: str) -> None:
    assert "<h1>" in pages.get(path) or path == "/live"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:8765",
        "",
        "localhost@evil.example",
        "10.0.0.1",
        "[::1",
        "]",
    ],
)
def test_another_host_name_is_refused(pages: Pages, host: str) -> None:
    assert pages.client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8765", "[::1]:8765"])
def test_our_own_names_are_served_on_any_port(pages: Pages, host: str) -> None:
    """Also behind `ssh -L`, which has another port."""
    assert pages.client.get("/healthz", headers={"host": host}).status_code == 200


def test_beyond_the_loopback_addresses_are_names_and_others_are_not(tmp_path: Path, pages: Pages) -> None:
    app = create_app(pages.context, hosts=list_hosts("0.0.0.0"))
    client = TestClient(app, base_url="http://localhost")
    codes = [
        client.get("/healthz", headers={"host": host}).status_code
        for host in ("10.0.0.1:8765", "evil.example")
    ]
    assert codes == [200, 421]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:1"},
        {"origin": "http://["},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
    ],
)
@pytest.mark.parametrize("path", ["/run", "/pause", "/resume", "/doctor", "/quarantine/release"])
def test_a_post_from_another_page_is_refused(pages: Pages, path: str, headers: Mapping[str, str]) -> None:
    assert pages.client.post(path, headers=headers).status_code == 403
    assert not (pages.context.settings.state_dir / FILE_NAME).exists()


@pytest.mark.parametrize(("mode", "code"), [("no-cors", 403), ("cors", 403), ("navigate", 200)])
def test_another_site_may_only_link_to_a_page(pages: Pages, mode: str, code: int) -> None:
    """Else its images could have the store listed, at our cost."""
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
    assert pages.client.get("/run", headers=headers).status_code == code


def test_a_post_of_our_own_page_may_be_known_by_its_origin(pages: Pages) -> None:
    answer = pages.client.post("/pause", headers={"origin": "http://localhost"}, follow_redirects=False)
    assert answer.status_code == 303


@pytest.mark.parametrize(
    "path", ["/assets/../pages.py", "/assets/%2e%2e/pages.py", "/runs/..%2f..%2fetc", "/nothing"]
)
def test_a_path_leads_nowhere_else(pages: Pages, path: str) -> None:
    assert "There is no such page" in pages.get(path, 404)


def test_a_body_is_refused(pages: Pages) -> None:
    assert pages.client.post("/pause", headers=OWN, content=b"x").status_code == 413


@pytest.mark.parametrize(("path", "header"), [("/healthz", "x" * 33_000), (f"/healthz?x={'x' * 33_000}", "")])
def test_a_large_head_is_refused(pages: Pages, path: str, header: str) -> None:
    assert pages.client.get(path, headers={"x-large": header}).status_code == 431


@pytest.mark.parametrize("path", ["/", "/nothing", "/assets/style.css", "/healthz"])
def test_every_answer_has_the_headers(pages: Pages, path: str) -> None:
    headers = pages.client.get(path).headers
    assert set(HEADERS) <= set(headers)
    assert "unsafe" not in headers["content-security-policy"]


def test_a_token_comes_by_the_url_once_and_then_as_a_cookie(tmp_path: Path) -> None:
    with open_pages(tmp_path, token=TOKEN) as pages:
        client = pages.client
        assert client.get("/").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        first = client.get(f"/runs?outcome=x&token={TOKEN}", follow_redirects=False)
        assert (first.status_code, first.headers["location"]) == (303, "/runs?outcome=x")
        cookie = first.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in pages.get("/settings")
        client.cookies.clear()
        assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.post(f"/pause?token={TOKEN}", headers=OWN).status_code == 401


def test_no_secret_is_on_a_page(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 1, detail=f"posting to {HOOK} failed", reason="p4ss&word'<secret>")
    names = {"SLACK_WEBHOOK_URL": HOOK, "BATCH_SMTP_URL": "smtp://me:p4ss%26word%27%3Csecret%3E@host:25"}
    with open_pages(tmp_path, **names) as pages:
        with pages.context.open_ledger() as ledger:
            (run,) = ledger.run_page("", skip=0, count=1)
        shown = "".join(map(pages.get, [*PATHS, f"/runs/{run.id}"]))
    assert "[hidden]" in shown
    for secret in ("abcdefghijklmnop", "p4ss", "&amp;word"):
        assert secret not in shown


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\u202e\x1b[31m" + "n" * 10_000
    (run,) = fill_ledger(tmp_path, 1, detail=name, failures={name: "</div><b>bad"}, reason=name)
    with open_pages(tmp_path) as pages:
        shown = pages.get(f"/runs/{run.id}")
    assert "<script>alert" not in shown
    assert "</div><b>" not in shown
    assert "\u202e" not in shown
    assert "\\u202e" in shown


def test_a_store_that_is_down_is_shown(tmp_path: Path) -> None:
    with open_pages(tmp_path) as pages:
        pages.context.settings.folder.joinpath("bucket").rmdir()
        for path in ("/", "/quarantine", "/why?key=a.mp3"):
            assert "bucket" in pages.client.get(path).text
        pages.get("/runs")
        assert "store or cloud" in pages.get("/live")


def test_a_damaged_ledger_is_a_page(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 3)
    (tmp_path / ".batchscribe" / FILE_NAME).write_bytes(b"no database " * 1000)
    with open_pages(tmp_path) as pages:
        for path in ("/", "/runs"):
            assert "is damaged" in pages.get(path, 503)
        assert pages.client.get("/healthz").json()["ok"] is False


def test_a_ledger_is_read_while_another_process_writes_it(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 1)
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME), open_pages(tmp_path) as pages:
        other = sqlite3.connect(tmp_path / ".batchscribe" / FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        pages.get("/runs")
        other.close()


def test_a_ledger_that_another_process_creates_now_is_empty(tmp_path: Path) -> None:
    file = tmp_path / ".batchscribe" / FILE_NAME
    file.parent.mkdir()
    file.touch()
    with open_pages(tmp_path) as pages:
        assert "No run was recorded yet" in pages.get("/runs")


def test_pages_cannot_write_the_ledger(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 1)
    with (
        open_pages(tmp_path) as pages,
        pages.context.open_ledger() as ledger,
        pytest.raises(MisconfiguredError),
    ):
        ledger.put("x", "y")


def test_the_table_of_runs_has_pages_and_a_filter(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 120)
    with open_pages(tmp_path) as pages:
        rows = [pages.get(path).count("<tr>") - 1 for path in ("/runs", "/runs?page=3", "/runs?page=4")]
        assert rows == [50, 20, -1]
        assert pages.get("/runs?outcome=timed-out").count("<tr>") - 1 == 40
        assert "No such run" in pages.get("/runs?outcome=%3Cb%3E")
        for page in ("-1", "x", "9" * 30, "²"):
            pages.get(f"/runs?page={page}")


def test_a_run_shows_phases_costs_and_the_end_of_its_log(tmp_path: Path) -> None:
    (run,) = fill_ledger(tmp_path, 1)
    log = tmp_path / "logs" / f"batchscribe-{run.id}.log"
    log.parent.mkdir()
    log.write_text(
        '{"event": "old"}\n' * 20_000 + '{"event": "run.settled", "seconds": 3}\n[1]\nCost Tracking:\n'
    )
    with open_pages(tmp_path) as pages:
        shown = pages.get(f"/runs/{run.id}")
        pages.get("/runs/other", 404)
    assert "teardown <strong>1.0 min" in shown
    assert "run.settled  seconds=3" in shown
    assert len(shown) < 400_000


def test_health_is_of_the_ledger_alone(tmp_path: Path) -> None:
    with open_pages(tmp_path) as pages:
        pages.context.settings.folder.joinpath("bucket").rmdir()
        assert pages.client.get("/healthz").json() == {"ok": True, "reasons": []}
        assert pages.context.around.last is None


def test_the_wait_of_a_chunk_that_failed_before_is_shown(pages: Pages) -> None:
    bucket, output = pages.context.settings.folder / "bucket", pages.context.output
    (bucket / "short.wav").write_bytes(spoken())
    etag = output.get("short.wav").etag
    failure = Failure(
        key="short.wav",
        etag=etag,
        run="r1",
        kind=FailureKind.CHUNK,
        message="no",
        at=pages.context.clock.now(),
    )
    output.create(keys.attempt(failure.key, etag, failure.run), wire.encode(failure))
    shown = pages.get("/")
    assert "the oldest waits for" in shown
    assert re.search(r"<dt>Oldest wait</dt>\n<dd>\d", shown)
    assert "0 more not ready" in shown


def test_small_savings_are_shown_with_their_digits(tmp_path: Path) -> None:
    (run,) = fill_ledger(tmp_path, 1)
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME, pragmas={}) as ledger:
        ledger.save_run(replace(run, cost=Usd(353_500)), at=run.created)
    with open_pages(tmp_path) as pages:
        shown = pages.get("/")
    assert "saved at least $0.0065 against AWS Transcribe" in shown


def test_a_late_tick_is_not_healthy(tmp_path: Path) -> None:
    fill_ledger(tmp_path, 5)
    with open_pages(tmp_path, BATCH_SCHEDULER_CHECK_HOURS="0.2") as pages:
        answer = pages.client.get("/healthz")
    assert answer.status_code == 503
    assert "the last tick was 1.00 h ago" in answer.json()["reasons"][0]


def test_why_explains_a_key_and_names_similar_ones(pages: Pages) -> None:
    put_speech(pages.context.settings.folder / "bucket", "team-meeting")
    pages.get("/")
    assert "No run has taken it yet" in pages.get("/why?key=chunk-001")
    similar = pages.get("/why?key=team")
    assert "chunks match" in similar
    assert '<a href="/why?key=team-meeting/chunk-001' in similar
    assert "no record of" in pages.get("/why?key=nothing.mp3")
    assert "would hold" in pages.get("/why?key=chunk-001")


def test_a_release_asks_first_and_forgets_the_failures(pages: Pages) -> None:
    names = ("a&b <i>.mp3", "other.mp3")
    for name in names:
        quarantine_chunk(pages.context.output, name)
    assert "a&amp;b &lt;i&gt;.mp3" in pages.get("/quarantine")
    asked = pages.get("/quarantine/release?key=a%26b%20%3Ci%3E.mp3")
    assert "Release 1 chunk from quarantine?" in asked
    assert 'action="/quarantine/release?key=a%26b%20%3Ci%3E.mp3"' in asked
    assert pages.post("/quarantine/release?key=a%26b%20%3Ci%3E.mp3") == "/quarantine"
    shown = pages.get("/quarantine")
    assert "a&amp;b" not in shown
    assert "other.mp3" in shown
    pages.get("/quarantine/release?key=a%26b%20%3Ci%3E.mp3", 404)
    pages.post("/quarantine/release")
    assert "Nothing is quarantined" in pages.get("/quarantine")


def test_pause_and_resume(pages: Pages) -> None:
    pages.post("/pause?for=8h")
    assert "Resume the schedule" in pages.get("/")
    pages.post("/resume")
    assert "Pause for 8 hours" in pages.get("/live")


def test_a_manual_run_shows_its_price_and_starts_one_process(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_speech(pages.context.settings.folder / "bucket", "team-meeting")
    started: list[Any] = []
    alive = [False]
    monkeypatch.setattr(actions, "is_running", lambda _record: alive[0])
    monkeypatch.setattr(actions, "start_once", lambda _record, argv, **_: started.append(argv))
    shown = pages.get("/run")
    assert "It would transcribe 4 chunks for about $0.00" in shown
    pages.post("/run")
    alive[0] = True
    shown = pages.get("/run")
    assert "is in progress" in shown
    assert 'hx-get="/run/live"' in shown
    assert "It would transcribe" not in shown
    assert "is in progress" in pages.get("/run/live")
    pages.post("/run")
    alive[0] = False
    assert "has ended" in pages.get("/run/live", code=actions.STOP_POLLING)
    ((_python, *command),) = started
    assert command == ["-P", "-m", "batchscribe", "run"]


def test_many_requests_poll_store_and_cloud_once(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    store = type(pages.context.source)
    real = store.list

    def count(self: Any, *args: Any, **options: Any) -> Any:
        listed.append("once")
        return real(self, *args, **options)

    monkeypatch.setattr(store, "list", count)
    pages.get("/")
    before = len(listed)
    for _ in range(20):
        pages.get("/live")
    assert len(listed) == before > 0


def test_a_reading_that_fails_is_kept_as_its_error() -> None:
    answers: Iterator[object] = iter([StoreUnavailableError("down"), 7, ZeroDivisionError()])

    def read() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cached = Cached(read, FakeClock())
    found = [cached.refresh(patience=60) for _ in range(3)]
    assert [(each.value, each.error) for each in found if each] == [
        (None, "down"),
        (7, ""),
        (None, "internal error: ZeroDivisionError"),
    ]


def test_a_reading_that_is_old_is_renewed_for_the_request_that_finds_it() -> None:
    clock, numbers = FakeClock(), itertools.count()
    cached = Cached(lambda: next(numbers), clock)
    found = []
    for seconds in (0, 30, 31):
        clock.sleep(seconds)
        found.append(cached.get(timedelta(minutes=1), patience=60))
    assert [each.value for each in found if each] == [0, 0, 1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The server as the command starts it, in a process of its own."""
    settings_of(tmp_path)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    process = subprocess.Popen(
        [sys.executable, "-m", "batchscribe", "dashboard", "--port", "0", "--token", TOKEN],
        cwd=tmp_path,
        env=environment | {"BATCH_SOURCE": "./bucket", "GPU_PROVIDER": "local"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    with process, process.stdout:
        line = process.stdout.readline()
        yield line, int(re.search(r":(\d+)/", line)[1])  # type: ignore[index]
        process.send_signal(signal.SIGTERM)


def test_the_command_prints_the_url_with_the_token_and_serves(served: tuple[str, int]) -> None:
    line, port = served
    assert line == f"http://127.0.0.1:{port}/?token={TOKEN}\n"
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        client.request("GET", "/healthz", headers={"authorization": f"Bearer {TOKEN}"})
        answer = client.getresponse()
        assert (answer.status, json.loads(answer.read())["ok"]) == (200, True)
        assert "uvicorn" not in str(answer.headers)


@pytest.mark.parametrize("requests", [0, 1])
def test_a_client_that_sends_half_a_head_is_dropped(requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.new_event_loop(), list[tuple[Mock, Callable[[], object]]]()

    def call_later(_seconds: float, act: Callable[..., object], *given: object) -> Mock:
        timers.append((Mock(), partial(act, *given)))
        return timers[-1][0]

    with closing(loop):
        monkeypatch.setattr(loop, "call_later", call_later)
        config = uvicorn.Config(PlainTextResponse("ok"), log_config=None, lifespan="off")
        client, transport = PromptProtocol(config, ServerState(), {}, loop), Mock()
        transport.is_closing.return_value = False
        client.connection_made(transport)
        for _ in range(requests):
            client.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            loop.run_until_complete(next(iter(client.tasks)))
        client.data_received(b"GET / HTTP/1.1\r\nHos")
        transport.close.assert_not_called()
        for timer, act in timers:
            if not timer.cancel.called:
                act()
        transport.close.assert_called()


def test_a_port_in_use_is_one_line(served: tuple[str, int], tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot be used"):
        serve(settings_of(tmp_path), host="127.0.0.1", port=served[1], announce=print)


def test_outside_the_loopback_interface_a_token_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is not run: tests listen on the loopback interface alone."""
    urls: list[str] = []
    monkeypatch.setattr(socket, "create_server", lambda *_a, **_k: socket.socket())
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_a, **_k: None)
    for _ in range(2):
        serve(settings_of(tmp_path), host="0.0.0.0", port=8765, announce=urls.append)
    tokens = {url.partition("?token=")[2] for url in urls}
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 32


def test_an_unexpected_error_is_a_page_with_the_headers(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("batchscribe.dashboard.overview.overview", fail)
    answer = pages.client.get("/")
    assert answer.status_code == 500
    assert "internal error: ZeroDivisionError" in answer.text
    assert set(HEADERS) <= set(answer.headers)


def test_a_run_on_a_cloud_machine_shows_progress_guard_and_bounds(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    run = put_in_progress(at)
    settings = settings_of(tmp_path, BATCH_STATE_DIR=str(at.ledger.path.parent))
    made = Scheduler(
        settings=settings,
        world=at.world,
        config=at.config,
        lock=tick_lock(settings, at.clock),
        trouble=Fallbacks(),
    )
    app = create_app(Context(settings=settings, scheduler=made))
    with TestClient(app, base_url="http://localhost") as client:
        shown = client.get("/").text
        for text in (
            f"Run {run.id}",
            "1 of 4 chunks, 1 failed",
            "about 1.0 min",
            "would resume",
            "the GPU is verified stopped within",
            "never on this account",
        ):
            assert text in shown
        assert client.get("/healthz").json()["ok"] is True
        at.clock.sleep(3 * 3600)
        reasons = client.get("/healthz").json()["reasons"]
        assert any("after its deadline" in reason for reason in reasons)
        assert "bad" in client.get("/live").text
    at.ledger.close()
