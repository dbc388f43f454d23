"""Notes in Redis of which rows of the outbox are published, until the database knows it.

So who commits and publishes pays for no second commit; rows are marked in bulk.
"""

import re
from collections.abc import Iterable, Mapping
from uuid import UUID

from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusError

from .client import RedisClient
from .scripts import PUBLISH
from .wire import flat

MAX_FIELDS = 3500
"""An event of more fields can't be published with a note: Lua takes no more values at a time."""

ID_LENGTH = 16
"""Bytes of a note; what has more or less is somebody else's."""

CONFIRMATIONS_SIZE = 1000
"""How many notes are read at a time."""

_TIME = re.compile(rb".{%d}\d{1,20}-\d{1,20}" % ID_LENGTH, re.DOTALL)


class Confirmations:
    """The notes that a service keeps of the outbox in one of its databases.

    Its methods raise as those of RedisClient do.
    """

    def __init__(self, client: RedisClient, service_name: str, using: str) -> None:
        self._client = client
        self._owner = f"{service_name}:{using}"

    def key(self, stream: str) -> str:
        """Return the key of the notes about events in `stream`; a cluster keeps it where the stream is."""
        return f"{{{stream}}}:published:{self._owner}"

    def times_key(self, stream: str) -> str:
        """Return the key of the stream ids of these events, which the previous version does not know."""
        return f"{self.key(stream)}:times"

    def publish(self, events: Iterable[tuple[str, UUID, Fields]]) -> list[int | BusError]:
        """Append events to their streams in order, in one round trip, and note each that is there.

        Args:
            events: stream, id of the row, and fields of each.

        Returns how many notes of its stream there are by then, or the error, of each.
        """
        streams, commands = [], []
        for stream, row_id, fields in events:
            streams.append(stream)
            keys = stream, self.key(stream), self.times_key(stream)
            commands.append((b"EVAL", PUBLISH, len(keys), *keys, row_id.bytes, *flat(fields)))
        return [
            self._client.translate(reply, f"{stream} or {self.key(stream)}") if isinstance(reply, Exception) else reply
            for stream, reply in zip(streams, self._client.send(commands), strict=True)
        ]

    def read(self, stream: str) -> Mapping[UUID, str | None]:
        """Return rows that are noted, and the stream id of each row's event; None if the previous version noted it.

        If they are fewer than CONFIRMATIONS_SIZE, they are all.
        """
        keys = self.key(stream), self.times_key(stream)
        replies = self._client.send([("SRANDMEMBER", key, CONFIRMATIONS_SIZE) for key in keys])
        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, Exception):
                raise self._client.translate(reply, key)
        notes, times = replies
        with_times = {
            UUID(bytes=note[:ID_LENGTH]): note[ID_LENGTH:].decode() for note in times if _TIME.fullmatch(note)
        }
        if len(times) >= CONFIRMATIONS_SIZE:
            return with_times
        return {UUID(bytes=note): None for note in notes if len(note) == ID_LENGTH} | with_times

    def remove(self, stream: str, stream_ids: Mapping[UUID, str | None]) -> None:
        """Forget the notes of these rows, which the database knows to be published."""
        times = [key.bytes + stream_id.encode() for key, stream_id in stream_ids.items() if stream_id]
        with self._client.errors(self.key(stream)):
            self._client.redis_py.srem(self.key(stream), *[key.bytes for key in stream_ids])
            if times:
                self._client.redis_py.srem(self.times_key(stream), *times)
