"""The streams that a consumer does without, because their node of a Redis Cluster is down. A single server has all."""

import logging
from collections.abc import Sequence

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.exceptions import NodeUnavailable

from .in_flight import InFlight

logger = logging.getLogger("lightbus_django")


class Reachability:
    """Which of a consumer's streams can be read."""

    def __init__(self, group_consumer: GroupConsumer, streams: Sequence[str], in_flight: InFlight) -> None:
        self._group_consumer = group_consumer
        self._streams = streams
        self._in_flight = in_flight

    @property
    def problem(self) -> NodeUnavailable | None:
        """Why some streams can't be read."""
        unreachable = self._group_consumer.unreachable
        return self._are_down(sorted(unreachable)) if unreachable else None

    def update(self) -> bool:
        """Do without streams whose node is down; return whether one is back, so that their groups must be joined again.

        Raises:
            NodeUnavailable: that is all of them.
        """
        known, group = self._group_consumer.unreachable, self._group_consumer.group
        unreachable = self._group_consumer.client.unreachable(self._streams)
        if unreachable == known and len(unreachable) < len(self._streams):
            return False
        self._group_consumer.unreachable = unreachable
        gone = sorted(stream for stream in unreachable if stream not in known)
        self._in_flight.drop_unhandled_of(gone)
        if len(unreachable) == len(self._streams):
            raise self._are_down(self._streams)
        if gone:
            logger.warning("%s: %s can't be read, because the nodes are down", group, ", ".join(gone))
        elif known:
            logger.warning("%s: %s can be read again", group, ", ".join(known))
        return any(stream not in unreachable for stream in known)

    def can_do_without(self) -> bool:
        """Whether a node is found to be down, and others have some of the streams."""
        known = self._group_consumer.unreachable
        unreachable = self._group_consumer.client.unreachable(self._streams)
        return len(unreachable) < len(self._streams) and any(stream not in known for stream in unreachable)

    def _are_down(self, streams: Sequence[str]) -> NodeUnavailable:
        return NodeUnavailable(f"Redis at {self._group_consumer.client}: the nodes of {', '.join(streams)} are down")
