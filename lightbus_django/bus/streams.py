"""Whole streams, with all their groups: how old they are, who has not read them, what may go."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from lightbus_django.events.times import SKEW, is_ahead, published_at, stream_time
from lightbus_django.exceptions import GroupMissing

from .client import RedisClient
from .scripts import LAST, RETIRE, TIDY, TRIM

RETIRE_AFTER = 120.0
"""Seconds for which a group is never destroyed after one of its consumers has shown up.

Consumers show up every 10 seconds, and those of previous versions about every 65.
"""


class Group(NamedTuple):
    """A consumer group of a stream, whichever service's."""

    stream: str
    name: str
    pending: int
    lag: int | None
    """How many entries it has not read yet; None if Redis can't tell."""
    last_delivered_id: str
    idle: float | None
    """Seconds since one of its consumers last asked for events; None if it has no consumer."""

    def unread_for(self) -> float:
        """Return for how many seconds nobody has read it; infinity if nobody can tell."""
        if self.idle is not None:
            return self.idle
        now = datetime.now(UTC)
        if is_ahead(self.last_delivered_id, now):
            return math.inf
        return (now - stream_time(self.last_delivered_id)).total_seconds()


def last_id(client: RedisClient, stream: str) -> str:
    """Return the last stream id that the stream has given, 0-0 if there is no stream."""
    try:
        with client.errors(stream):
            found: str = client.redis_py.xinfo_stream(stream)["last-generated-id"].decode()
    except GroupMissing:
        return "0-0"
    return found


def end(client: RedisClient, stream: str) -> tuple[str, datetime]:
    """Return the last stream id that the stream has given, as `last_id` does, and the time at which that is so."""
    last, time = client.run(LAST, stream)
    if not time:
        return last.decode(), datetime.now(UTC)
    seconds, microseconds = map(int, time)
    return last.decode(), datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def oldest(client: RedisClient, stream: str) -> datetime | None:
    """Return when the first entry was published that the stream still has; None if it has none, or nobody can tell."""
    with client.errors(stream):
        entries = client.redis_py.xrange(stream, count=1)
        if entries and is_ahead(entries[0][0].decode(), datetime.now(UTC)):
            entries = client.redis_py.xrange(stream, count=100)
    times = (
        published_at(stream_id.decode(), fields.get(b"id", b"").decode(errors="replace"))
        for stream_id, fields in entries
        if fields is not None
    )
    return min(filter(None, times), default=None)


def first_ahead(client: RedisClient, stream: str) -> str | None:
    """Return the first stream id that is ahead of the time; None if none is."""
    now = datetime.now(UTC)
    if not is_ahead(last := last_id(client, stream), now):
        return None
    with client.errors(stream):
        entries = client.redis_py.xrange(stream, min=_id_at(now + SKEW), count=1)
    return entries[0][0].decode() if entries else last


def _id_at(time: datetime) -> str:
    return f"{round(time.timestamp() * 1000)}-0"


def groups(client: RedisClient, stream: str) -> list[Group]:
    """Return all groups of a stream; none if there is no stream."""
    found = []
    try:
        with client.errors(stream):
            rows = client.redis_py.xinfo_groups(stream)
    except GroupMissing:
        return []
    for row in rows:
        try:
            with client.errors(stream):
                idle = [consumer["idle"] / 1000 for consumer in client.redis_py.xinfo_consumers(stream, row["name"])]
        except GroupMissing:
            continue  # it has just gone
        name = row["name"].decode(errors="backslashreplace")
        last_delivered_id = row["last-delivered-id"].decode()
        found.append(Group(stream, name, row["pending"], row.get("lag"), last_delivered_id, min(idle, default=None)))
    return found


def find_streams(client: RedisClient) -> Iterator[str]:
    """Yield the keys of all streams of events on the server."""
    with client.errors():
        for key in client.redis_py.scan_iter(match="*:stream", count=1000, _type="stream"):
            with suppress(UnicodeDecodeError):  # not one of ours
                yield key.decode()


def trim(
    client: RedisClient, stream: str, *, awaited: Iterable[str], keep_since: datetime, keep_length: int, limit: int
) -> int:
    """Remove what every group has finished with; return how many entries that were.

    Args:
        awaited: groups that must be there; while one is not, nothing is removed.
        keep_since: entries from then on are kept, unless their ids are ahead of the time.
        keep_length: so many entries are kept, the newest.
        limit: remove so many at most.

    Whole nodes of a stream are removed, of 100 entries if Redis is not told otherwise; so up to that
    many more than need be are kept.
    """
    ahead = _id_at(datetime.now(UTC) + SKEW)
    removed: int = client.run(TRIM, stream, _id_at(keep_since), keep_length, limit, ahead, *awaited)
    return removed


def tidy_consumers(client: RedisClient, stream: str, group: str, *, idle: float) -> int:
    """Delete consumers idle for `idle` seconds that have nothing pending, but not a group's last one."""
    deleted: int = client.run(TIDY, stream, group, round(idle * 1000))
    return deleted


def retire(client: RedisClient, stream: str, group: str, *, idle: float) -> bool:
    """Destroy a group that nobody has read for `idle` seconds, RETIRE_AFTER at least; return whether that was so."""
    return bool(client.run(RETIRE, stream, group, round(max(idle, RETIRE_AFTER) * 1000)))
