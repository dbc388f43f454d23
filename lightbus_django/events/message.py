"""EventMessage, which handlers get."""

from datetime import datetime
from typing import Any

import msgspec

from .ids import uuid7
from .names import split_name
from .times import published_at


class EventMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One fired event.

    `payload` is what was fired. In a handler it has the types of JSON: only the handler's arguments are converted to
    their annotations. `stream_id` is None until the event is in its stream. `attempt` counts the deliveries to this
    consumer group, from 1.
    """

    id: str
    api_name: str
    event_name: str
    version: int = 1
    payload: dict[str, Any]
    stream_id: str | None = None
    attempt: int = 1

    @property
    def name(self) -> str:
        return f"{self.api_name}.{self.event_name}"

    @property
    def published_at(self) -> datetime | None:
        """When the event was added to its stream; aware, in UTC. None if that is unknown."""
        return None if self.stream_id is None else published_at(self.stream_id, self.id)


def new_message(name: str, payload: dict[str, Any]) -> EventMessage:
    """Return a message with a new id.

    Raises:
        InvalidEventName: `name` is not `api_name.event`.
    """
    api_name, event_name = split_name(name if isinstance(name, str) else repr(name))
    return EventMessage(id=str(uuid7()), api_name=api_name, event_name=event_name, payload=payload)
