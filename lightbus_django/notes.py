"""Notes in Redis of which rows of the outbox are published, until the database knows it.

So who commits and publishes pays for no second commit; rows are marked in bulk.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from .exceptions import BusError
from .messages import Fields
from .scripts import PUBLISH
from .transport import Transport, flat

MAX_FIELDS = 3500
"""An event of more fields can't be published with a note: Lua takes no more values at a time."""

ID_LENGTH = 16
"""Bytes of a note; what has more or less is somebody else's."""

NOTES_SIZE = 1000
"""How many notes are read at a time."""


class Notes:
    """The notes that a service keeps of the outbox in one of its databases.

    Its methods raise as those of Transport do.
    """

    def __init__(self, transport: Transport, service_name: str, using: str) -> None:
        self._transport = transport
        self._owner = f"{service_name}:{using}"

    def key(self, stream: str) -> str:
        """Return the key of the notes about events in `stream`; a cluster keeps it where the stream is."""
        return f"{{{stream}}}:published:{self._owner}"

    def publish(self, events: Iterable[tuple[str, UUID, Fields]]) -> list[int | BusError]:
        """Append events to their streams in order, in one round trip, and note each that is there.

        Args:
            events: stream, id of the row, and fields of each.

        Returns how many notes of its stream there are by then, or the error, of each.
        """
        streams, commands = [], []
        for stream, row_id, fields in events:
            streams.append(stream)
            commands.append((b"EVAL", PUBLISH, 2, stream, self.key(stream), row_id.bytes, *flat(fields)))
        return [
            self._transport.translate(reply, f"{stream} or {self.key(stream)}")
            if isinstance(reply, Exception)
            else reply
            for stream, reply in zip(streams, self._transport.send(commands), strict=True)
        ]

    def read(self, stream: str) -> list[UUID]:
        """Return the ids of rows that are noted, NOTES_SIZE at most."""
        with self._transport.errors(self.key(stream)):
            notes = self._transport.client.srandmember(self.key(stream), NOTES_SIZE)
        return [UUID(bytes=note) for note in notes if len(note) == ID_LENGTH]

    def remove(self, stream: str, row_ids: Sequence[UUID]) -> None:
        """Forget the notes of these rows, which the database knows to be published."""
        with self._transport.errors(self.key(stream)):
            self._transport.client.srem(self.key(stream), *[row_id.bytes for row_id in row_ids])
