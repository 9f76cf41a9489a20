from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from batchscribe.adapters.machine import logs
from batchscribe.adapters.notify import webhook
from batchscribe.adapters.notify.apprise_notifier import AppriseNotifier
from batchscribe.adapters.notify.child import SendRequest, deliver
from batchscribe.adapters.notify.receivers import Receiver, build_receivers
from batchscribe.core.messages import Level, Message
from batchscribe.protocols import Notifier
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.notifier import RecordingNotifier
from support.receivers import http_receiver, smtp_receiver

CANARY = "canary7f3a91"
MESSAGE = Message("batchscribe: run r1 completed", "118 of 120 chunks done.\nAt most $0.26.", Level.SUCCESS)
DEADLINE = 60.0
"""Long enough for a loaded machine: no test depends on it."""


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handlers, level = list(logging.root.handlers), logging.root.level
    logs.configure(clock=FakeClock(), stream=stream)
    yield stream
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_an_apprise_url_gets_title_and_body(log: io.StringIO) -> None:
    with http_receiver() as endpoint:
        url = endpoint.url.replace("http://", "json://") + f"/hook/{CANARY}"
        notifier: Notifier = AppriseNotifier(urls=[url], deadline=DEADLINE)
        notifier.send(MESSAGE)
    ((path, body),) = endpoint.posts
    posted = json.loads(body)
    assert path.rstrip("/") == f"/hook/{CANARY}"
    assert (posted["title"], posted["message"], posted["type"]) == (MESSAGE.title, MESSAGE.body, "success")
    assert "message.sent receiver=json" in log.getvalue()
    assert CANARY not in log.getvalue()


def test_a_webhook_of_slacks_kind_gets_one_text() -> None:
    with http_receiver() as endpoint:
        webhook = f"{endpoint.url}/services/T0/B0/{CANARY}?team=a b"
        AppriseNotifier(slack_webhook=webhook.replace(" ", "%20"), deadline=DEADLINE).send(
            Message("title", "look <!channel> & <http://x|y>")
        )
    ((path, body),) = endpoint.posts
    assert path in {f"/services/T0/B0/{CANARY}?team=a+b", f"/services/T0/B0/{CANARY}?team=a%20b"}
    assert json.loads(body) == {"text": "title\nlook ‹!channel› & ‹http://x|y›"}


def test_slack_itself_is_asked_for_the_text_alone() -> None:
    (slack,) = build_receivers(
        urls=(), email=(), smtp_url="", slack_webhook=f"https://hooks.slack.com/services/T0/B0/{CANARY}"
    )
    assert slack.url.endswith(f"/services/T0/B0/{CANARY}?image=no&footer=no&timestamp=no")
    assert (slack.label, slack.escaped) == ("slack", True)


def test_mail_goes_over_smtp_as_plain_text() -> None:
    with smtp_receiver(login=("me@example.com", f"pw/{CANARY}@:")) as mailbox:
        AppriseNotifier(
            email=["you@example.com", "they@example.com"],
            smtp_url=f"smtp://me%40example.com:pw%2F{CANARY}%40%3A@127.0.0.1:{mailbox.port}",
            deadline=DEADLINE,
        ).send(MESSAGE)
    assert sorted(address for to in mailbox.recipients for address in to) == [
        "they@example.com",
        "you@example.com",
    ]
    mail = mailbox.mails[0]
    assert mail["Subject"] == MESSAGE.title
    assert "me@example.com" in mail["From"]
    assert mail.get_content_type() == "text/plain"
    assert "118 of 120 chunks done." in mail.get_content()


def test_a_wrong_password_is_told_without_it(log: io.StringIO) -> None:
    with smtp_receiver(login=("me", "right")) as mailbox:
        url = f"smtp://me:{CANARY}@127.0.0.1:{mailbox.port}"
        AppriseNotifier(email=["you@example.com"], smtp_url=url, deadline=DEADLINE).send(MESSAGE)
    assert mailbox.mails == []
    assert "message.not_sent" in log.getvalue()
    assert CANARY not in log.getvalue()


@pytest.mark.parametrize(
    ("url", "mode", "port"),
    [
        ("smtp://host", "insecure", 25),
        ("smtp://host:2525", "insecure", 2525),
        ("smtp://me:pw@host", "starttls", 587),
        ("smtps://me:pw@host", "ssl", 465),
        ("smtp://me:pw@127.0.0.1:25", "insecure", 25),
        ("smtp://me:pw@localhost:25", "insecure", 25),
        ("smtp://me:pw@host:25?mode=insecure", "insecure", 25),
    ],
)
def test_a_password_goes_over_tls_or_to_this_machine(url: str, mode: str, port: int) -> None:
    (mail,) = build_receivers(urls=(), email=("a@b.c",), smtp_url=url, slack_webhook="")
    assert mail.mail is not None
    assert (mail.mail["secure_mode"], mail.mail["port"]) == (mode, port)


