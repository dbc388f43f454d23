"""Watches the streams of the producers' events: in which order they came, and how often."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis
from django.conf import settings

from lightbus_django.events.codec import decode
from lightbus_django.events.names import stream_key
from lightbus_django.firing.publisher import GRACE

from .listeners import ALONE, FOLLOWED, HAPPENED, LISTENERS

WITNESSED = [stream_key(name, "per_api") for name in HAPPENED]
LISTENED = [FOLLOWED, *([ALONE] if settings.CHAOS_CLUSTER else [])]
STREAMS = [*WITNESSED, *(stream_key(name, "per_api") for name in LISTENED)]

GROUPS = len(WITNESSED) * len(LISTENERS) + len(LISTENED)
"""How many consumer groups there are: all but one of the listeners read what the witness reads."""

AWAY = redis.RedisError, redis.exceptions.RedisClusterException
"""What redis-py raises if a server, or a node, is away."""


@dataclass
class Seen:
    """An event as it came first, and how often it came."""

    stream: str
    sent: int
    producer: str
    number: int
    part: int
    called_at: float
    """When on_commit() was called, in seconds since 1970."""
    waited: float
    """Seconds from then to the stream."""
    copies: int = 1

    @property
    def is_undisturbed(self) -> bool:
        """Whether a relay left it alone for certain: it does so for the time of GRACE, unless Redis was down.

        A second less, for Redis looks at its clock before a batch of commands, and not for each.
        """
        return self.copies == 1 and self.waited < GRACE.total_seconds() - 1


class Witness:
    """Has a consumer group in each stream, for its sake events are kept until it has seen them."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.seen: dict[str, Seen] = {}
        self.counts_copies = True
        self._last_ids = dict.fromkeys(WITNESSED, "0")

    def join(self) -> bool:
        """Return whether that worked; to be called until it does, before there is an event."""
        try:
            for stream in WITNESSED:
                self._join(stream)
        except AWAY:
            return False
        return True

    def _join(self, stream: str) -> None:
        try:
            self.client.xgroup_create(stream, "witness", id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def read(self) -> None:
        """Look at what is new; a server that is away is asked again next time."""
        for stream in WITNESSED:
            with suppress(*AWAY):
                self._read(stream)

    def _read(self, stream: str) -> None:
        while entries := self.client.xrange(stream, f"({self._last_ids[stream]}", count=1000):
            for stream_id, fields in entries:
                self._last_ids[stream] = stream_id.decode()
                self._see(stream, stream_id.decode(), fields)
            self.client.xgroup_setid(stream, "witness", self._last_ids[stream])

    def _see(self, stream: str, stream_id: str, fields: dict[bytes, bytes]) -> None:
        message = decode(fields, stream_id)
        if seen := self.seen.get(message.id):
            seen.copies += self.counts_copies
            return
        created_ms = UUID(message.id).int >> 80  # version 7
        waited = (int(stream_id.partition("-")[0]) - created_ms) / 1000
        self.seen[message.id] = Seen(stream, **message.payload, called_at=created_ms / 1000, waited=waited)
