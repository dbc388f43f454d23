"""One listener's loop: what it left behind, then what others left, then what is new."""

import logging
import threading
import time
from collections import deque
from itertools import takewhile

from django.db import DatabaseError
from django.utils import timezone

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import NOBODY, Entry, GroupConsumer
from lightbus_django.conf import Settings
from lightbus_django.database.connections import release_connections
from lightbus_django.database.errors import one_line
from lightbus_django.events.codec import NOOP
from lightbus_django.exceptions import BusError, BusUnavailable, DatabaseUnavailable, EventContended, GroupMissing

from .activity import CONNECTING
from .commit_gate import WINDOW
from .delivery import Delivery
from .inbox import Inbox
from .leases import Leases
from .listener import Listener
from .offsets import Offsets
from .reader import StreamReader

logger = logging.getLogger("lightbus_django")

BLOCK = 1.0
"""Seconds that a read waits for events: short, so that a stop is quick and our idle time stays low."""

PAUSE = 0.05
"""Seconds that a read waits at least while an event is aside."""

ASIDE = 1.0
"""Seconds for which an event is set aside that can't get through, for those behind it to pass."""

MAX_ASIDE = 10
"""While so many events are aside nothing is read: those behind them would not get through either."""


class Consumer:
    """One process's member of one listener's consumer group.

    `step` is called by one thread, again and again; `renew` may be called by another.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        service_name: str,
        process_name: str,
        settings: Settings,
        client: RedisClient,
        leave: bool = False,
    ) -> None:
        """Make a consumer; it joins its group with its first step.

        Args:
            leave: nobody comes back under this process name, so `stop` removes it from the group.
        """
        self.listener = listener
        self.group = listener.group(service_name)
        self.settings = settings
        self.client = client
        self.group_consumer = GroupConsumer(client, self.group, process_name)
        self.inbox = Inbox(listener, self.group, settings)
        self.offsets = Offsets(self.group_consumer, listener, settings.stream_use, self.inbox, service_name)
        self.streams = self.offsets.streams
        self.leases = Leases(self.group_consumer, settings.acknowledgement_timeout, self.streams, self.inbox.activity)
        self.reader = StreamReader(
            self.group_consumer,
            self.streams,
            count=settings.batch_size,
            timeout=settings.acknowledgement_timeout,
        )
        self.stopping = threading.Event()
        self.retries_due = threading.Event()
        self.contended: EventContended | None = None
        """Why the last event did not get through, as long as no other one has."""
        self._leave = leave
        self._joined = False
        self._look_back = True
        self._reclaim_at = 0.0
        self._held: deque[Delivery] = deque()
        self._handled: list[Delivery] = []
        self._aside: deque[tuple[float, Delivery]] = deque()
        self._fast = False
        self._sorted_lately = False

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
            self.reader.give_up()
            self._joined, self._look_back = False, True
            return True
        except DatabaseUnavailable:
            self.inbox.activity.start(CONNECTING)  # until the next step
            raise
        except BusError:
            # Redis may have delivered entries in an answer that we never got.
            self._look_back = True
            raise

    def _step(self, now: float, block: float) -> bool:
        self.inbox.activity.end()
        if not self._joined:
            try:
                self.offsets.join()
            finally:
                self.inbox.activity.end()
            self._joined = True
        if self.leases.are_released:
            self._forget()
        self._settle()
        if not (self._held or self._handled):
            release_connections(idle=False)
        if not self._held and self._aside and now >= self._aside[0][0]:
            self._held.append(self._aside.popleft()[1])
        if self._held:
            self.reader.flush()  # what is settled is not leased any more
            return self._handle(now)
        if self._aside:
            block = min(max(block, PAUSE), self._aside[0][0] - now)
        if len(self._aside) >= MAX_ASIDE:
            self.stopping.wait(block)
            return True
        if self.reader.is_asked and self._receive(self.reader.receive(), now):
            return True
        if self._look_back:
            self._look_back = self._receive(self.reader.look_back(self._places_in_hand()), now)
            if self._look_back:
                return True
        if now >= self._reclaim_at and self._reclaim(now):
            return True
        # A retry and what is new take turns.
        retried = self.retries_due.is_set() and self._retry()
        entries = self.reader.read(0 if retried else block)
        if block and not (entries or retried or self._aside):
            release_connections(idle=True)
        return self._receive(entries, now) or retried or bool(self._aside)

    def stop(self) -> None:
        """Acknowledge what is settled, and hand the rest back to the other processes."""
        idle = self.settings.acknowledgement_timeout + 1
        to = NOBODY if self._leave else None
        self.stopping.set()
        self.leases.end_all()
        if self.reader.is_asked:
            for entry in self.reader.receive():
                self._sort(entry)
        try:
            self._settle()
        except (DatabaseUnavailable, DatabaseError) as error:
            text = "%s: %d events are handed back, though they are handled: %s"
            logger.warning(text, self.group, len(self._handled), one_line(error))
        self.reader.flush()
        left = self._in_hand()
        for delivery in left:
            entry = delivery.entry
            self.group_consumer.release(
                entry.stream, [entry.stream_id], idle=idle, deliveries=entry.deliveries - 1, to=to
            )
        if left:
            logger.info("%s: handed back %d events", self.group, len(left))
        for container in (self._held, self._handled, self._aside):
            container.clear()
        self.group_consumer.close()  # during a long handler Redis may have given the connection up
        if self._joined:
            self.offsets.remember_last()
        if self._leave and self._joined:
            for stream in self.streams:
                self.group_consumer.leave(stream)
        self.group_consumer.close()
        self.inbox.give_back()

    def renew(self, now: float | None = None) -> None:
        """Renew the leases of what waits here, and of the event in hand unless it exceeds the timeout. Show up."""
        self.leases.renew(time.monotonic() if now is None else now)

    # --- Where events come from ---------------------------------------------------------------

    def _reclaim(self, now: float) -> bool:
        if self._receive(self.reader.reclaim(), now):
            return True
        for stream in self.streams:
            self.offsets.look(stream)
        self.offsets.remember()
        self._reclaim_at = now + self.settings.reclaim_interval
        return False

    def _retry(self) -> bool:
        self.reader.flush()
        try:
            if self.inbox.retry(timezone.now()):
                return True
        finally:
            self.inbox.activity.end()
        self.retries_due.clear()
        return False

    def _receive(self, entries: list[Entry], now: float) -> bool:
        try:
            if self.reader.is_full(entries):
                self._ask_ahead(now)
        finally:
            for entry in entries:
                self._sort(entry)
        if self._held:
            started, self._fast = time.monotonic(), False
            self._handle(now)
            self._fast = not self._held and time.monotonic() - started < WINDOW
        return bool(entries)

    def _ask_ahead(self, now: float) -> None:
        """Ask for what comes after this batch if it will not wait for long, and nothing else is to be done before."""
        others_wait = self._look_back or now >= self._reclaim_at or self.retries_due.is_set()
        if self._fast and not others_wait and not self.stopping.is_set():
            self.reader.ask()

    # --- What becomes of them -----------------------------------------------------------------

    def _sort(self, entry: Entry) -> None:
        fields = entry.fields
        if not fields:
            self._say_lost(entry)
        elif fields != NOOP and self.listener.wants(fields):
            self._held.append(Delivery.of(entry))
            self._sorted_lately = True
            return
        self.reader.settle(entry)

    def _say_lost(self, entry: Entry) -> None:
        self.offsets.lost += 1
        logger.error(
            "%s: lost %s of %s: it was trimmed before it was handled", self.group, entry.stream_id, entry.stream
        )

    def _pass_over(self) -> None:
        """Settle what was published again, and is older than this listener's start."""
        if self._sorted_lately:
            older = self.offsets.older(self._held)
            for delivery in older:
                self.reader.settle(delivery.entry)
            self._held = deque(delivery for delivery in self._held if delivery not in older)
            self._sorted_lately = False

    def _handle(self, now: float) -> bool:
        self._pass_over()
        if not self._held:
            self._lease()
            return True
        first = self._held[0]
        handled = 0
        self._lease()
        self.inbox.contention.is_crowded = len(self._aside) >= MAX_ASIDE - 1
        try:
            self.inbox.connect()
            if self.leases.are_released:
                return True
            if self._has_killed(first):
                deaths = first.entry.deliveries - 1
                reason = f"its process died {deaths} times while handling it, or exceeded the timeout"
                self.inbox.dead_letter(first, reason)
                handled = 1
            else:
                handled = self.inbox.handle(
                    self._next(),
                    begin=self._begin,
                    stopping=lambda: self.stopping.is_set() or self.leases.are_released,
                    defer=len(self._held) > 1,
                )
        except EventContended as trouble:
            logger.warning("%s: %s is set aside for %g s: %s", self.group, first.key, ASIDE, one_line(trouble))
            self.contended = trouble
            self._aside.append((max(now, time.monotonic()) + ASIDE, self._held.popleft()))
        finally:
            self.inbox.activity.end()
        if handled:
            self.contended = None
        self._handled += [self._held.popleft() for _ in range(handled)]
        self._settle()
        if not self._held:
            self._lease()
        return True

    def _has_killed(self, delivery: Delivery) -> bool:
        """Whether an event has killed its process, or exceeded the timeout, too often.

        The first time may have been a neighbour's: what comes in one read is counted at once.
        """
        return delivery.entry.deliveries - 1 >= max(self.settings.max_attempts, 2)

    def _next(self) -> list[Delivery]:
        """Return what is handled in one go: up to the next event that must not be handled at all."""
        is_single = self.listener.idempotent and not self.listener.batch
        if self._held[0].entry.is_taken and not is_single:
            # If this one kills the process, those behind it would be counted, or handled, with it.
            return [self._held[0]]
        return list(takewhile(lambda delivery: not self._has_killed(delivery), self._held))

    def _begin(self, *deliveries: Delivery) -> None:
        try:
            for delivery in deliveries:
                if delivery.entry.is_taken:
                    self.reader.count_delivery(delivery.entry)
        except BusError as error:  # whatever it is, the handler has not failed
            raise BusUnavailable(str(error)) from error

    def _settle(self) -> None:
        """Let what was handled be acknowledged."""
        if not self._handled:
            return
        try:
            is_durable = self.inbox.confirm()
        finally:
            self.inbox.activity.end()
        if is_durable:
            for delivery in self._handled:
                self.reader.settle(delivery.entry)
        else:
            logger.warning("%s: the database lost commits; %d events go again", self.group, len(self._handled))
            self._held.extendleft(reversed(self._handled))
        self._handled.clear()

    def _forget(self) -> None:
        """Forget what was released while the database did not answer; what is still ours is found again."""
        for container in (self._held, self._aside):
            container.clear()
        self.contended = None
        self.leases.forget()
        self._look_back = True

    def _in_hand(self) -> list[Delivery]:
        return [*self._held, *self._handled, *(delivery for _, delivery in self._aside)]

    def _places_in_hand(self) -> set[tuple[str, str]]:
        return {(delivery.entry.stream, delivery.entry.stream_id) for delivery in self._in_hand()}

    def _lease(self) -> None:
        self.leases.hold(self._in_hand())
