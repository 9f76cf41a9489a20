"""Double of every notifier: records its messages."""

from __future__ import annotations

from batchscribe.core.messages import Level, Message


class RecordingNotifier:
    """A protocols.Notifier that records its messages, oldest first."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        self.messages.append(message)

    def at(self, level: Level) -> list[Message]:
        """Messages of one level."""
        return [message for message in self.messages if message.level is level]
