"""Publish confirmations: ids of outbox rows whose events are in the stream, kept in Redis.

With them, publishing after a commit needs no second commit: the rows are marked later, many at once.
"""

import re
from collections.abc import Iterable, Mapping
from uuid import UUID

from lightbus_django.events.codec import Fields
from lightbus_django.exceptions import BusError

from . import scripts
from .client import RedisClient
from .wire import Command

MAX_FIELDS = 3500
"""An event with more fields can't be confirmed: Lua can't pass on more values at once."""

ID_LENGTH = 16
"""Bytes of a confirmation. A longer or shorter one is not ours."""

CONFIRMATIONS_SIZE = 1000
"""Maximum number of confirmations that are read at once."""

_WITH_STREAM_ID = re.compile(rb".{%d}\d{1,20}-\d{1,20}" % ID_LENGTH, re.DOTALL)


class Confirmations:
    """The publish confirmations for the outbox of a service in one database.

    Every method raises what RedisClient raises.
    """

    def __init__(self, client: RedisClient, service_name: str, using: str) -> None:
        self._client = client
        self._owner = f"{service_name}:{using}"

    def key(self, stream: str) -> str:
        """Return the key of a stream's confirmations. In a cluster it is in the same slot as the stream."""
        return f"{{{stream}}}:published:{self._owner}"

    def times_key(self, stream: str) -> str:
        """Return the key of confirmations with stream ids, which the previous version does not write."""
        return f"{self.key(stream)}:times"

    def append_confirmed(self, events: Iterable[tuple[str, UUID, Fields]]) -> list[int | BusError]:
        """Append events to their streams in order, in one round trip, and confirm each of them.

        Args:
            events: stream, row id and fields of each event.

        Returns:
            For each event the number of confirmations of its stream, or the error.
        """
        streams, commands = [], []
        for stream, row_id, fields in events:
            streams.append(stream)
            keys = stream, self.key(stream), self.times_key(stream)
            commands.append(scripts.append_confirmed(*keys, row_id=row_id.bytes, fields=fields))
        return [
            self._client.handle_error(reply, f"{stream} or {self.key(stream)}")
            if isinstance(reply, Exception)
            else reply
            for stream, reply in zip(streams, self._client.send(commands, can_wait=True), strict=True)
        ]

    def read(self, stream: str) -> Mapping[UUID, str | None]:
        """Return confirmed rows, and the stream id of each; None if the previous version confirmed it.

        If they are fewer than CONFIRMATIONS_SIZE, these are all.
        """
        keys = self.key(stream), self.times_key(stream)
        replies = self._client.send([("SRANDMEMBER", key, CONFIRMATIONS_SIZE) for key in keys], can_wait=True)
        for key, reply in zip(keys, replies, strict=True):
            if isinstance(reply, Exception):
                raise self._client.handle_error(reply, key)
        plain, with_stream_ids = replies
        stream_ids = {
            UUID(bytes=value[:ID_LENGTH]): value[ID_LENGTH:].decode()
            for value in with_stream_ids
            if _WITH_STREAM_ID.fullmatch(value)
        }
        if len(with_stream_ids) >= CONFIRMATIONS_SIZE:
            return stream_ids
        return {UUID(bytes=value): None for value in plain if len(value) == ID_LENGTH} | stream_ids

    def remove(self, stream: str, stream_ids: Mapping[UUID, str | None]) -> None:
        """Remove the confirmations of rows that are marked as published in the database."""
        with_stream_ids = [row_id.bytes + stream_id.encode() for row_id, stream_id in stream_ids.items() if stream_id]
        commands: list[Command] = [("SREM", self.key(stream), *[row_id.bytes for row_id in stream_ids])]
        if with_stream_ids:
            commands.append(("SREM", self.times_key(stream), *with_stream_ids))
        self._client.execute_all(commands, self.key(stream))
