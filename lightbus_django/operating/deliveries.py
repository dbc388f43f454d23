"""How far a consumer group is with events that its listener's database does not know."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from lightbus_django.bus import entries, first_publications
from lightbus_django.bus.backlog import StreamSize, read_positions, stream_size
from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.stream_ids import id_key
from lightbus_django.events.times import as_aware, event_bytes, has_time, is_ahead, stream_time
from lightbus_django.models import ConsumerGroup

from .fired_events import Fired


class Sorted(NamedTuple):
    """Events by how far a group is with them."""

    on_their_way: list[Fired]
    """Not read, or not acknowledged, and still there."""
    gone: list[Fired]
    """Acknowledged, or no longer in the stream."""


def sort(client: RedisClient, stream: str, group: str, events: Sequence[Fired], *, has_run: bool) -> Sorted:
    """Return how far a group is with published events of a stream.

    Args:
        has_run: whether the listener has run. If it has not, everything is ahead of it.

    Raises:
        BusError
    """
    position = read_positions(client, stream, [group]).get(group)
    size = stream_size(client, stream)
    known = [event for event in events if event.stream_id]
    unknown = [event for event in events if not event.stream_id]
    there = [event for event in known if _is_there(event, size)]
    gone = [event for event in known if not _is_there(event, size)]
    if position is None:
        return Sorted(list(events), []) if not has_run else Sorted(there + unknown, gone)
    last = id_key(position.last_delivered_id)
    unread = [event for event in there if id_key(event.stream_id) > last]
    read = [event for event in there if id_key(event.stream_id) <= last]
    flags = entries.are_pending(client, stream, group, [event.stream_id for event in read])
    on_their_way = unread + [event for event, is_pending in zip(read, flags, strict=True) if is_pending]
    gone += [event for event, is_pending in zip(read, flags, strict=True) if not is_pending]
    for event in unknown:
        # The previous version recorded no stream ids, and when it had marked the row instead of when it published.
        is_done = size is None or id_key(position.done_with) >= id_key(size.last_id)
        (gone if is_done or _is_before(event, position.done_with) else on_their_way).append(event)
    return Sorted(on_their_way, gone)


def _is_there(event: Fired, size: StreamSize | None) -> bool:
    if size is None or size.first_id is None:
        return False
    return id_key(size.first_id) <= id_key(event.stream_id) <= id_key(size.last_id)


def _is_before(event: Fired, stream_id: str) -> bool:
    return event.published_at is not None and event.published_at < stream_time(stream_id)


def precedes_start(event: Fired, row: ConsumerGroup | None) -> bool:
    """Whether an event was published before the listener's start, so that it is not for it."""
    if row is None or row.starts_at is None or event.published_at is None:
        return False
    return event.published_at < as_aware(row.starts_at)


def may_precede_start(event: Fired, row: ConsumerGroup | None) -> bool:
    """Whether an event may be older than the listener, because no record says when that started."""
    if row is None or row.start_id or event.published_at is None:
        return False
    return event.published_at < as_aware(row.began_at)


def find_first_publications(client: RedisClient, stream: str, events: Sequence[Fired]) -> list[Fired]:
    """Return events with the times of their first publications, if they were published again."""
    ids = [event_bytes(event.id) for event in events if has_time(event.id)]
    times = iter(first_publications.look_up(client, stream, ids) if ids else ())
    return [_published_at(event, next(times)) if has_time(event.id) else event for event in events]


def _published_at(event: Fired, time: datetime | None) -> Fired:
    return event if time is None else event._replace(published_at=time)


def is_pruned(event: Fired, oldest: datetime, now: datetime) -> bool:
    """Whether the key of an event may have been pruned.

    Args:
        oldest: the time before which keys are old.
        now: the current time.
    """
    if event.published_at is None or (event.stream_id and is_ahead(event.stream_id, now)):
        return False
    return event.published_at < oldest
