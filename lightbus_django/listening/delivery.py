"""A delivery: one stream entry, decoded for one consumer."""

import logging

import msgspec

from lightbus_django.bus.consumer_group import Entry
from lightbus_django.events.codec import decode
from lightbus_django.events.ids import event_key
from lightbus_django.events.message import EventMessage
from lightbus_django.exceptions import UnreadableEvent

logger = logging.getLogger("lightbus_django")


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """An entry to handle: the message that it holds, or the reason why it holds none."""

    entry: Entry
    message: EventMessage | None = None
    problem: UnreadableEvent | None = None

    @classmethod
    def of(cls, entry: Entry) -> "Delivery":
        try:
            return cls(entry, decode(entry.fields, entry.stream_id, entry.deliveries))
        except UnreadableEvent as problem:
            return cls(entry, problem=problem)

    @property
    def key(self) -> str:
        """What the database knows the event by."""
        if self.message is not None:
            return event_key(self.message.id)
        # Its place: a readable event that comes under the same id later is another matter.
        return event_key(f"{self.entry.stream}/{self.entry.stream_id}")

    @property
    def event_name(self) -> str:
        if self.message is not None:
            return self.message.name
        names = (self.entry.fields.get(name, b"?") for name in (b"api_name", b"event_name"))
        return b".".join(names).decode(errors="backslashreplace")
