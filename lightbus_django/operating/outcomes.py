"""What a story consists of: how an event got onto the bus, and an outcome for each consumer group."""

from datetime import datetime
from typing import Any

import msgspec

HANDLED = "handled"
RETRYING = "retrying"
DEAD_LETTER = "dead letter"
DISCARDED = "discarded"
IN_HAND = "in hand"
WAITING = "waiting"
PAUSED = "paused"
NOT_WANTED = "not for it"
UNKNOWN = "unknown"
MISSING = "missing"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event for one consumer group."""

    group: str
    listener: str
    """Empty if the group belongs to another service, or has no listener."""
    state: str
    """One of the constants of this module."""
    text: str
    """What is known, as a sentence."""
    at: datetime | None = None
    process: str = ""
    attempts: int | None = None
    failed_id: int | None = None
    """The primary key of the failed event, if there is one."""
    edited_by: str = ""
    """Who edited the payload that the group got, or gets with its next attempt."""
    database: str = ""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one event."""

    id: str
    name: str
    payload: dict[str, Any] | None
    """None if no record has the payload any more."""
    fired_at: datetime | None
    published_at: datetime | None
    stream: str
    stream_id: str
    """Empty if the event is not published, or if that is not known."""
    origin: str
    """Where it comes from and how far it is on its way to the bus, as a sentence."""
    outbox_database: str
    """The database whose outbox has the event; empty if none has."""
    is_published: bool
    outcomes: list[Outcome]
    problems: list[str]
    """Servers that could not be asked."""
