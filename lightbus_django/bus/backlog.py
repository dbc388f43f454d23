"""What a consumer group has ahead of it in a stream, and what holds a stream."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from lightbus_django.events.times import is_ahead, stream_time
from lightbus_django.exceptions import GroupMissing

from . import scripts
from .client import RedisClient
from .stream_ids import previous_id
from .wire import as_dict

LOOK_AT = 5000
"""Entries that are looked at to count those that a listener wants. It takes Redis a few milliseconds."""

MAX_BYTES = 8 * 1024 * 1024
"""Bytes of content after which no more entries are looked at, because large ones take Redis longer."""


class Unread(NamedTuple):
    """What lies ahead in a stream."""

    looked_at: int
    wanted: int
    """The number of entries that a listener wants, among those that were looked at."""
    first_id: str | None
    """The stream id of the first of these."""
    is_complete: bool
    """False if more entries follow than were looked at."""


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
    """False if the number is an estimate, from the first entries."""
    pending: int
    oldest: datetime | None
    """When the oldest event was published that is waiting or pending; in UTC."""
    last_delivered_id: str
    consumers: tuple[Consumer, ...]


class Position(NamedTuple):
    """How far a group is in a stream, as stream ids."""

    done_with: str
    """Everything up to this one is acknowledged."""
    last_delivered_id: str


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
    try:
        rows = map(as_dict, client.execute(("XINFO", "GROUPS", stream), stream))
        row = {row["name"]: row for row in rows}[group.encode()]
        consumers = list(map(as_dict, client.execute(("XINFO", "CONSUMERS", stream, group), stream)))
        oldest = client.execute(("XPENDING", stream, group), stream)[1] if row["pending"] else None
    except (GroupMissing, KeyError):
        return None
    after = row["last-delivered-id"].decode()
    unread = count_unread(client, stream, after, event_names)
    waiting, lag = unread.wanted, row.get("lag")
    if not unread.is_complete and lag is not None:
        waiting = round(waiting / unread.looked_at * lag)
    first_id = oldest.decode() if oldest else unread.first_id
    return Backlog(
        waiting,
        unread.is_complete,
        row["pending"],
        None if first_id is None else _time(first_id),
        after,
        tuple(
            Consumer(consumer["name"].decode(errors="backslashreplace"), consumer["pending"], consumer["idle"] / 1000)
            for consumer in consumers
        ),
    )


def count_unread(client: RedisClient, stream: str, after: str, event_names: Collection[str], last: str = "+") -> Unread:
    """Count the events of these names after a stream id, up to `last`; look at LOOK_AT entries at most."""
    command = scripts.count_unread(
        stream, after, last=last, limit=LOOK_AT, max_bytes=MAX_BYTES, event_names=event_names
    )
    seen, wanted, first_id, is_complete = client.execute(command, stream)
    return Unread(seen, wanted, first_id.decode() if first_id else None, bool(is_complete))


def read_positions(client: RedisClient, stream: str, groups: Sequence[str]) -> dict[str, Position]:
    """Return how far groups are in a stream; those that don't exist are left out."""
    found = {}
    replies = client.send([scripts.progress(stream, group) for group in groups])
    for group, reply in zip(groups, replies, strict=True):
        if isinstance(reply, Exception):
            problem = client.handle_error(reply, stream)
            if not isinstance(problem, GroupMissing):
                raise problem
        elif reply is not None:
            oldest, delivered = reply[:2]
            done_with = previous_id(oldest.decode()) if oldest else delivered.decode()
            found[group] = Position(done_with, delivered.decode())
    return found


def stream_size(client: RedisClient, stream: str) -> StreamSize | None:
    """Return how large a stream is, None if it does not exist."""
    try:
        found = as_dict(client.execute(("XINFO", "STREAM", stream), stream))
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
