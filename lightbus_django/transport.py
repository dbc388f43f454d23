"""Redis Streams: the only module that speaks to Redis.

A stream holds events; a consumer group remembers which of them it has delivered, and for each one
not acknowledged yet (*pending*), to which consumer, when, and how often.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .conf import URL_HELP
from .exceptions import BusError, BusUnavailable, ConfigurationError, GroupMissing
from .messages import Fields
from .scripts import RECLAIM, TAKE, TIDY, TOUCH

logger = logging.getLogger("lightbus_django")

_UNAVAILABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
)
_UNAVAILABLE_CODES = (
    "LOADING",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "MASTERDOWN",
    "NOREPLICAS",
    "UNBLOCKED",
)
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script")


class Entry(NamedTuple):
    """One delivery of a stream's entry. `fields` is empty where somebody trimmed it away."""

    stream: str
    stream_id: str
    fields: Fields
    deliveries: int = 1


class Transport:
    """One Redis server.

    Raises, from every method: BusUnavailable if Redis can't be reached in time or can't serve,
    BusError if it answers with another error.
    """

    def __init__(self, url: str, *, timeout: float, retries: int = 1) -> None:
        """Connect when first used.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            timeout: seconds that a connection or an answer may take.
            retries: how often a command is sent again over a new connection when its own turns out
                to be broken. A reader takes 0: what the broken one was sent needs a look.
        """
        self.url = url
        # Any, for redis-py's annotations speak of its asynchronous client in the same breath.
        try:
            self.client: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # Timeouts are not tried again.
                retry=Retry(NoBackoff(), retries, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError:
            raise ConfigurationError(URL_HELP) from None  # its text may hold a part of the password
        self._touch = self.client.register_script(TOUCH)
        self._take = self.client.register_script(TAKE)
        self._reclaim = self.client.register_script(RECLAIM)
        self._tidy = self.client.register_script(TIDY)

    def __str__(self) -> str:
        """The address, without user and password."""
        where = self.client.connection_pool.connection_kwargs
        if "path" in where:
            return f"unix://{where['path']}"
        scheme = self.url.partition("://")[0]
        return f"{scheme}://{where.get('host', 'localhost')}:{where.get('port', 6379)}/{where.get('db') or 0}"

    def close(self) -> None:
        self.client.close()

    # --- Publishing ---------------------------------------------------------------------------

    def publish(self, stream: str, fields: Fields) -> str:
        """Append one event; return its stream id."""
        with self._errors(stream):
            stream_id: bytes = self.client.xadd(stream, fields)
        return stream_id.decode()

    def publish_many(self, events: Iterable[tuple[str, Fields]]) -> list[str | BusError]:
        """Append events in order, in one round trip; return the stream id or the error of each."""
        pipeline = self.client.pipeline(transaction=False)
        streams = []
        for stream, fields in events:
            streams.append(stream)
            pipeline.xadd(stream, fields)
        with self._errors():
            replies = pipeline.execute(raise_on_error=False)
        results: list[str | BusError] = []
        for stream, reply in zip(streams, replies, strict=True):
            if isinstance(reply, Exception):
                results.append(self._translate(reply, stream))
            else:
                results.append(reply.decode())
        return results

    # --- Consuming ----------------------------------------------------------------------------

    def create_group(self, stream: str, group: str, consumer: str, start_id: str) -> bool:
        """Create group, stream and consumer where missing; return whether the group is new.

        In one transaction: a Lightbus service that starts destroys groups without a consumer.
        """
        pipeline = self.client.pipeline(transaction=True)
        pipeline.xgroup_create(stream, group, id=start_id, mkstream=True)
        pipeline.xgroup_createconsumer(stream, group, consumer)
        with self._errors(stream):
            created, consumer_created = pipeline.execute(raise_on_error=False)
            if isinstance(consumer_created, Exception):
                raise created if isinstance(created, Exception) else consumer_created
            if isinstance(created, Exception) and not str(created).startswith("BUSYGROUP"):
                raise created
        return not isinstance(created, Exception)

    def read(
        self,
        streams: Sequence[str],
        group: str,
        consumer: str,
        *,
        count: int,
        block: float,
        acknowledge: dict[str, list[str]],
    ) -> list[Entry]:
        """Acknowledge, then return up to `count` new entries of each stream, in one round trip.

        Waits up to `block` seconds for the first entry; 0 does not wait.

        Raises:
            GroupMissing: a stream or its group is gone.
        """
        pipeline = self.client.pipeline(transaction=False)
        for stream, stream_ids in acknowledge.items():
            pipeline.xack(stream, group, *stream_ids)
        milliseconds = max(1, round(block * 1000)) if block else None
        pipeline.xreadgroup(group, consumer, dict.fromkeys(streams, ">"), count=count, block=milliseconds)
        with self._errors(" ".join(streams)):
            reply = pipeline.execute(raise_on_error=False)[-1]
            if isinstance(reply, Exception):
                raise reply
        return [
            Entry(stream.decode(), stream_id.decode(), fields or {})
            for stream, entries in reply or ()
            for stream_id, fields in entries
        ]

    def acknowledge(self, group: str, acknowledge: dict[str, list[str]]) -> None:
        """Acknowledge stream ids, by stream."""
        pipeline = self.client.pipeline(transaction=False)
        for stream, stream_ids in acknowledge.items():
            pipeline.xack(stream, group, *stream_ids)
        with self._errors():
            pipeline.execute()

    def outstanding(self, stream: str, group: str, consumer: str, count: int) -> list[str]:
        """Return the oldest stream ids that are pending for `consumer`."""
        with self._errors(stream):
            return [row["message_id"].decode() for row in self._pending(stream, group, count, consumername=consumer)]

    def take(self, stream: str, group: str, consumer: str, stream_id: str) -> Entry | None:
        """Deliver one outstanding entry again, counting the delivery; None if it is another's by now."""
        with self._errors(stream):
            reply = self._take(keys=[stream], args=[group, consumer, stream_id])
        if reply is None:
            return None
        deliveries, entries = reply
        # An entry that was trimmed comes back as nothing, or from Redis before 7 as a nil.
        flat = entries[0][1] if entries and entries[0] else []
        return Entry(stream, stream_id, dict(zip(flat[::2], flat[1::2], strict=True)), deliveries + 1)

    def reclaim(self, stream: str, group: str, consumer: str, *, idle: float, count: int) -> tuple[int, list[str]]:
        """Make pending entries that nobody has touched for `idle` seconds outstanding for `consumer`.

        Their deliveries are not counted up. Returns how many there were, and the stream ids of those
        that somebody has trimmed away, which are acknowledged.
        """
        milliseconds = round(idle * 1000)
        with self._errors(stream):
            stream_ids = [row["message_id"] for row in self._pending(stream, group, count, idle=milliseconds)]
            if not stream_ids:
                return 0, []
            claimed, lost = self._reclaim(keys=[stream], args=[group, consumer, milliseconds, *stream_ids])
        return claimed, [stream_id.decode() for stream_id in lost]

    def last_id(self, stream: str) -> str:
        """Return the last stream id that the stream has given, 0-0 if there is no stream."""
        try:
            with self._errors(stream):
                last_id: str = self.client.xinfo_stream(stream)["last-generated-id"].decode()
        except GroupMissing:
            return "0-0"
        return last_id

    def renew(self, stream: str, group: str, consumer: str, stream_ids: Sequence[str]) -> None:
        """Start the clock of outstanding entries anew, of those that are still the consumer's."""
        with self._errors(stream):
            self._touch(keys=[stream], args=[group, consumer, 0, -1, *stream_ids])

    def hand_back(
        self, stream: str, group: str, consumer: str, stream_ids: Sequence[str], *, idle: float, deliveries: int
    ) -> None:
        """Let another process have outstanding entries at once.

        Args:
            idle: seconds of idle time after which others reclaim.
            deliveries: what to set the count of deliveries to; -1 leaves it.
        """
        with self._errors(stream):
            self._touch(keys=[stream], args=[group, consumer, round(idle * 1000), deliveries, *stream_ids])

    def position(self, stream: str, group: str) -> str:
        """Return the stream id up to which the group is done with everything."""
        with self._errors(stream):
            for row in self._pending(stream, group, 1):
                milliseconds, sequence = map(int, row["message_id"].decode().split("-"))
                return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{2**64 - 1}"
            for row in self.client.xinfo_groups(stream):
                if row["name"].decode() == group:
                    last_delivered_id: str = row["last-delivered-id"].decode()
                    return last_delivered_id
        raise GroupMissing(f"Redis at {self}: the group {group!r} of {stream!r} is gone")

    def tidy_consumers(self, stream: str, group: str, *, idle: float) -> int:
        """Delete the group's consumers idle for `idle` seconds that have nothing pending."""
        with self._errors(stream):
            deleted: int = self._tidy(keys=[stream], args=[group, round(idle * 1000)])
        return deleted

    def _pending(self, stream: str, group: str, count: int, **filters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.client.xpending_range(stream, group, min="-", max="+", count=count, **filters)
        return rows

    # --- Errors -------------------------------------------------------------------------------

    @contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            # Not chained: redis-py's own errors may quote the URL.
            raise self._translate(error, what) from None

    def _translate(self, error: Exception, what: str) -> BusError:
        text = str(error)
        if isinstance(error, redis.ReadOnlyError) or text.startswith("UNBLOCKED"):
            # After a failover the address may stand for another server, which only a new connection reaches.
            # Those that other threads have in use are theirs to give up.
            self.client.connection_pool.disconnect(inuse_connections=False)
        if isinstance(error, _UNAVAILABLE) or text.startswith(_UNAVAILABLE_CODES):
            return BusUnavailable(f"Redis at {self} is not available: {type(error).__name__}: {text}")
        if text.startswith("The XGROUP") or "NOGROUP" in text or "no such key" in text:
            return GroupMissing(f"Redis at {self}: {text}")
        if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith(_DENIED_IN_SCRIPT):
            return BusError(
                f"Redis at {self} denies its user something with {what!r}: {text}; docs/operations.md lists what to "
                "grant, and Redis's command ACL LOG what was denied"
            )
        if "WRONGTYPE" in text:
            return BusError(
                f"Redis at {self}: the key {what!r} holds something other than a stream; rename or delete it"
            )
        return BusError(f"Redis at {self}, {what}: {text}")


@lru_cache(maxsize=16)
def get_transport(url: str, timeout: float) -> Transport:
    """Return the process's Transport for `url`; `timeout` as Transport takes it."""
    return Transport(url, timeout=timeout)
