"""Double of every notifier: records its messages and events."""

from __future__ import annotations

from collections.abc import Mapping

from batchscribe.core.messages import Level, Message


class RecordingNotifier:
    """A protocols.Notifier that records messages and events, oldest first."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.events: list[tuple[str, Mapping[str, object]]] = []

    def send(self, message: Message) -> None:
        self.messages.append(message)

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        self.events.append((kind, data))

    def at(self, level: Level) -> list[Message]:
        """Messages of one level."""
        return [message for message in self.messages if message.level is level]
