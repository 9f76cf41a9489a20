from __future__ import annotations

import errno
import io
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from batchscribe.adapters.machine import logs
from batchscribe.adapters.output.progress import ProgressView
from batchscribe.cli.logs import _as_json, describe_line
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.figures import BLOCK_TITLE
from batchscribe.core.redaction import HIDDEN, Redactor, printable
from batchscribe.core.run.manifest import Phase, Progress, Tally, Timings
from batchscribe.core.run.runs import Machine, Run
from batchscribe.core.run.waiting import Wait
from batchscribe.testing.clock import FakeClock

CANARY = "canary-7f3a91/x"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def fail(text: str) -> None:
    raise RuntimeError(text)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(autouse=True)
def configured(stream: io.StringIO) -> Iterator[None]:
    handlers, level = list(logging.root.handlers), logging.root.level
    logs.configure(secrets=[CANARY], clock=FakeClock(), stream=stream)
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def log() -> structlog.typing.FilteringBoundLogger:
    made: structlog.typing.FilteringBoundLogger = structlog.get_logger("batchscribe")
    return made


def read(folder: Path) -> list[dict[str, object]]:
    (path,) = folder.glob("*.log")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_people_get_a_readable_line_without_colours_where_nobody_looks(stream: io.StringIO) -> None:
    log().info("gpu started", instance="i-1", seconds=3.5)
    assert stream.getvalue() == "12:00:00 [info] gpu started instance=i-1 seconds=3.5\n"


def test_a_run_has_its_own_file_of_json_lines(tmp_path: Path, stream: io.StringIO) -> None:
    with logs.run_log(tmp_path / "logs", "r1", NOW):
        log().info("gpu started", instance="i-1", seconds=3.5)
    log().info("afterwards")
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name == "batchscribe-20261123-120000-r1.log"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(tmp_path / "logs") == [
        {
            "event": "gpu started",
            "instance": "i-1",
            "seconds": 3.5,
            "run": "r1",
            "level": "info",
            "timestamp": "2026-11-23T12:00:00.000+00:00",
        }
    ]
    assert "afterwards" in stream.getvalue()


def test_a_resumed_run_goes_on_in_its_file(tmp_path: Path) -> None:
    for text in ("first tick", "second tick"):
        with logs.run_log(tmp_path, "r1", NOW):
            log().info(text)
    assert [event["event"] for event in read(tmp_path)] == ["first tick", "second tick"]


def test_the_file_of_a_run_id_with_its_time_has_that_time_once(tmp_path: Path) -> None:
    with logs.run_log(tmp_path, "20261123-120000-abcdef", NOW):
        log().info("gpu started")
    (path,) = tmp_path.iterdir()
    assert path.name == "batchscribe-20261123-120000-abcdef.log"
    logs.delete_old_logs(tmp_path, NOW + logs.KEPT + timedelta(seconds=1))
    assert not path.exists()


def test_the_cost_block_is_text_in_the_file_and_one_line_elsewhere(
    tmp_path: Path, stream: io.StringIO
) -> None:
    with logs.run_log(tmp_path, "r1", NOW):
        log().info(BLOCK_TITLE, **{"GPU Type": "g4dn.xlarge", "GPU Cost": f"at most $0.0088 {CANARY}"})
        log().info("afterwards")
    (path,) = tmp_path.iterdir()
    block, last = path.read_text().split("{", 1)
    assert block == f"Cost Tracking:\n  GPU Type:  g4dn.xlarge\n  GPU Cost:  at most $0.0088 {HIDDEN}\n"
    assert json.loads("{" + last)["event"] == "afterwards"
    assert stream.getvalue().count("\n") == 2
    assert "Cost Tracking GPU Type=g4dn.xlarge" in stream.getvalue()
    shown = [show(line) for line in path.read_text().splitlines() for show in (describe_line, _as_json)]
    assert shown[:2] == ["Cost Tracking:", '{"event": "Cost Tracking:"}']


