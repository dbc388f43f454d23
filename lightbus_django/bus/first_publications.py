"""When events that were published again were published first: kept beside their stream, for listeners that began later.

The entry of an event that is published again looks like any other, and must: nothing may be added to it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

from lightbus_django.events.times import as_aware, stream_time
from lightbus_django.exceptions import BusError, BusForbidden, BusUnavailable

from .client import RedisClient

logger = logging.getLogger("lightbus_django")


def key(stream: str) -> str:
    """Return the key of the first publications beside a stream; a cluster keeps it where the stream is."""
    return f"{{{stream}}}:republished"


def record(client: RedisClient, streams: Mapping[str, Mapping[UUID, datetime]], *, keep: float) -> dict[str, BusError]:
    """Record when events were published first, before they are published again.

    Args:
        streams: by the stream, the first publication of each event.
        keep: seconds for which Redis keeps the record.

    Returns the streams beside which nothing could be recorded, and why.

    Raises:
        BusUnavailable: some may be recorded, which does no harm.
    """
    commands: list[tuple[object, ...]] = []
    for stream, events in streams.items():
        pairs = ((event_id.bytes, _milliseconds(time)) for event_id, time in events.items())
        commands.append(("HSET", key(stream), *chain.from_iterable(pairs)))
        commands.append(("EXPIRE", key(stream), math.ceil(keep)))
    replies = client.send(commands)
    problems = {}
    for number, stream in enumerate(streams):
        for reply in replies[2 * number : 2 * number + 2]:
            if isinstance(reply, Exception):
                problem = client.translate(reply, key(stream))
                if isinstance(problem, BusUnavailable):
                    raise problem
                problems[stream] = problem
    return problems


def look_up(client: RedisClient, stream: str, event_ids: Sequence[bytes]) -> list[datetime | None]:
    """Return when each event was published first, in UTC; None if it was not published again, as far as known."""
    (reply,) = client.send([("HMGET", key(stream), *event_ids)])
    if not isinstance(reply, Exception):
        return [stream_time(value.decode()) if value is not None and value.isdigit() else None for value in reply]
    problem = client.translate(reply, key(stream))
    if not isinstance(problem, BusForbidden):
        raise problem
    # A listener goes on where its Redis user has the rights that the previous version needed.
    logger.warning("events that are published again may be older than their listener's start: %s", problem)
    return [None] * len(event_ids)


def _milliseconds(time: datetime) -> int:
    return (as_aware(time) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
