"""A consumer's claims on what it has in flight: renewed while entries wait, released if the database hangs."""

import logging
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lightbus_django.bus.consumer_group import ALIVE_INTERVAL, GroupConsumer
from lightbus_django.exceptions import NodeUnavailable

from .activity import HANDLER, Activity, Doing
from .delivery import Delivery
from .in_flight import InFlight

logger = logging.getLogger("lightbus_django")

DATABASE_LAYER = "django.db.backends."
"""A thread whose stack has a frame in one of these modules is waiting for a database."""


class Leases:
    """The leases of one consumer.

    One thread calls `renew`, the consumer's own thread all the rest. They share `in_flight.leased` and
    `activity.current`, which are replaced as a whole and never changed.
    """

    def __init__(
        self,
        group_consumer: GroupConsumer,
        in_flight: InFlight,
        timeout: float,
        streams: Sequence[str],
        activity: Activity,
    ) -> None:
        """Make the leases of a consumer.

        Args:
            timeout: seconds after which other processes may take an entry whose lease is not renewed.
        """
        self.group_consumer = group_consumer
        self.timeout = timeout
        self.are_released = False
        """Whether the entries were released because the database hung, so that other processes may have them."""
        self._in_flight = in_flight
        self._streams = streams
        self._activity = activity
        self._mark_alive_at = 0.0
        self._has_ended = False
        self._lock = threading.Lock()
        self._thread = 0
        self._reported: Doing | None = None

    def watch_thread(self) -> None:
        """Remember the calling thread as the one that handles the events."""
        self._thread = threading.get_ident()

    def resume(self) -> None:
        """Renew again: the consumer has dropped what was released. Waits for a release that is under way."""
        with self._lock:
            self.are_released = False

    def end(self) -> None:
        """Renew nothing any more. Waits for a renewal that is under way."""
        with self._lock:
            self._has_ended = True

    def renew(self, now: float) -> None:
        """Renew all leases except for those of events whose handler exceeds the timeout; mark the consumer as alive.

        If the database does not answer for longer than the timeout, release the events instead.

        Args:
            now: the time on the monotonic clock, in seconds.
        """
        doing = self._activity.current
        exceeding: tuple[Delivery, ...] = ()
        database_hangs = False
        if doing is not None and now - doing.since > self.timeout:
            exceeding = doing.deliveries if doing.what == HANDLER else ()
            if doing is not self._reported:
                self._reported = doing
                self._report(doing, now - doing.since)
            database_hangs = doing.what != HANDLER or self._waits_for_database()
        with self._lock:
            if self._has_ended:
                return
            if not self.are_released:
                leased = [delivery for delivery in self._in_flight.leased if delivery not in exceeding]
                if database_hangs:
                    self.are_released = bool(leased)
                    self.release(leased)
                else:
                    self._renew(leased)
            if now >= self._mark_alive_at:
                self._mark_alive_at = now + ALIVE_INTERVAL
                self.group_consumer.mark_alive(self._streams)

    def release(self, deliveries: Iterable[Delivery], *, to: str | None = None) -> None:
        """Let other processes take entries at once, and don't count this delivery of them.

        Args:
            to: another consumer under whose name they wait, if not this one's.

        Raises:
            NodeUnavailable: those of other nodes of a cluster are released.
        """
        alike = defaultdict(list)
        for entry in (delivery.entry for delivery in deliveries):
            alike[entry.stream, entry.deliveries - 1].append(entry.stream_id)
        problem: NodeUnavailable | None = None
        for (stream, count), stream_ids in alike.items():
            if stream in self.group_consumer.unreachable:
                continue  # others reclaim them when they time out
            try:
                self.group_consumer.release(stream, stream_ids, idle=self.timeout + 1, deliveries=count, to=to)
            except NodeUnavailable as error:
                problem = error
        if problem is not None:
            raise problem

    def _renew(self, deliveries: Iterable[Delivery]) -> None:
        by_stream = defaultdict(list)
        for delivery in deliveries:
            by_stream[delivery.entry.stream].append(delivery.entry.stream_id)
        problem: NodeUnavailable | None = None
        for stream, stream_ids in by_stream.items():
            try:
                self.group_consumer.renew(stream, stream_ids)
            except NodeUnavailable as error:
                problem = error
        if problem is not None:
            raise problem

    def _waits_for_database(self) -> bool:
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith(DATABASE_LAYER):
                return True
            frame = frame.f_back
        return False

    def _report(self, doing: Doing, seconds: float) -> None:
        group = self.group_consumer.group
        if doing.what != HANDLER:
            text = "%s: the database has not answered for %.0f s (%s%s); other processes may take over its events"
            event = f", {doing.deliveries[0].key}" if doing.deliveries else ""
            logger.warning(text, group, seconds, doing.what, event)
        elif doing.deliveries:
            frame = sys._current_frames().get(self._thread)
            logger.warning(
                "%s: event %s exceeds ACKNOWLEDGEMENT_TIMEOUT (%.0f s so far); "
                "another process may take it. Its handler is at\n%s",
                group,
                doing.deliveries[0].entry.stream_id,
                seconds,
                "".join(traceback.format_stack(frame)) if frame else "an unknown place",
            )