@pytest.fixture
def sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mail program that keeps what it was given."""
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_without_smtp_mail_goes_to_the_local_mail_system(sendmail: Path) -> None:
    title = "batchscribe: run\nBcc: everybody@example.com"
    AppriseNotifier(email=["you@example.com"], deadline=DEADLINE).send(Message(title, MESSAGE.body))
    head, _, body = (sendmail / "mail").read_text().partition("\n\n")
    assert (sendmail / "arguments").read_text() == "-i -t\n"
    assert "To: you@example.com" in head.splitlines()
    assert "Subject: batchscribe: run Bcc: everybody@example.com" in head.splitlines()
    assert "118 of 120 chunks done." in body


def test_no_mail_system_at_all_is_a_line_in_the_log() -> None:
    receiver = Receiver(label="e-mail", sendmail=("", "you@example.com"))
    failure = deliver(SendRequest(receiver=receiver, title="t", body="b", level="info"))
    assert "BATCH_SMTP_URL" in failure


def test_a_mail_system_that_fails_is_told(sendmail: Path, log: io.StringIO) -> None:
    (sendmail / "sendmail").write_text("#!/bin/sh\nexit 75\n")
    AppriseNotifier(email=["you@example.com"], deadline=DEADLINE).send(MESSAGE)
    assert "sendmail failed with exit code 75" in log.getvalue()


def test_receivers_that_refuse_or_are_dead_never_raise_and_show_no_secret(log: io.StringIO) -> None:
    dead = f"127.0.0.1:{closed_port()}"
    with http_receiver(status=500) as endpoint:
        AppriseNotifier(
            urls=[
                endpoint.url.replace("http://", "json://") + f"/{CANARY}",
                f"json://user:{CANARY}@{dead}/{CANARY}",
                f"tgram://{CANARY}",
                f"unheardof://{CANARY}/x",
            ],
            slack_webhook=f"http://{dead}/services/{CANARY}",
            email=["you@example.com"],
            smtp_url=f"smtp://me:{CANARY}@{dead}",
            deadline=DEADLINE,
        ).send(MESSAGE)
    written = log.getvalue()
    assert written.count("message.not_sent") == 6
    assert "it answered with status 500" in written
    assert "apprise does not support this URL" in written
    assert CANARY not in written


def test_a_receiver_that_hangs_is_given_up(log: io.StringIO) -> None:
    with http_receiver(hang=True) as hung:
        AppriseNotifier(urls=[hung.url.replace("http://", "json://") + "?rto=600"], deadline=1.0).send(
            MESSAGE
        )
    assert "no answer in 1 s" in log.getvalue()


def test_a_message_holds_no_secret_and_no_control_character() -> None:
    with http_receiver() as endpoint:
        url = endpoint.url.replace("http://", "json://") + f"/{CANARY}"
        AppriseNotifier(urls=[url], deadline=DEADLINE).send(
            Message("at \x1b[2J", f"{url} key \x1b[2J {CANARY}\nend")
        )
    posted = endpoint.posts[0][1].decode()
    assert CANARY not in posted
    assert "key \\\\x1b[2J" in posted


@pytest.mark.parametrize(
    "address",
    ["json://{}/0", "json://me:8@{}", "json://{}/done", "json://{}/quarantined/88", "json://{}/?a=0"],
)
def test_a_short_word_of_a_receivers_url_stays_in_titles_and_figures(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    sent: list[SendRequest] = []

    def keep(_notifier: AppriseNotifier, request: SendRequest) -> str:
        sent.append(request)
        return ""

    monkeypatch.setattr(AppriseNotifier, "_run_child", keep)
    told = Message("run 20260501-080808 done", "118 of 120 chunks done, 0 quarantined.\nAt most $0.0088.")
    AppriseNotifier(urls=[address.format("127.0.0.1:80")], deadline=DEADLINE).send(told)
    assert [(request.title, request.body) for request in sent] == [(told.title, told.body)]


def test_nobody_to_tell_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscribe.adapters.notify.apprise_notifier._CHILD", (sys.executable, "-c", "1/0"))
    AppriseNotifier().send(MESSAGE)


def test_a_process_that_dies_or_cannot_start_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    for child in ((sys.executable, "-c", "import os; os._exit(3)"), ("/no/such/program",)):
        monkeypatch.setattr("batchscribe.adapters.notify.apprise_notifier._CHILD", child)
        AppriseNotifier(urls=["json://127.0.0.1"], deadline=DEADLINE).send(MESSAGE)
    assert "its process died" in log.getvalue()
    assert "no process could be started" in log.getvalue()


def test_the_double_keeps_messages() -> None:
    notifier = RecordingNotifier()
    sending: Notifier = notifier
    sending.send(MESSAGE)
    assert notifier.at(Level.SUCCESS) == [MESSAGE]
    assert notifier.at(Level.FAILURE) == []


def test_an_event_is_posted_with_a_standard_signature() -> None:
    with http_receiver() as inbox:
        sender = AppriseNotifier(webhook=f"{inbox.url}/hook#{CANARY}", deadline=DEADLINE)
        sender.emit("run.settled", {"run": "r1"})
    ((_path, body),), (headers,) = inbox.posts, inbox.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body.decode()}"
    digest = hmac.new(CANARY.encode(), signed.encode(), hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    event = json.loads(body)
    assert (event["type"], event["data"]) == ("run.settled", {"run": "r1"})


def test_names_in_an_event_stay_whole_and_secrets_in_its_sentences_do_not() -> None:
    """A folder may have the name of a word in the webhook's path."""
    data = {"session": "u/session_1/", "failures": {"u/session_1/a.wav": f"POST /session_1/{CANARY} failed"}}
    with http_receiver() as inbox:
        AppriseNotifier(webhook=f"{inbox.url}/session_1/{CANARY}", deadline=DEADLINE).emit("x", data)
    ((_path, body),) = inbox.posts
    assert json.loads(body)["data"] == {
        "session": "u/session_1/",
        "failures": {"u/session_1/a.wav": "POST /[hidden] failed"},
    }