def test_no_secret_and_no_trick_gets_through_in_whatever_shape(tmp_path: Path, stream: io.StringIO) -> None:
    class Odd:
        def __repr__(self) -> str:
            return f"<odd {CANARY}>"

    with logs.run_log(tmp_path, "r1", NOW):
        log().warning(
            f"failed at https://me:pw-of-mine@host/{CANARY}",
            nested={"a": [f"x {CANARY}", {"b": Odd()}], CANARY: 1},
            path=Path(f"/{CANARY}"),
            key="chunk\x1b[31m\u202ereversed\r\n.webm",
            url="https://hooks.slack.com/services/T0/B0/token?x=1",
        )
        try:
            fail(f"vendor says {CANARY} \x1b]0;title\x07")
        except RuntimeError:
            log().exception("broke")
        logging.getLogger("urllib3").warning("Retrying: %s", f"/services/{CANARY}")
        logging.getLogger("urllib3").debug("POST %s", CANARY)
    written = stream.getvalue() + next(tmp_path.glob("*.log")).read_text()
    for text in (CANARY, "pw-of-mine", "T0/B0", "\x1b", "\u202e", "\x07", "\r"):
        assert text not in written
    assert "chunk\\x1b[31m\\u202ereversed\\r\\n.webm" in stream.getvalue()
    assert HIDDEN in written
    assert "RuntimeError: vendor says" in written
    assert f"Retrying: /services/{HIDDEN}" in written


def test_the_journal_gets_priorities_on_every_line_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w+") as journal:
        info = os.fstat(journal.fileno())
        logs.configure(clock=FakeClock(), stream=journal, journal_stream=f"{info.st_dev}:{info.st_ino}")
        log().warning("late")
        try:
            fail("two\nlines")
        except RuntimeError:
            log().exception("broke")
    lines = path.read_text().splitlines()
    assert lines[0] == "<4>[warning] late"
    assert all(line.startswith("<3>") for line in lines[1:])
    assert len(lines) > 3


def test_another_stream_is_not_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as stream:
        logs.configure(clock=FakeClock(), stream=stream, journal_stream="1:2")
        log().info("hello")
    assert (tmp_path / "file").read_text().startswith("12:00:00 ")


def test_old_run_logs_go_and_nothing_else(tmp_path: Path) -> None:
    old = tmp_path / "batchscribe-20261001-000000-r0.log"
    kept = [
        tmp_path / "batchscribe-20261101-000000-r1.log",
        tmp_path / "batchscribe-20261001-000000-r0.log.bak",
        tmp_path / "batchscribe-99999999-000000-r2.log",
        tmp_path / "scheduler-cron.log",
        tmp_path / "535-smart-batch-scheduler-20200101.log",
    ]
    for path in [old, *kept]:
        path.touch()
        os.utime(path, (0, 0))
    (tmp_path / "batchscribe-20200101-000000-folder.log").mkdir()
    logs.delete_old_logs(tmp_path, NOW)
    assert not old.exists()
    assert all(path.exists() for path in kept)
    assert (tmp_path / "batchscribe-20200101-000000-folder.log").is_dir()


def test_thirty_days_are_kept_to_the_second(tmp_path: Path) -> None:
    path = tmp_path / "batchscribe-20261024-120000-r1.log"
    path.touch()
    logs.delete_old_logs(tmp_path, NOW)
    assert path.exists()
    logs.delete_old_logs(tmp_path, NOW + timedelta(seconds=1))
    assert not path.exists()


def test_an_error_of_the_system_in_a_run_gets_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), logs.run_log(tmp_path, "r1", NOW):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_old_logs_of_workers_go_by_their_last_line(tmp_path: Path) -> None:
    limit = (NOW - timedelta(days=30)).timestamp()
    for name, age in {
        "worker-r0-0.log": 1,
        "worker-r1-0.log": 0,
        "worker.log": 1,
        "my-worker-r0.log": 1,
    }.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, limit - age))
    logs.delete_old_logs(tmp_path, NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my-worker-r0.log",
        "worker-r1-0.log",
        "worker.log",
    ]


