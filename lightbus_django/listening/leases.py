"""What a consumer has in hand: kept from other processes while it waits for its turn. And that it is alive at all."""

import logging
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from lightbus_django.bus.consumer_group import ALIVE_INTERVAL, Entry, GroupConsumer

from .activity import HANDLER, Activity, Doing
from .delivery import Delivery

logger = logging.getLogger("lightbus_django")

DATABASE_LAYER = "django.db.backends."
"""In whose modules a thread is that waits for an answer of a database."""


class Leases:
    """The claims of one consumer on entries that it was given and has not settled.

    One thread says what it holds, another one renews. So what they share is replaced as a whole, never changed.
    """

    def __init__(
        self, group_consumer: GroupConsumer, timeout: float, streams: Sequence[str], activity: Activity
    ) -> None:
        self.group_consumer = group_consumer
        self.timeout = timeout
        self.are_released = False
        """Whether what was held may be another process's by now, for the database did not answer."""
        self._streams = streams
        self._activity = activity
        self._show_up_at = 0.0
        self._has_ended = False
        self._lock = threading.Lock()
        self._thread = 0
        self._held: tuple[Delivery, ...] = ()
        self._told: Doing | None = None

    def hold(self, held: Iterable[Delivery] = ()) -> None:
        """Hold these, and nothing else."""
        self._thread = threading.get_ident()
        self._held = tuple(held)

    def end_all(self) -> None:
        """Hold nothing any more; no renewal is under way when this returns."""
        with self._lock:
            self._held = ()
            self._has_ended = True

    def forget(self) -> None:
        """What was released is known to be; a release that is under way is over when this returns."""
        with self._lock:
            self.are_released = False

    def renew(self, now: float) -> None:
        """Renew what is held, except for what is in hand if that exceeds the timeout; and show up.

        If the database does not answer, all is released. `now` is the time on the monotonic clock, in seconds.
        """
        doing = self._activity.current
        exceeds: tuple[Delivery, ...] = ()
        is_released = False
        if doing is not None and now - doing.since > self.timeout:
            exceeds = doing.deliveries if doing.what == HANDLER else ()
            if doing is not self._told:
                self._told = doing
                self._tell(doing, now - doing.since)
            is_released = doing.what != HANDLER or self._waits_for_database()
        with self._lock:
            held = [delivery.entry for delivery in self._held if delivery not in exceeds]
            if is_released:
                self._release(held)
            else:
                self._renew(held)
            if now >= self._show_up_at and not self._has_ended:
                self._show_up_at = now + ALIVE_INTERVAL
                self.group_consumer.mark_alive(self._streams)

    def _renew(self, entries: Iterable[Entry]) -> None:
        by_stream = defaultdict(list)
        for entry in entries:
            by_stream[entry.stream].append(entry.stream_id)
        for stream, stream_ids in by_stream.items():
            self.group_consumer.renew(stream, stream_ids)

    def _release(self, entries: Collection[Entry]) -> None:
        """Let other processes have these at once, with no delivery counted, and hold nothing any more."""
        alike = defaultdict(list)
        for entry in entries:
            alike[entry.stream, entry.deliveries - 1].append(entry.stream_id)
        if alike:
            self.are_released = True
            self._held = ()
        for (stream, deliveries), stream_ids in alike.items():
            self.group_consumer.release(stream, stream_ids, idle=self.timeout + 1, deliveries=deliveries)

    def _waits_for_database(self) -> bool:
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith(DATABASE_LAYER):
                return True
            frame = frame.f_back
        return False

    def _tell(self, doing: Doing, seconds: float) -> None:
        group = self.group_consumer.group
        if doing.what != HANDLER:
            text = "%s: the database has not answered for %.0f s (%s%s); other processes may take what is in hand"
            event = f", {doing.deliveries[0].key}" if doing.deliveries else ""
            logger.warning(text, group, seconds, doing.what, event)
        elif doing.deliveries:
            frame = sys._current_frames().get(self._thread)
            logger.warning(
                "%s: %s exceeds ACKNOWLEDGEMENT_TIMEOUT (%.0f s so far); "
                "another process may take it. Its handler is at\n%s",
                group,
                doing.deliveries[0].entry.stream_id,
                seconds,
                "".join(traceback.format_stack(frame)) if frame else "an unknown place",
            )
