"""One listener's loop: its own pending events first, then what others left behind, then new ones."""

import logging
import threading
import time
from collections.abc import Callable

from django.db import DatabaseError
from django.utils import timezone

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.consumer_group import PLACEHOLDER, GroupConsumer
from lightbus_django.bus.group_reads import Entry
from lightbus_django.conf import Settings
from lightbus_django.database.connections import release_connections
from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import BusError, DatabaseUnavailable, EventContended, GroupMissing, NodeUnavailable

from .activity import CONNECTING
from .in_flight import InFlight
from .inbox import Inbox
from .intake import Intake
from .leases import Leases
from .listener import Listener
from .offsets import Offsets
from .pause import Pause
from .processor import Processor
from .reachability import Reachability
from .reader import StreamReader
from .republished import young_streams
from .state import State

logger = logging.getLogger("lightbus_django")

BLOCK = 1.0
"""Seconds that a read waits for new events: short, so that a stop is quick and our idle time in Redis stays low."""

OFFSETS_INTERVAL = 30.0
"""Seconds between two looks at the offsets of a listener that gets no events."""

PAUSE = 0.05
"""Minimum number of seconds that a read waits while an event is set aside."""


class Consumer:
    """One process's consumer in one listener's group.

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
            leave: the process name won't be used again, so `stop` removes it from the group.
        """
        self.listener = listener
        self.group = listener.group(service_name)
        self.settings = settings
        self.client = client
        self.state = State.JOINING
        self.stopping = threading.Event()
        self.pause = Pause()
        self.stepped_at: float | None = None
        """When the last step began, on the monotonic clock."""
        self.retries_due = threading.Event()
        self.group_consumer = GroupConsumer(client, self.group, process_name)
        self.inbox = Inbox(listener, self.group, process_name, settings)
        self.offsets = Offsets(self.group_consumer, listener, settings.stream_use, self.inbox, service_name)
        self.streams = self.offsets.streams
        self.in_flight = InFlight()
        self.reachability = Reachability(self.group_consumer, self.streams, self.in_flight)
        timeout = settings.acknowledgement_timeout
        self.intake = Intake(listener, self.group_consumer, self.in_flight, self.offsets)
        self.leases = Leases(self.group_consumer, self.in_flight, timeout, self.streams, self.inbox.activity)
        self.reader = StreamReader(
            self.group_consumer, self.streams, self.in_flight, count=settings.batch_size, timeout=timeout
        )
        self.processor = Processor(
            listener,
            self.group_consumer,
            self.in_flight,
            self.inbox,
            self.leases,
            stopping=self.stopping,
            pause=self.pause,
            max_attempts=settings.max_attempts,
        )
        self.reclaim_at = 0.0
        """When to look next for events that others left behind, on the monotonic clock."""
        self.offsets_at = 0.0
        """When to look next at the offsets although no event has come, on the monotonic clock."""
        self._leave = leave

    @property
    def has_joined(self) -> bool:
        return self.state is not State.JOINING

    @property
    def contended(self) -> EventContended | None:
        """Why the last event was set aside; None once another one has been handled."""
        return self.processor.contended

    @property
    def problem(self) -> EventContended | BusError | None:
        """Why it can't do all of its work, though it can do some."""
        return self.contended or self.reachability.problem

    def step(self, now: float | None = None, *, block: float = BLOCK) -> bool:
        """Do the next thing; return whether there was something to do.

        Args:
            now: the time on the monotonic clock, in seconds.
            block: seconds to wait for new events, 0 not to wait.

        Raises:
            BusError, DatabaseUnavailable: nothing is lost; call again after a while.
        """
        self.stepped_at = time.monotonic()
        try:
            return self._step(self.stepped_at if now is None else now, block)
        except GroupMissing as error:
            logger.warning("%s: %s", self.group, error)
            self.group_consumer.close()
            self.state = State.JOINING
            return True
        except DatabaseUnavailable:
            self.inbox.activity.start(CONNECTING)  # until the next step
            raise
        except BusError as error:
            # Redis may have delivered entries in an answer that never arrived.
            if self.has_joined:
                self.state = State.OWN_PENDING
            if isinstance(error, NodeUnavailable) and self.reachability.can_do_without():
                return True
            raise

    def _step(self, now: float, block: float) -> bool:
        self.inbox.activity.end()
        self.leases.watch_thread()
        if self.reachability.update():
            self.state = State.JOINING
        if not self.has_joined:
            self.offsets.join()
            self.state = State.OWN_PENDING
            if self.offsets.records.paused_by is not None:
                self.pause.begin(self.offsets.records.paused_by)
        if self.leases.are_released:
            self.processor.drop_released()
            self.state = State.OWN_PENDING
        self.processor.confirm()
        if self.pause.is_wanted:
            self._rest(block)
            return False
        if self.state is State.PAUSED:
            logger.info("%s: resumed", self.group)
            self.state = State.OWN_PENDING
        if not self.in_flight.has_work:
            release_connections(idle=False)
            self.in_flight.resume(now)
        if self.in_flight.has_work:
            self.reader.flush()  # what is settled has no lease any more
            self._handle(now)
            return True
        if self.in_flight.set_aside:
            due, _ = self.in_flight.set_aside[0]
            block = min(max(block, PAUSE), due - now)
        if self.processor.is_crowded:
            self.stopping.wait(block)
            return True
        return self._fetch(now, block)

    def _rest(self, block: float) -> None:
        """Acknowledge what is settled, release the rest, and wait."""
        if self.state is not State.PAUSED:
            self.reader.flush()
            self.leases.release(self.in_flight.leased)
            self.processor.drop_released()
            self.inbox.give_back()
            self.state = State.PAUSED
            logger.info("%s: paused by %s", self.group, self.pause.by or "unknown")
        release_connections(idle=True)
        self.stopping.wait(block)

    def stop(self) -> None:
        """Acknowledge what is settled, and release the rest to other processes.

        Raises:
            NodeUnavailable: the other nodes of a cluster have done it.
        """
        self.stopping.set()
        self.leases.end()
        try:
            self.processor.confirm()
        except (DatabaseUnavailable, DatabaseError) as error:
            text = "%s: releasing %d events that are handled, because their commits can't be confirmed: %s"
            logger.warning(text, self.group, len(self.in_flight.handled), one_line(error))
        released = self.in_flight.leased
        problems = [*self._attempt(self.reader.flush), *self._attempt(self._release_all)]
        self.group_consumer.unreachable = self.client.unreachable(self.streams)
        if released and not problems:
            logger.info("%s: released %d events to other processes", self.group, len(released))
        self.in_flight.drop_all()
        self.group_consumer.close()  # Redis may have closed the connection during a long handler
        if self.has_joined:
            self.offsets.save_last()
            if self._leave:
                for stream in self.group_consumer.reachable(self.streams):
                    self.group_consumer.leave(stream)
        self.group_consumer.close()
        self.inbox.give_back()
        self.state = State.STOPPED
        for problem in problems:
            raise problem

    def _release_all(self) -> None:
        self.leases.release(self.in_flight.leased, to=PLACEHOLDER if self._leave else None)

    def _attempt(self, work: Callable[[], None]) -> list[NodeUnavailable]:
        """Do something; return the error if one of the nodes of a cluster can't. The others have done it."""
        try:
            work()
        except NodeUnavailable as error:
            return [error]
        return []

    def renew(self, now: float | None = None) -> None:
        """Renew the leases of what is in flight, unless the event in hand exceeds the timeout."""
        self.leases.renew(time.monotonic() if now is None else now)

    # --- Where events come from ---------------------------------------------------------------

    def _fetch(self, now: float, block: float) -> bool:
        """Get events from where the state says, and handle them; return whether there was something to do."""
        if self.state is State.OWN_PENDING:
            if self._receive(self.reader.own_pending(), now):
                return True
            self.state = State.READING
            self.offsets_at = 0.0  # it may not have read for a while
        if self.state is State.READING and now >= self.reclaim_at:
            self.state = State.RECLAIMING
        if self.state is State.RECLAIMING:
            if self._receive(self.reader.reclaim(), now):
                return True
            if now >= self.offsets_at:
                self.offsets.update()
                self.offsets_at = now + OFFSETS_INTERVAL
            self.reclaim_at = now + self.settings.reclaim_interval
            self.state = State.READING
        # A retry and new events take turns.
        has_retried = self.retries_due.is_set() and self._retry()
        entries = self.reader.read(0 if has_retried else block, young_streams(self.offsets.records.starts))
        waits = has_retried or bool(self.in_flight.set_aside)
        if block and not (entries or waits):
            release_connections(idle=True)
        return self._receive(entries, now) or waits

    def _retry(self) -> bool:
        self.reader.flush()
        try:
            if self.inbox.retry(timezone.now()):
                return True
        finally:
            self.inbox.activity.end()
        self.retries_due.clear()
        return False

    # --- What becomes of them -----------------------------------------------------------------

    def _receive(self, entries: list[Entry], now: float) -> bool:
        """Handle what the listener wants of these entries, and settle the rest; return whether there are any."""
        if entries:
            self.offsets_at = 0.0
        self.intake.receive(entries)
        if self.in_flight.fetched:
            self._handle(now)
        return bool(entries)

    def _handle(self, now: float) -> None:
        self.intake.admit()
        if self.in_flight.waiting:
            self.processor.handle(now)
