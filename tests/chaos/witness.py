"""Watches the stream of the producers' events: in which order they came, and how often."""

from dataclasses import dataclass
from uuid import UUID

import redis

from lightbus_django.events.codec import decode
from lightbus_django.events.names import stream_key
from lightbus_django.firing.publisher import GRACE

from .listeners import FOLLOWED, HAPPENED

STREAMS = [stream_key(name, "per_api") for name in (HAPPENED, FOLLOWED)]


@dataclass
class Seen:
    """An event as it came first, and how often it came."""

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
    """Has a consumer group, for its sake events are kept until it has seen them."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.seen: dict[str, Seen] = {}
        self._last_id = "0"

    def join(self) -> bool:
        """Return whether that worked; to be called until it does, before there is an event."""
        try:
            self.client.xgroup_create(STREAMS[0], "witness", id="0", mkstream=True)
        except redis.ResponseError as error:
            return str(error).startswith("BUSYGROUP")
        except redis.RedisError:
            return False
        return True

    def read(self) -> None:
        """Look at what is new; a server that is away is asked again next time."""
        try:
            while entries := self.client.xrange(STREAMS[0], f"({self._last_id}", count=1000):
                for stream_id, fields in entries:
                    self._last_id = stream_id.decode()
                    self._see(self._last_id, fields)
                self.client.xgroup_setid(STREAMS[0], "witness", self._last_id)
        except redis.RedisError:
            pass

    def _see(self, stream_id: str, fields: dict[bytes, bytes]) -> None:
        message = decode(fields, stream_id)
        if seen := self.seen.get(message.id):
            seen.copies += 1
            return
        created_ms = UUID(message.id).int >> 80  # version 7
        waited = (int(stream_id.partition("-")[0]) - created_ms) / 1000
        self.seen[message.id] = Seen(**message.payload, called_at=created_ms / 1000, waited=waited)
