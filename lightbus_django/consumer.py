"""One listener's loop: what it left behind, then what others left, then what is new."""

import logging
import threading
import time
from collections import defaultdict, deque

from django.utils import timezone

from .conf import Settings
from .exceptions import BusError, GroupMissing, LightbusError
from .failures import Delivery
from .inbox import Inbox
from .listeners import Listener
from .messages import NOOP, Fields, stream_key
from .transport import Entry, Transport

logger = logging.getLogger("lightbus_django")

BLOCK = 1.0
"""Seconds that a read waits for events: short, so that a stop is quick and our idle time stays low."""


class Consumer:
    """One process's member of one listener's consumer group.

    `step` is called by one thread, again and again; `renew` may be called by another.
    """

    def __init__(
        self, listener: Listener, *, service_name: str, process_name: str, settings: Settings, transport: Transport
    ) -> None:
        self.listener = listener
        self.group = listener.group(service_name)
        self.name = process_name
        self.settings = settings
        self.transport = transport
        self.inbox = Inbox(listener, self.group, settings)
        self.streams = list(dict.fromkeys(stream_key(event, settings.stream_use) for event in listener.events))
        self.stopping = threading.Event()
        self.retries_due = threading.Event()
        self._wanted = {event.encode() for event in listener.events}
        self._joined = False
        self._positions: dict[str, str] = {}
        self._look_back = True
        self._reclaim_at = 0.0
        self._outstanding: deque[tuple[str, str]] = deque()
        self._held: deque[Delivery] = deque()
        self._careful = False
        self._acknowledge: defaultdict[str, list[str]] = defaultdict(list)
        # Read by the thread that renews: replaced as a whole, never changed.
        self._leased: tuple[tuple[str, str], ...] = ()
        self._in_hand: tuple[str, str, float] | None = None

    def step(self, now: float | None = None, *, block: float = BLOCK) -> bool:
        """Do the next thing; return whether there was something to do.

        Args:
            now: the time on the monotonic clock, in seconds.
            block: seconds to wait for new events, 0 not to wait.

        Raises:
            BusError, DatabaseUnavailable: nothing is lost; call again after a while.
        """
        try:
            return self._step(time.monotonic() if now is None else now, block)
        except GroupMissing as error:
            logger.warning("%s: %s", self.group, error)
            self._joined, self._look_back = False, True
            return True
        except BusError:
            # Redis may have delivered entries in an answer that we never got.
            self._look_back = True
            raise

    def _step(self, now: float, block: float) -> bool:
        if not self._joined:
            self._join()
        if self._held:
            self.flush()  # what is settled is not leased any more
            return self._handle()
        if self._outstanding:
            return self._take()
        if self._look_back and self._list_outstanding():
            return True
        if now >= self._reclaim_at and self._reclaim(now):
            return True
        # A retry and what is new take turns.
        retried = self.retries_due.is_set() and self._retry()
        return self._read(0 if retried else block) or retried

    def stop(self) -> None:
        """Acknowledge what is settled, and hand the rest back to the other processes."""
        idle = self.settings.acknowledgement_timeout + 1
        self._leased = ()
        self.flush()
        for delivery in self._held:
            entry = delivery.entry
            self.transport.hand_back(
                entry.stream, self.group, self.name, [entry.stream_id], idle=idle, deliveries=entry.deliveries - 1
            )
        for stream, stream_id in self._outstanding:
            self.transport.hand_back(stream, self.group, self.name, [stream_id], idle=idle, deliveries=-1)
        self._held.clear()
        self._outstanding.clear()
        self.inbox.give_back()

    def flush(self) -> None:
        """Acknowledge what is settled now, instead of with the next read."""
        if self._acknowledge:
            self.transport.acknowledge(self.group, self._acknowledge)
            self._acknowledge.clear()

    def renew(self, now: float | None = None) -> None:
        """Start the clock anew of events that wait here, and of the one in hand unless it exceeds the timeout."""
        if now is None:
            now = time.monotonic()
        in_hand = self._in_hand
        by_stream = defaultdict(list)
        for stream, stream_id in self._leased:
            by_stream[stream].append(stream_id)
        if in_hand and now - in_hand[2] > self.settings.acknowledgement_timeout:
            stream, stream_id, started = in_hand
            if stream_id in by_stream[stream]:
                by_stream[stream].remove(stream_id)
            logger.warning(
                "%s: %s exceeds ACKNOWLEDGEMENT_TIMEOUT (%.0f s so far); another process may take it",
                self.group, stream_id, now - started,
            )  # fmt: skip
        for stream, stream_ids in by_stream.items():
            if stream_ids:
                self.transport.renew(stream, self.group, self.name, stream_ids)

    # --- Where events come from ---------------------------------------------------------------

    def _join(self) -> None:
        for stream in self.streams:
            lost = self._positions.get(stream)
            if lost and _id_key(self.transport.last_id(stream)) < _id_key(lost):
                lost = "0"  # another stream under the same name
            start_id = lost or self.listener.start_id
            if self.transport.create_group(stream, self.group, self.name, start_id):
                if lost:
                    logger.warning(
                        "%s: the group was gone from %s; made anew at %s, where it was", self.group, stream, lost
                    )
                else:
                    logger.info("%s: new consumer group of %s, start %s", self.group, stream, self.listener.start)
            self._positions[stream] = self.transport.position(stream, self.group)
        self._joined = True

    def _list_outstanding(self) -> bool:
        self.flush()
        for stream in self.streams:
            stream_ids = self.transport.outstanding(stream, self.group, self.name, self.settings.batch_size)
            self._outstanding.extend((stream, stream_id) for stream_id in stream_ids)
        self._lease()
        self._look_back = bool(self._outstanding)
        return self._look_back

    def _take(self) -> bool:
        self.flush()  # lest what is settled counts as in hand, should the next one kill us
        stream, stream_id = self._outstanding[0]
        entry = self.transport.take(stream, self.group, self.name, stream_id)
        self._outstanding.popleft()
        if entry is not None:
            self._receive(entry)
        return self._handle() if self._held else True

    def _reclaim(self, now: float) -> bool:
        self.flush()
        count = 0
        for stream in self.streams:
            claimed, lost = self.transport.reclaim(
                stream,
                self.group,
                self.name,
                idle=self.settings.acknowledgement_timeout,
                count=self.settings.batch_size,
            )
            count += claimed
            for stream_id in lost:
                self._say_lost(stream, stream_id)
            self._positions[stream] = self.transport.position(stream, self.group)
        if count:
            logger.info("%s: reclaimed %d events from processes that exceeded the timeout", self.group, count)
            self._look_back = True
            return True
        self._reclaim_at = now + self.settings.reclaim_interval
        return False

    def _retry(self) -> bool:
        self.flush()
        if self.inbox.retry(timezone.now()):
            return True
        self.retries_due.clear()
        return False

    def _read(self, block: float) -> bool:
        entries = self.transport.read(
            self.streams,
            self.group,
            self.name,
            count=self.settings.batch_size,
            block=block,
            acknowledge=self._acknowledge,
        )
        self._acknowledge.clear()
        for entry in entries:
            self._receive(entry)
        if self._held:
            self._handle()
        return bool(entries)

    # --- What becomes of them -----------------------------------------------------------------

    def _receive(self, entry: Entry) -> None:
        fields = entry.fields
        if not fields:
            self._say_lost(entry.stream, entry.stream_id)
        elif fields != NOOP and self._wants(fields):
            self._held.append(Delivery.of(entry))
            return
        self._settle(entry)

    def _say_lost(self, stream: str, stream_id: str) -> None:
        logger.error("%s: lost %s of %s: it was trimmed before it was handled", self.group, stream_id, stream)

    def _wants(self, fields: Fields) -> bool:
        api_name, event_name = fields.get(b"api_name"), fields.get(b"event_name")
        # What does not even say its name may be ours.
        return not api_name or not event_name or api_name + b"." + event_name in self._wanted

    def _handle(self) -> bool:
        first = self._held[0]
        deaths = first.entry.deliveries - 1
        self._lease()
        if deaths >= self.settings.max_attempts:
            self.inbox.bury(first, f"its process died {deaths} times while handling it, or exceeded the timeout")
            settled = 1
        else:
            together = self._together()
            try:
                settled = self.inbox.handle(together, begin=self._begin, stopping=self.stopping.is_set)
            except Exception as error:
                self._careful = True
                if isinstance(error, LightbusError) or len(together) == 1:
                    raise
                logger.info("%s: %d events go one by one: %s", self.group, len(together), type(error).__name__)
                return True
            finally:
                self._in_hand = None
        for _ in range(settled):
            self._settle(self._held.popleft().entry)
        if not self._held:
            self._careful = False
            self._lease()
        return True

    def _together(self) -> list[Delivery]:
        """Return what is to be handled next: all of the batch, but one at a time once something went wrong."""
        if self._careful or self._held[0].entry.deliveries > 1:
            return [self._held[0]]
        return list(self._held)

    def _begin(self, delivery: Delivery) -> None:
        self._in_hand = (delivery.entry.stream, delivery.entry.stream_id, time.monotonic())

    def _settle(self, entry: Entry) -> None:
        self._acknowledge[entry.stream].append(entry.stream_id)

    def _lease(self) -> None:
        held = [(delivery.entry.stream, delivery.entry.stream_id) for delivery in self._held]
        self._leased = (*held, *self._outstanding)


def _id_key(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))
