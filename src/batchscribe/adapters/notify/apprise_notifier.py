"""Sends messages through apprise or the local mail system.

Each receiver has its own process: one that hangs is killed and delays neither the others nor the run, and
libraries' output about webhooks and passwords is discarded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.notify.child import SendRequest
from batchscribe.adapters.notify.receivers import Receiver, build_receivers
from batchscribe.adapters.notify.webhook import event_id
from batchscribe.core import setting_parsers
from batchscribe.core.messages import Message
from batchscribe.core.redaction import Redactor, printable

DEADLINE_SECONDS = 10.0
_CHILD = (sys.executable, "-P", "-m", "batchscribe.adapters.notify.child")


class AppriseNotifier:
    """A protocols.Notifier. `deadline`, in seconds, bounds `send` as a whole."""

    def __init__(
        self,
        *,
        urls: Sequence[str] = (),
        email: Sequence[str] = (),
        smtp_url: str = "",
        slack_webhook: str = "",
        webhook: str = "",
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._receivers = build_receivers(
            urls=urls, email=email, smtp_url=smtp_url, slack_webhook=slack_webhook
        )
        self._webhooks = [Receiver(label="webhook", webhook=webhook)] if webhook else []
        addresses = filter(None, (*urls, smtp_url, slack_webhook, webhook))
        self._redact = Redactor(part for url in addresses for part in setting_parsers.secret_parts(url))
        self._deadline = deadline

    def send(self, message: Message) -> None:
        """Sends to all receivers in parallel; failures are logged."""
        _log_results(self.deliver(message), message.title)

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        """Posts a signed JSON event to the webhook.

        A failure is logged, and ends the events of this process: a run may have thousands of them.
        """
        results = self.post(kind, data)
        _log_results(results, kind)
        if any(why for _label, why in results):
            self._webhooks = []

    def post(self, kind: str, data: Mapping[str, object]) -> list[tuple[str, str]]:
        """Posts an event; returns the webhook's label and failure, empty if accepted."""
        now = SystemClock().now()
        document = {"type": kind, "timestamp": now.isoformat(), "data": self._redact_sentences(data)}
        body = msgspec.json.encode(document).decode()
        # Without a run, as a test, it is never the same event twice.
        event, at = event_id(kind, {"run": now.isoformat(), **data}), int(now.timestamp())
        return self._send_all(
            SendRequest(receiver=receiver, title=kind, body=body, level="info", event=event, at=at)
            for receiver in self._webhooks
        )

    def _redact_sentences(self, value: object) -> object:
        """Redacts texts with blanks; others are names that a URL may contain."""
        match value:
            case str():
                return self._redact(value) if " " in value else value
            case Mapping():
                return {name: self._redact_sentences(item) for name, item in value.items()}
            case list() | tuple():
                return [self._redact_sentences(item) for item in value]
        return value

    def deliver(self, message: Message) -> list[tuple[str, str]]:
        """Sends to all receivers; returns their labels and failures, empty if sent."""
        # Titles are ours. Bodies quote errors and workers' reports.
        title, body = printable(message.title, keep="\n"), printable(self._redact(message.body), keep="\n")
        return self._send_all(
            SendRequest(receiver=receiver, title=title, body=body, level=message.level.value)
            for receiver in self._receivers
        )

    def _send_all(self, requests: Iterable[SendRequest]) -> list[tuple[str, str]]:
        """Sends in parallel; returns each label with the reason of a failure."""
        sent = tuple(requests)
        with ThreadPoolExecutor(max(1, len(sent))) as threads:
            reasons = list(threads.map(self._run_child, sent))
        return [(request.receiver.label, why) for request, why in zip(sent, reasons, strict=True)]

    def _run_child(self, request: SendRequest) -> str:
        """Sends in a separate process; returns the reason of a failure."""
        try:
            # In its own session, so that Ctrl-C stops the run but not the message about it.
            child = subprocess.Popen(
                _CHILD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return f"no process could be started: {error.strerror}"
        with child:
            try:
                output, _ = child.communicate(msgspec.json.encode(request), self._deadline)
                return msgspec.json.decode(output, type=str)
            except msgspec.MsgspecError:
                return "its process died"
            except subprocess.TimeoutExpired:
                return f"no answer in {self._deadline:g} s"
            finally:
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGKILL)


def _log_results(results: Sequence[tuple[str, str]], title: str) -> None:
    log = structlog.get_logger()
    for receiver, why in results:
        if why:
            log.warning("message.not_sent", receiver=receiver, why=why, title=title)
        else:
            log.info("message.sent", receiver=receiver, title=title)
