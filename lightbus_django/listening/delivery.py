"""A delivery: one stream entry, decoded for one consumer."""

import msgspec

from lightbus_django.bus.group_reads import Entry
from lightbus_django.events.codec import decode
from lightbus_django.events.ids import event_key
from lightbus_django.events.message import EventMessage
from lightbus_django.exceptions import UnreadableEvent


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """A stream entry with its event message, or the reason why it can't be read."""

    entry: Entry
    message: EventMessage | None = None
    problem: UnreadableEvent | None = None

    @classmethod
    def of(cls, entry: Entry) -> "Delivery":
        """Decode an entry."""
        try:
            return cls(entry, decode(entry.fields, entry.stream_id, entry.deliveries))
        except UnreadableEvent as problem:
            return cls(entry, problem=problem)

    @property
    def key(self) -> str:
        """The id by which the database knows the event."""
        if self.message is not None:
            return event_key(self.message.id)
        # Its position in the stream, because a readable event may arrive later under the same id.
        return event_key(f"{self.entry.stream}/{self.entry.stream_id}")

    @property
    def event_name(self) -> str:
        """The event name, or as much of it as can be read."""
        if self.message is not None:
            return self.message.name
        names = (self.entry.fields.get(name, b"?") for name in (b"api_name", b"event_name"))
        return b".".join(names).decode(errors="backslashreplace")
