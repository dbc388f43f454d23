"""Events that are published again, for instance after a loss of Redis, reach no listener that started after them."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from lightbus_django.bus import first_publications as republished
from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.events.times import SKEW, event_bytes, first_id, has_time

from .delivery import Delivery
from .group_records import Start

logger = logging.getLogger("lightbus_django")


def young_streams(starts: Mapping[str, Start]) -> list[str]:
    """Return the streams in which new events can't be told from those before the group's start by their ids."""
    now = datetime.now(UTC)
    return [stream for stream, start in starts.items() if start.at and now < start.at + SKEW]


def published_before(
    starts: Mapping[str, Start], deliveries: Sequence[Delivery], group_consumer: GroupConsumer
) -> list[Delivery]:
    """Return the deliveries whose event was first published before the group started.

    Args:
        starts: where the group started, by stream.
        deliveries: some deliveries of this group.

    Raises:
        BusError: Redis can't tell.
    """
    if not deliveries:
        return []
    times = {stream: start.at for stream, start in starts.items() if start.at}
    # An event is published after the call that fired it, and the time of that call is in the event's id. So a later id
    # needs no look-up.
    last_ids = {stream: first_id(at + SKEW) for stream, at in times.items()}
    doubtful: defaultdict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        stream, message = delivery.entry.stream, delivery.message
        if not delivery.entry.may_be_republished:
            continue
        if stream in last_ids and message and message.id < last_ids[stream] and has_time(message.id):
            doubtful[stream].append(delivery)
    found = []
    for stream, those in doubtful.items():
        ids = [event_bytes(delivery.message.id) for delivery in those if delivery.message]
        published = republished.look_up(group_consumer.client, stream, ids)
        older = [delivery for delivery, at in zip(those, published, strict=True) if at and at < times[stream]]
        if older:
            text = "%s: skipped %d events of %s that were published again: the originals are older than the group"
            logger.info(text, group_consumer.group, len(older), stream)
        found += older
    return found
