"""Events that a listener left behind in the streams of the other STREAM_USE."""

import logging

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.streams import Group, groups, last_id
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import BusForbidden, NotAStream

from .listener import Listener

logger = logging.getLogger("lightbus_django")


def report_stranded(client: RedisClient, listener: Listener, group: str, stream_use: str) -> None:
    """Warn of events that wait for a group in streams that its listener does not read with this STREAM_USE."""
    other_use = "per_event" if stream_use == "per_api" else "per_api"
    for stream in {stream_key(event, other_use) for event in listener.events}:
        try:
            found = groups(client, stream)
        except (BusForbidden, NotAStream):
            continue  # a process that may not look at a stream has not read it either
        for one in found:
            if one.name == group:
                _warn_of(client, one, other_use)


def _warn_of(client: RedisClient, group: Group, other_use: str) -> None:
    unread = group.lag
    if unread is None and group.last_delivered_id == last_id(client, group.stream):
        unread = 0
    if group.pending or unread != 0:
        logger.warning(
            "%s: %s unread and %d pending events in %s, which is not read with this STREAM_USE. Run "
            "lightbus_listen with STREAM_USE %r until they are handled, or give them up: manage.py lightbus_retire "
            "%s --stream '%s'",
            group.name,
            "some" if unread is None else unread,
            group.pending,
            group.stream,
            other_use,
            group.name,
            group.stream,
        )
