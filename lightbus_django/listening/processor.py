"""Hands waiting events to the inbox, and moves them on by what came of it."""

import logging
import threading
import time
from collections.abc import Sequence

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import BusError, BusUnavailable, EventContended

from .delivery import Delivery
from .in_flight import InFlight
from .inbox import Inbox
from .leases import Leases
from .listener import Listener
from .pause import Pause

logger = logging.getLogger("lightbus_django")

ASIDE = 1.0
"""Seconds for which a contended event is set aside, so that others can pass it."""

MAX_ASIDE = 10
"""While so many events are set aside, nothing is read: new events would probably not get through either."""


class Processor:
    """Handles what waits in one consumer."""

    def __init__(
        self,
        listener: Listener,
        group_consumer: GroupConsumer,
        in_flight: InFlight,
        inbox: Inbox,
        leases: Leases,
        *,
        stopping: threading.Event,
        pause: Pause,
        max_attempts: int,
    ) -> None:
        """Make the processor of a consumer.

        Args:
            stopping, pause: tell when no further event should be started.
            max_attempts: after how many deaths of its process an event becomes a dead letter, at least two.
        """
        self.group_consumer = group_consumer
        self.in_flight = in_flight
        self.inbox = inbox
        self.leases = leases
        self.contended: EventContended | None = None
        """Why the last event was set aside; None once another one has been handled."""
        self.settled_at: float | None = None
        """When events were last settled, on the monotonic clock."""
        self._stopping = stopping
        self._pause = pause
        self._max_deaths = max(max_attempts, 2)
        self._is_chained = listener.idempotent and not listener.batch

    @property
    def is_crowded(self) -> bool:
        """Whether so many events are set aside that nothing should be read."""
        return len(self.in_flight.set_aside) >= MAX_ASIDE

    def handle(self, now: float) -> None:
        """Handle what waits: as much of it as the inbox takes in one go.

        Raises:
            BusError, DatabaseUnavailable: the events still wait; call again after a while.
        """
        first = self.in_flight.waiting[0]
        self.inbox.contention.is_crowded = len(self.in_flight.set_aside) >= MAX_ASIDE - 1
        handled = 0
        try:
            self.inbox.connect()
            if self.leases.are_released:
                return
            if self._has_killed(first):
                deaths = first.entry.deliveries - 1
                reason = f"its process died, or exceeded the timeout, {deaths} times while handling it"
                self.inbox.dead_letter(first, reason)
                handled = 1
            else:
                handled = self.inbox.handle(
                    self._next(),
                    begin=self._begin,
                    stopping=self._is_stopping,
                    defer=len(self.in_flight.waiting) > 1,
                )
        except EventContended as trouble:
            text = "%s: event %s is set aside for %g s so that others can pass: %s"
            logger.warning(text, self.group_consumer.group, first.key, ASIDE, one_line(trouble))
            self.contended = trouble
            self.in_flight.put_aside(max(now, time.monotonic()) + ASIDE)
        finally:
            self.inbox.activity.end()
        if handled:
            self.contended = None
        self.in_flight.finish(handled)
        self.confirm()

    def confirm(self) -> None:
        """Settle what was handled, once its commits are durable. What the database has lost is handled again.

        Raises:
            DatabaseUnavailable: the events are still to be confirmed; call again after a while.
        """
        if not self.in_flight.handled:
            return
        try:
            is_durable = self.inbox.confirm()
        finally:
            self.inbox.activity.end()
        if is_durable:
            deliveries = self.in_flight.handled
            self.in_flight.settle()
            self.settled_at = time.monotonic()
            self.inbox.tally.handled(self.inbox.announcer.handled_of(deliveries))
            self.inbox.announcer.settled(deliveries)
        else:
            text = "%s: the database lost commits; handling %d events again"
            logger.warning(text, self.group_consumer.group, len(self.in_flight.handled))
            self.in_flight.redo()
            self.inbox.announcer.forget()

    def drop_released(self) -> None:
        """Drop what the leases released. What is still this consumer's is found again among its pending entries."""
        self.in_flight.drop_unhandled()
        self.contended = None
        self.leases.resume()

    def _has_killed(self, delivery: Delivery) -> bool:
        """Whether the process of an event died, or exceeded the timeout, too often.

        At least twice, because the first delivery is counted for a whole batch: another event of it may be to blame.
        """
        return delivery.entry.deliveries - 1 >= self._max_deaths

    def _next(self) -> Sequence[Delivery]:
        """Return what to handle in one go, up to the next event that must not be handled at all."""
        waiting = self.in_flight.waiting
        if waiting[0].entry.is_redelivered and not self._is_chained:
            # If this event kills the process, those behind it would be counted, or handled, with it.
            return waiting[:1]
        killers = (number for number, delivery in enumerate(waiting) if self._has_killed(delivery))
        return waiting[: next(killers, len(waiting))]

    def _begin(self, *deliveries: Delivery) -> None:
        """Count the deliveries whose turn has come, in case they kill the process."""
        try:
            for delivery in deliveries:
                if delivery.entry.is_redelivered:
                    self.group_consumer.count_delivery(delivery.entry)
        except BusUnavailable:
            raise
        except BusError as error:  # of any kind: the handler has not failed
            raise BusUnavailable(str(error)) from error

    def _is_stopping(self) -> bool:
        return self._stopping.is_set() or self._pause.is_wanted or self.leases.are_released
