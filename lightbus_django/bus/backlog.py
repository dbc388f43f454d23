"""What a consumer group has ahead of it in a stream, and what holds a stream."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from lightbus_django.events.times import is_ahead, stream_time
from lightbus_django.exceptions import GroupMissing

from . import scripts
from .client import RedisClient

LOOK_AT = 5000
"""Entries that are looked at to count those that a listener wants. It takes Redis a few milliseconds."""


class Consumer(NamedTuple):
    """A consumer of a group: a process that reads it, or did."""

    name: str
    pending: int
    idle: float
    """Seconds since it was active."""


class Backlog(NamedTuple):
    """What a group has not read yet, and what it has not acknowledged, in one stream."""

    waiting: int
    """The number of unread events that the listener wants."""
    is_exact: bool
    """False if the number is an estimate, from the first LOOK_AT entries."""
    pending: int
    oldest: datetime | None
    """When the oldest event was published that is waiting or pending; in UTC."""
    last_delivered_id: str
    consumers: tuple[Consumer, ...]


class StreamSize(NamedTuple):
    """How large a stream is."""

    length: int
    memory: int | None
    """Bytes, as Redis estimates; None if it can't tell."""
    first_id: str | None
    last_id: str


def read_backlog(client: RedisClient, stream: str, group: str, event_names: Collection[str]) -> Backlog | None:
    """Return what a group has ahead of it, None if there is no such group.

    Args:
        event_names: the events that its listener wants.
    """
    redis_py = client.redis_py
    try:
        with client.handle_errors(stream):
            rows = {row["name"]: row for row in redis_py.xinfo_groups(stream)}
            row = rows[group.encode()]
            consumers = redis_py.xinfo_consumers(stream, group)
            oldest = redis_py.xpending(stream, group)["min"] if row["pending"] else None
    except (GroupMissing, KeyError):
        return None
    after = row["last-delivered-id"].decode()
    command = scripts.count_unread(stream, after, limit=LOOK_AT, event_names=event_names)
    seen, waiting, first, _ = client.execute(command, stream)
    is_exact = seen < LOOK_AT
    if not is_exact:
        lag = row.get("lag")
        waiting = round(waiting / seen * lag) if lag is not None else waiting
    first_id = oldest or first
    return Backlog(
        waiting,
        is_exact,
        row["pending"],
        None if first_id is None else _time(first_id.decode()),
        after,
        tuple(
            Consumer(consumer["name"].decode(errors="backslashreplace"), consumer["pending"], consumer["idle"] / 1000)
            for consumer in consumers
        ),
    )


def stream_size(client: RedisClient, stream: str) -> StreamSize | None:
    """Return how large a stream is, None if it does not exist."""
    try:
        with client.handle_errors(stream):
            found = client.redis_py.xinfo_stream(stream)
    except GroupMissing:
        return None
    (memory,) = client.send([("MEMORY", "USAGE", stream)])
    first = found["first-entry"]
    return StreamSize(
        found["length"],
        memory if isinstance(memory, int) else None,
        first[0].decode() if first else None,
        found["last-generated-id"].decode(),
    )


def _time(stream_id: str) -> datetime | None:
    return None if is_ahead(stream_id, datetime.now(UTC)) else stream_time(stream_id)