@pytest.mark.parametrize(
    ("statuses", "posts"), [([503, 200], 2), ([500, 500, 500], 3), ([400], 1), ([302], 1)]
)
def test_an_event_is_retried_unless_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], posts: int
) -> None:
    answers = list(statuses)
    monkeypatch.setattr(webhook, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(webhook, "_post_once", lambda *_args: answers.pop(0))
    sent = not webhook.post_event("https://example.org/hook", "evt_1", "{}", 0)
    assert (sent, len(statuses) - len(answers)) == (statuses[-1] == 200, posts)


def test_a_test_event_reports_whether_the_webhook_accepted_it() -> None:
    with http_receiver(400) as refusing:
        sender = AppriseNotifier(webhook=f"{refusing.url}/hook", deadline=DEADLINE)
        assert sender.post("notify.test", {}) == [("webhook", "it answered with status 400")]
    assert AppriseNotifier().post("notify.test", {}) == []


def test_an_event_that_is_sent_again_has_the_same_id() -> None:
    """A crash between the message and the end of the settlement sends it again, at another time."""
    session = {"run": "r1", "session": "walk/", "output": "s3://b"}
    sent = [("run.settled", {"run": "r1"}), ("session.completed", session), ("run.settled", {"run": "r2"})]
    with http_receiver() as inbox:
        for kind, data in (*sent, *sent, ("notify.test", {}), ("notify.test", {})):
            AppriseNotifier(webhook=f"{inbox.url}/hook", deadline=DEADLINE).emit(kind, data)
    ids = [headers["webhook-id"] for headers in inbox.headers]
    assert ids[:3] == ids[3:6]
    assert len(set(ids)) == 5


def test_a_result_that_a_command_prints_is_not_logged_too(log: io.StringIO) -> None:
    sender = AppriseNotifier(
        urls=[f"json://127.0.0.1:{closed_port()}"],
        webhook=f"http://127.0.0.1:{closed_port()}/",
        deadline=DEADLINE,
    )
    results = sender.deliver(MESSAGE) + sender.post("notify.test", {})
    assert ([label for label, _why in results], all(why for _label, why in results)) == (
        ["json", "webhook"],
        True,
    )
    assert log.getvalue() == ""
    sender.send(MESSAGE)
    assert "message.not_sent receiver=json" in log.getvalue()


def test_a_webhook_that_failed_gets_no_further_event_from_this_process() -> None:
    with http_receiver(400) as refusing:
        sender = AppriseNotifier(webhook=f"{refusing.url}/hook", deadline=DEADLINE)
        for _ in range(3):
            sender.emit("session.completed", {})
    assert len(refusing.posts) == 1
