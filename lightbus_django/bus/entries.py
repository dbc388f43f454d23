"""One entry of a stream: what it holds, and how far each consumer group is with it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from lightbus_django.events.codec import Fields
from lightbus_django.events.times import is_ahead, stream_time
from lightbus_django.exceptions import GroupMissing

from . import scripts
from .client import RedisClient
from .stream_ids import id_key
from .streams import Group
from .wire import as_fields

SEARCH_SIZE = 50_000
"""Maximum number of entries that are searched for an event whose stream id is not known."""

SEARCH_CHUNKS = 25
"""Maximum number of scanned lists in which ids of events are searched for."""

SCAN_SIZE = 2000
"""Number of entries that a scan looks at in one go, which takes Redis a few milliseconds."""

SCAN_BYTES = 8 * 1024 * 1024
"""Bytes of content after which a scan goes on in another command, so that others have their turn."""

_CLOCK_SKEW = timedelta(seconds=5)
"""How much earlier than its event id says an event may have been published."""

_DELAY = timedelta(minutes=1)
"""How much later than its event id says an event is expected to be published, by a service whose outbox is not ours."""


class Placement(NamedTuple):
    """How far a group is with an entry: it has not read it, has it pending, or has acknowledged it."""

    is_read: bool
    consumer: str
    """The consumer that the entry is pending for; empty if it is not pending."""
    idle: float
    """Seconds since it was delivered to that consumer, or its lease was renewed."""
    deliveries: int


def read_entry(client: RedisClient, stream: str, stream_id: str) -> Fields | None:
    """Return the fields of an entry; None if it is not in the stream."""
    entries = client.execute(("XRANGE", stream, stream_id, stream_id), stream)
    return as_fields(entries[0][1]) if entries else None


def latest(client: RedisClient, stream: str, count: int) -> list[tuple[str, Fields]]:
    """Return the last entries of a stream with their stream ids, the last one first."""
    found = client.execute(("XREVRANGE", stream, "+", "-", "COUNT", count), stream)
    return [(stream_id.decode(), as_fields(flat)) for stream_id, flat in found]


def find_entry(client: RedisClient, stream: str, event_id: str, fired_at: datetime) -> tuple[str, Fields] | None:
    """Look for an event among the entries that were added after it was fired; return its stream id and fields."""
    seen = 0
    for scanned in scan(client, stream, fired_at - _CLOCK_SKEW):
        for event in scanned:
            if event.event_id == event_id:
                fields = read_entry(client, stream, event.stream_id)
                return None if fields is None else (event.stream_id, fields)
        seen += len(scanned)
        if seen >= SEARCH_SIZE:
            break
    return None


def find_ids(client: RedisClient, stream: str, prefix: str, since: datetime, until: datetime) -> tuple[list[str], bool]:
    """Look for events whose ids begin with `prefix`, among the entries that were added in a span of time.

    Entries that are ahead of the clock are searched as well. Return the ids, and whether all entries were looked at.
    """
    found: list[str] = []
    now = datetime.now(UTC)
    for count, scanned in enumerate(scan(client, stream, since - _CLOCK_SKEW)):
        if count == SEARCH_CHUNKS:
            return found, False
        for event in scanned:
            if event.event_id.startswith(prefix):
                found.append(event.event_id)
            elif stream_time(event.stream_id) > until + _DELAY and not is_ahead(event.stream_id, now):
                return found, True
    return found, True


class ScannedEvent(NamedTuple):
    """An entry without its payload."""

    stream_id: str
    event_id: str
    name: str


def scan(client: RedisClient, stream: str, since: datetime) -> Iterator[list[ScannedEvent]]:
    """Yield the events of a stream that were added since a time, in lists of up to SCAN_SIZE."""
    after: str | None = f"{max(0, round(since.timestamp() * 1000) - 1)}-{2**64 - 1}"
    while after is not None:
        last, rows = client.execute(scripts.scan_events(stream, after, limit=SCAN_SIZE, max_bytes=SCAN_BYTES), stream)
        yield [
            ScannedEvent(stream_id.decode(), *(text.decode(errors="replace") for text in (event_id, api + b"." + name)))
            for stream_id, event_id, api, name in rows
        ]
        after = last.decode() if last else None


def are_pending(client: RedisClient, stream: str, group: str, stream_ids: Sequence[str]) -> list[bool]:
    """Return for each stream id whether it is pending in a group."""
    commands = [("XPENDING", stream, group, stream_id, stream_id, 1) for stream_id in stream_ids]
    return [bool(reply) for reply in client.execute_all(commands, stream)]


def place(client: RedisClient, group: Group, stream_id: str) -> Placement | None:
    """Return how far a group is with an entry of its stream; None if it was destroyed.

    Args:
        group: the group as it was a moment ago. What it has acknowledged since then counts as not read.
    """
    is_read = id_key(stream_id) <= id_key(group.last_delivered_id)
    try:
        command = "XPENDING", group.stream, group.name, stream_id, stream_id, 1
        pending = client.execute(command, group.stream)
    except GroupMissing:
        return None
    if not pending:
        return Placement(is_read, "", 0.0, 0)
    ((_, consumer, idle, deliveries),) = pending
    return Placement(is_read, consumer.decode(errors="backslashreplace"), idle / 1000, deliveries)