def test_a_log_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path, stream: io.StringIO) -> None:
    (tmp_path / "file").touch()
    with logs.run_log(tmp_path / "file", "r1", NOW):
        log().info("still going")
    assert "cannot be written; the run continues without it" in stream.getvalue()
    assert "still going" in stream.getvalue()


def test_a_full_disk_is_told_once(stream: io.StringIO) -> None:
    logs._sinks.append(logs._make_file_sink(Path("run.log"), Full()))
    log().info("one")
    log().info("two")
    assert stream.getvalue().count("cannot be written") == 1
    assert "two" in stream.getvalue()


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path: Path, stream: io.StringIO) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "batchscribe-20261123-120000-r1.log").symlink_to(target)
    with logs.run_log(tmp_path, "r1", NOW):
        log().info("hello")
    assert target.read_text() == "precious"
    assert "cannot be written" in stream.getvalue()


def test_a_reader_that_went_away_ends_nothing(tmp_path: Path) -> None:
    logs.configure(clock=FakeClock(), stream=Broken())
    with logs.run_log(tmp_path, "r1", NOW):
        log().info("still going")
    assert read(tmp_path)[0]["event"] == "still going"


def test_a_run_cannot_choose_another_folder(tmp_path: Path) -> None:
    with logs.run_log(tmp_path / "logs", "../../evil", NOW):
        log().info("hello")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("smtp://me:pw@host:25", f"smtp://{HIDDEN}@host:25"),
        ("https://HOOKS.slack.com/services/a/b 'x'", f"https://HOOKS.slack.com/{HIDDEN} 'x'"),
        ("s3://b/k?X-Amz-Signature=abc&y=1", f"s3://b/k?X-Amz-Signature={HIDDEN}&y=1"),
        ("key AKIAABCDEFGHIJKLMNOP!", f"key {HIDDEN}!"),
        ("one@two.example", "one@two.example"),
    ],
)
def test_secrets_show_by_their_shape(text: str, shown: str) -> None:
    assert Redactor()(text) == shown


def test_the_longest_secret_goes_first() -> None:
    assert Redactor(["abcdefgh", "abcdefgh/ijkl", ""])("abcdefgh/ijkl abcdefgh") == f"{HIDDEN} {HIDDEN}"


@pytest.mark.parametrize("secret", ["0", "8", "88", "0088", "done", "pw"])
def test_a_short_word_is_no_secret(secret: str) -> None:
    figures = "at most $0.0088, 118 of 120 chunks done, pw"
    assert Redactor([secret])(figures) == figures


def test_a_short_secret_is_a_whole_word_and_a_long_one_is_found_anywhere() -> None:
    redact = Redactor(["12345678", "/hook/1a", "0123456789abcdef"])
    assert redact("$1234567890.12") == "$1234567890.12"
    assert redact("pin=12345678.") == f"pin={HIDDEN}."
    assert redact("host/hook/1a?x") == f"host{HIDDEN}?x"
    assert redact("%2F0123456789abcdefX") == f"%2F{HIDDEN}X"


def test_printable_keeps_letters_of_all_scripts() -> None:
    text = "größe 会議 שלום 🎙️.webm"
    assert printable(text) == text
    assert printable("a\tb\nc", keep="\n") == "a\\tb\nc"


RUN = Run(
    id="r1",
    provider="local",
    machines=(Machine(id="local"),),
    policy="now",
    reason="",
    created=NOW,
    deadline=NOW,
    rate=Rate(per_hour=Usd(0), source="test"),
)


def progress(done: int, total: int = 10, failed: int = 0) -> Progress:
    return Progress(
        run="r1",
        worker=0,
        sequence=done,
        phase=Phase.WORKING,
        at=NOW,
        total=total,
        tally=Tally(done=done, failed=failed, audio_seconds=done * 60.0),
        timings=Timings(first_window=10.0, elapsed=10.0 + done),
    )


