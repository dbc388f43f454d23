"""Whole streams with all their groups: how old entries are, which groups have not read them, what can be removed."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from lightbus_django.events.times import SKEW, is_ahead, published_at, stream_time
from lightbus_django.exceptions import GroupMissing

from . import scripts
from .client import RedisClient
from .consumer_group import PLACEHOLDER
from .wire import as_dict, as_fields

RETIRE_AFTER = 120.0
"""Seconds for which a group is safe from `retire` after one of its consumers was active.

Consumers are active at least every 10 seconds, and those of previous versions about every 65.
"""


class Group(NamedTuple):
    """A consumer group of a stream, of any service."""

    stream: str
    name: str
    pending: int
    lag: int | None
    """Number of entries that it has not read; None if Redis can't tell."""
    last_delivered_id: str
    idle: float | None
    """Seconds since one of its consumers was active; None if it has no consumers."""

    def unread_for(self) -> float:
        """Return the number of seconds since the group was last read; infinity if that is unknown."""
        if self.idle is not None:
            return self.idle
        now = datetime.now(UTC)
        if is_ahead(self.last_delivered_id, now):
            return math.inf
        return (now - stream_time(self.last_delivered_id)).total_seconds()


def last_id(client: RedisClient, stream: str) -> str:
    """Return the last id that was generated for a stream, 0-0 if it does not exist."""
    try:
        found: bytes = as_dict(client.execute(("XINFO", "STREAM", stream), stream))["last-generated-id"]
    except GroupMissing:
        return "0-0"
    return found.decode()


def last_id_and_time(client: RedisClient, stream: str) -> tuple[str, datetime]:
    """Return what `last_id` returns, and the current time: of Redis if its user may call TIME, else of this machine."""
    last, time = client.execute(scripts.last_id_and_time(stream), stream)
    if not time:
        return last.decode(), datetime.now(UTC)
    seconds, microseconds = map(int, time)
    return last.decode(), datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def oldest_time(client: RedisClient, stream: str) -> datetime | None:
    """Return when the oldest entry of a stream was published; None if that is unknown or there is none."""
    entries = client.execute(("XRANGE", stream, "-", "+", "COUNT", 1), stream)
    if entries and is_ahead(entries[0][0].decode(), datetime.now(UTC)):
        entries = client.execute(("XRANGE", stream, "-", "+", "COUNT", 100), stream)
    times = (
        published_at(stream_id.decode(), as_fields(flat).get(b"id", b"").decode(errors="replace"))
        for stream_id, flat in entries
    )
    return min(filter(None, times), default=None)


def first_ahead(client: RedisClient, stream: str) -> str | None:
    """Return the first stream id that is ahead of the clock, or None."""
    now = datetime.now(UTC)
    if not is_ahead(last := last_id(client, stream), now):
        return None
    entries = client.execute(("XRANGE", stream, _id_at(now + SKEW), "+", "COUNT", 1), stream)
    return entries[0][0].decode() if entries else last


def _id_at(time: datetime) -> str:
    return f"{round(time.timestamp() * 1000)}-0"


def groups(client: RedisClient, stream: str) -> list[Group]:
    """Return all groups of a stream; none if the stream does not exist."""
    found = []
    try:
        rows = list(map(as_dict, client.execute(("XINFO", "GROUPS", stream), stream)))
    except GroupMissing:
        return []
    for row in rows:
        try:
            consumers = client.execute(("XINFO", "CONSUMERS", stream, row["name"]), stream)
        except GroupMissing:
            continue  # destroyed in the meantime
        idle = [as_dict(consumer)["idle"] / 1000 for consumer in consumers]
        name = row["name"].decode(errors="backslashreplace")
        last_delivered_id = row["last-delivered-id"].decode()
        found.append(Group(stream, name, row["pending"], row.get("lag"), last_delivered_id, min(idle, default=None)))
    return found


def find_streams(client: RedisClient) -> Iterator[str]:
    """Yield the keys of all event streams. While a slot of a cluster moves, a key may come twice."""
    with client.handle_errors():
        for key in client.servers.scan("MATCH", "*:stream", "COUNT", 1000, "TYPE", "stream"):
            with suppress(UnicodeDecodeError):  # not one of ours
                yield key.decode()


def trim(
    client: RedisClient,
    stream: str,
    *,
    required_groups: Iterable[str],
    keep_since: datetime,
    keep_length: int,
    limit: int,
) -> int:
    """Remove entries that every group has finished with; return their number.

    Redis only removes whole nodes of a stream, of 100 entries by default. So up to that many entries more than
    necessary are kept.

    Args:
        client: the client of the stream's Redis.
        stream: the stream to trim.
        required_groups: while one of these groups does not exist, nothing is removed.
        keep_since: entries published since then are kept. This does not apply to ids ahead of the clock.
        keep_length: number of newest entries to keep.
        limit: maximum number of entries to remove.
    """
    command = scripts.trim(
        stream,
        keep_from=_id_at(keep_since),
        keep_length=keep_length,
        limit=limit,
        ahead_from=_id_at(datetime.now(UTC) + SKEW),
        required_groups=required_groups,
    )
    removed: int = client.execute(command, stream)
    return removed


def delete_idle_consumers(client: RedisClient, stream: str, group: str, *, idle: float) -> int:
    """Delete consumers idle for `idle` seconds that have nothing pending, but never the last one; return how many."""
    deleted: int = client.execute(scripts.delete_idle_consumers(stream, group, idle=idle), stream)
    return deleted


def move_group(client: RedisClient, stream: str, old: str, new: str, *, idle: float) -> int | None:
    """Give the place of a group, with its pending entries, to another group, and destroy it.

    Return the number of pending entries; None if a consumer of one of the groups was active within `idle` seconds, or
    within RETIRE_AFTER.
    """
    command = scripts.move_group(stream, old, new, PLACEHOLDER, idle=max(idle, RETIRE_AFTER))
    count: int = client.execute(command, stream)
    return None if count < 0 else count


def retire(client: RedisClient, stream: str, group: str, *, idle: float) -> bool:
    """Destroy a group whose consumers have been idle for `idle` seconds, but at least RETIRE_AFTER.

    Return whether it was destroyed.
    """
    return bool(client.execute(scripts.retire(stream, group, idle=max(idle, RETIRE_AFTER)), stream))
