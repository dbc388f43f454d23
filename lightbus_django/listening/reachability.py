"""The streams that a consumer does without, as their node of a Redis Cluster can't be used. A single server has all."""

import logging
from collections.abc import Sequence

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.exceptions import BusError

from .in_flight import InFlight

logger = logging.getLogger("lightbus_django")


class Reachability:
    """Which of a consumer's streams can be read."""

    def __init__(self, group_consumer: GroupConsumer, streams: Sequence[str], in_flight: InFlight) -> None:
        self._group_consumer = group_consumer
        self._streams = streams
        self._in_flight = in_flight

    @property
    def problem(self) -> BusError | None:
        """Why some streams can't be read."""
        return next(iter(self._group_consumer.unreachable.values()), None)

    def update(self) -> bool:
        """Do without streams whose node is of no use; return whether one is back, whose groups must be joined again.

        Raises:
            BusError: that is all of them.
        """
        known, group = self._group_consumer.unreachable, self._group_consumer.group
        unreachable = self._group_consumer.client.unreachable(self._streams)
        self._group_consumer.unreachable = unreachable
        gone = sorted(unreachable.keys() - known.keys())
        back = sorted(known.keys() - unreachable.keys())
        self._in_flight.drop_unhandled_of(gone)
        if len(unreachable) == len(self._streams):
            raise next(iter(unreachable.values()))
        if gone:
            logger.warning("%s: %s can't be read: %s", group, ", ".join(gone), unreachable[gone[0]])
        if back:
            logger.warning("%s: %s can be read again", group, ", ".join(back))
        return bool(back)

    def can_do_without(self) -> bool:
        """Whether a node is found to be of no use, and others have some of the streams."""
        unreachable = self._group_consumer.client.unreachable(self._streams)
        return len(unreachable) < len(self._streams) and bool(unreachable.keys() - self._group_consumer.unreachable)