def test_elsewhere_progress_is_a_line_now_and_then(stream: io.StringIO) -> None:
    clock = FakeClock()
    with ProgressView(clock, stream=stream) as view:
        for done in range(10):
            view.show(RUN, progress(done))
            clock.sleep(8)
        view.show(RUN, progress(9, failed=1))
    lines = [line for line in stream.getvalue().splitlines() if "progress" in line]
    assert [line.split("done=")[1].split()[0] for line in lines] == ["0", "4", "8", "9"]
    assert "left='0:00:06 left'" in lines[1]
    assert "audio=0:04:00" in lines[1]


def test_on_a_terminal_progress_is_a_bar() -> None:
    terminal = Terminal()
    with ProgressView(FakeClock(), stream=terminal) as view:
        view.show(RUN, progress(4))
        view.show(RUN, progress(8, failed=1))
    shown = terminal.getvalue()
    assert "9/10" in shown
    assert "0:08:00 of audio, 1 failed, 0:00:01 left" in shown


def test_elsewhere_a_wait_is_a_line_for_each_cause_then_one_a_minute(stream: io.StringIO) -> None:
    clock = FakeClock()
    with ProgressView(clock, stream=stream) as view:
        for second in range(0, 150, 5):
            cause = "timed out" if second < 10 else "connection refused"
            view.wait(Wait(f"ssh to 1.2.3.4:22: {cause}", second, 600), "r1")
            clock.sleep(5)
    lines = [line for line in stream.getvalue().splitlines() if "waiting" in line]
    assert len(lines) == 4
    assert "ssh to 1.2.3.4:22: timed out, 0:00 of 10:00" in lines[0]
    assert "connection refused, 0:10 of 10:00" in lines[1]
    assert "connection refused, 1:10 of 10:00" in lines[2]
    assert ["polls=12" in line for line in lines] == [False, False, True, True]


def test_on_a_terminal_a_wait_is_one_line_that_is_removed() -> None:
    terminal = Terminal()
    with ProgressView(FakeClock(), stream=terminal) as view:
        view.wait(Wait("starting i-1 (g4dn.xlarge)", 25, 600))
        view.wait(Wait("ssh to 1.2.3.4:22: " + "a long cause " * 20, 65, 600))
        view.wait(Wait("stopping i-1", 65))
        assert terminal.getvalue().count("\n") <= 1, "drawn over, not below"
        view.show(RUN, progress(4))
    shown = terminal.getvalue()
    assert "starting i-1 (g4dn.xlarge), 0:25 of 10:00" in shown
    assert "…, 1:05 of 10:00" in shown, "the time stays in sight"
    assert "stopping i-1, 1:05" in shown
    assert shown.index("1:05") < shown.index("4/10")


def test_a_terminal_that_is_gone_does_not_end_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    with ProgressView(FakeClock(), stream=terminal) as view:
        monkeypatch.setattr(terminal, "write", lambda _text: (_ for _ in ()).throw(OSError(5, "EIO")))
        view.wait(Wait("stopping i-1", 65))


def test_people_read_the_note_of_an_event_instead_of_its_name(stream: io.StringIO) -> None:
    log().info("run.recorded", state="armed", note="start accepted")
    assert stream.getvalue() == "12:00:00 [info] start accepted state=armed\n"
    event = {
        "event": "run.recorded",
        "state": "armed",
        "note": "start accepted",
        "timestamp": "2026-11-29T10:00",
    }
    assert describe_line(json.dumps(event)).endswith(" UTC start accepted  state=armed")


@pytest.mark.parametrize("line", ["Cost: at most $0.00", "12", "null", "[1]"])
def test_a_line_of_text_is_shown_as_it_is(line: str) -> None:
    assert describe_line(line) == line
