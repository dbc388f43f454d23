"""The times at which republished events were first published, kept beside their stream.

Listeners skip republished events that are older than their start. The entry itself can't say so: Lightbus accepts no
additional fields.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

from lightbus_django.events.times import as_aware, stream_time
from lightbus_django.exceptions import BusError, BusForbidden

from .client import RedisClient
from .errors import is_outage
from .wire import Command

logger = logging.getLogger("lightbus_django")


def key(stream: str) -> str:
    """Return the key of a stream's first publications. In a cluster it is in the same slot as the stream."""
    return f"{{{stream}}}:republished"


def record(client: RedisClient, streams: Mapping[str, Mapping[UUID, datetime]], *, keep: float) -> dict[str, BusError]:
    """Record when events were first published, before they are published again.

    Args:
        client: the client of the streams' Redis.
        streams: by stream, the time of the first publication of each event.
        keep: seconds for which Redis keeps the record.

    Returns:
        The streams for which nothing could be recorded, and the errors.

    Raises:
        BusUnavailable: some may be recorded, which does no harm. (A node of a cluster is not all of Redis: its streams
            are returned.)
    """
    commands: list[Command] = []
    for stream, events in streams.items():
        pairs = ((event_id.bytes, _milliseconds(time)) for event_id, time in events.items())
        commands.append(("HSET", key(stream), *chain.from_iterable(pairs)))
        commands.append(("EXPIRE", key(stream), math.ceil(keep)))
    replies = client.send(commands, can_wait=True)
    problems = {}
    for number, stream in enumerate(streams):
        for reply in replies[2 * number : 2 * number + 2]:
            if isinstance(reply, Exception):
                problem = client.handle_error(reply, key(stream))
                if is_outage(problem):
                    raise problem
                problems[stream] = problem
    return problems


def look_up(client: RedisClient, stream: str, event_ids: Sequence[bytes]) -> list[datetime | None]:
    """Return when each event was first published, in UTC; None if no record says that it was republished.

    If the Redis user may not read the record, all are None: listeners go on with the permissions that the previous
    version needed.
    """
    (reply,) = client.send([("HMGET", key(stream), *event_ids)])
    if not isinstance(reply, Exception):
        return [stream_time(value.decode()) if value is not None and value.isdigit() else None for value in reply]
    problem = client.handle_error(reply, key(stream))
    if not isinstance(problem, BusForbidden):
        raise problem
    logger.warning("%s: listeners may get republished events that are older than their start: %s", stream, problem)
    return [None] * len(event_ids)


def _milliseconds(time: datetime) -> int:
    return (as_aware(time) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
