"""Alerts to the user, each repeated only after some hours."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from batchscribe.control_place import build_url
from batchscribe.controller.context import World, log
from batchscribe.core import keys
from batchscribe.core.messages import Level, Message
from batchscribe.errors import BatchscribeError

ALERT_EVERY_HOURS = 6


def alert_conflict(world: World, key: str) -> None:
    """Alerts about an ignored control object of another writer."""
    place = build_url(world.output, keys.CONTROL)
    text = f"{key} was not written by this scheduler: it is ignored. Check who may write to {place}"
    alert(world, "conflict", "batchscribe: a control object is not ours", text)


def alert_overdue(world: World, text: str) -> None:
    """Alerts about chunks that wait too long, or failed too often."""
    alert(world, "overdue", "batchscribe: chunks wait too long", text)


def alert(world: World, key: str, title: str, text: str, level: Level = Level.WARNING) -> None:
    """Logs an alert, and sends it unless one was sent lately."""
    log.warning("alert.raised", title=title, detail=text)
    send_alert(world, key, title, text, level)


def send_alert(world: World, key: str, title: str, text: str, level: Level = Level.WARNING) -> None:
    """Sends an alert about an error that the command itself prints."""
    send_once(world, key, Message(title, text, level))


def send_once(world: World, key: str, message: Message) -> bool:
    """Sends a message unless one with this key was sent lately.

    Recorded after it was sent: if the process dies in between, it is repeated, not lost for hours.
    """
    now = world.clock.now()
    try:
        due = world.ledger.is_alert_due(key, now, timedelta(hours=ALERT_EVERY_HOURS))
    except BatchscribeError:
        due = True
    if due:
        world.notifier.send(message)
        with suppress(BatchscribeError):
            world.ledger.record_alert(key, now)
    return due
