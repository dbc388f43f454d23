"""Attempts events once: the idempotency key commits with the handler's own writes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

from django.db import DatabaseError, Error, connections
from django.utils import timezone

from lightbus_django.database.chain import Chain, ChainBroken, chain_on
from lightbus_django.database.connections import restore_autocommit
from lightbus_django.database.errors import transient_errors
from lightbus_django.database.transactions import Guard
from lightbus_django.exceptions import (
    BusUnavailable,
    DatabaseUnavailable,
    EventContended,
    KeyLocked,
    SequenceBehind,
    UnreadableEvent,
)

from .activity import COMMITTING, CONFIRMING, HANDLER, INSERTING_KEY, READING_KEY
from .attempts import Attempts, committed_and_raised
from .delivery import Delivery
from .keys import LIMITS, AlreadyHandled


class Inbox(Attempts):
    """What is delivered, handled once, and settled when `confirm` says so."""

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[..., None] = lambda *deliveries: None,
        stopping: Callable[[], bool] = lambda: False,
        defer: bool = False,
    ) -> int:
        """Handle deliveries in order, each by itself; return how many of them, from the first, are handled.

        Not all, if `stopping` says so, if it takes long, or if trouble comes behind the first one. An event that was
        handled before is left alone. A handler that raises leaves a FailedEvent.

        Args:
            deliveries: events, at least one.
            begin: is told of each event before its handler is called.
            stopping: whether to stop behind the event in hand.
            defer: commits need not wait for the disk before `confirm` does.

        Raises:
            EventContended: the first of them can't get through, and others may.
        """
        self.gate.begin()
        run = _Run(self, deliveries, begin, stopping, defer)
        try:
            try:
                with transient_errors(self.using):
                    self.connect()
                    run.step()
                    while run.goes_on(run.handled):
                        run.step()
            except DatabaseUnavailable as trouble:
                if stopping():
                    raise
                run.step_after(trouble)
        except (BusUnavailable, DatabaseUnavailable, DatabaseError, SequenceBehind):
            if not run.handled:
                raise
            # Those before it are handled. The next call meets the trouble again.
        self.troubles.successes += run.handled
        return run.handled

    def confirm(self) -> bool:
        """Make durable what was handled since the last time; return False if all of it has to be handled again."""
        self.activity.start(CONFIRMING)
        with transient_errors(self.using):
            return self.gate.pass_through()

    def call(self, delivery: Delivery) -> None:
        """Call the handler.

        Raises:
            UnreadableEvent: there is no message, or it does not fit the handler.
            Exception: whatever the handler raises.
        """
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        self.isolate(self.listener.call, delivery.message)

    def has_handled(self, event_names: Iterable[str]) -> bool:
        """Whether this group has handled any of these events, as far as the inbox remembers."""
        if not self.listener.idempotent:
            return False
        self.activity.start(READING_KEY)
        with transient_errors(self.using):
            return self.keys.of_events(event_names).exists()

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Make a delivery a dead letter without handling it, unless it was handled before.

        Raises:
            EventContended: another process has it in hand.
        """
        self.activity.start(READING_KEY, delivery)
        with transient_errors(self.using):
            known = self.keys.known([delivery.key])
        if known:
            self.gate.add_found(delivery.key)
            return
        try:
            self.record(delivery, UnreadableEvent(reason))
        except KeyLocked as locked:
            raise EventContended(str(locked)) from locked


class _Run:
    """Deliveries in order, each handled in a transaction of its own, which may begin with the end of the one before."""

    def __init__(
        self,
        inbox: Inbox,
        deliveries: Sequence[Delivery],
        begin: Callable[..., None],
        stopping: Callable[[], bool],
        defers: bool,
    ) -> None:
        self.handled = 0
        self._inbox = inbox
        self._deliveries = deliveries
        self._begin = begin
        self._stopping = stopping
        self._defers = defers
        self._is_patient = True
        self._chains = defers and len(deliveries) > 1
        self._guard: Guard
        self._now = timezone.now()

    @property
    def _delivery(self) -> Delivery:
        return self._deliveries[self.handled]

    def goes_on(self, number: int) -> bool:
        """Whether there is an event of this number, and time for it before others have their turn."""
        return number < len(self._deliveries) and not (self._stopping() or self._inbox.gate.is_overdue)

    def step(self) -> None:
        """Handle the next event, and those that can be chained to it."""
        self._end(self._try())

    def step_after(self, trouble: DatabaseUnavailable) -> None:
        """Handle the next event, which met trouble of the database."""
        if isinstance(trouble, KeyLocked):  # to try it at once again would be to wait again
            raise EventContended(str(trouble)) from trouble
        self._chains = self._is_patient = False  # what was cut off may have the key
        self._end(self._inbox.persist(self._delivery.key, self._try, trouble))

    def _end(self, error: BaseException | None) -> None:
        if error is not None:
            self._inbox.record(self._delivery, error)
        self.handled += 1

    def _try(self) -> BaseException | None:
        """Handle some events; return the failure of the last of them."""
        inbox = self._inbox
        if not inbox.listener.idempotent:
            return inbox.attempt(self._call_without_keys)
        try:
            error = inbox.transact(
                self._insert_key, self._call_chained, is_committed=self._is_committed, defers=self._defers
            )
        except AlreadyHandled:
            inbox.activity.start(READING_KEY, self._delivery)
            inbox.keys.check_known(self._delivery)
            inbox.gate.add_found(self._delivery.key)
            return self._own_failure()
        except ChainBroken as broken:
            self._chains = False
            if isinstance(broken.__cause__, Error):
                inbox.tell_of_another_try(self._delivery.key, broken.__cause__)
            return self._try()
        if error is None and self._guard.is_deferred:
            inbox.gate.add(self._delivery.key)
        return error

    def _insert_key(self) -> Guard:
        self._now = timezone.now()
        self._inbox.activity.start(INSERTING_KEY, self._delivery)
        is_patient = self._is_patient and not self._delivery.entry.is_redelivered
        with self._inbox.keys.waiting(is_patient=is_patient):
            self._guard = self._inbox.keys.insert(self._delivery, self._now)
        return self._guard

    def _is_committed(self) -> bool:
        return self._inbox.keys.of([self._delivery.key]).filter(processed_at=self._now).exists()

    def _call(self) -> None:
        activity = self._inbox.activity
        self._begin(self._delivery)
        activity.start(HANDLER, self._delivery)
        try:
            self._inbox.call(self._delivery)
        except BaseException as error:
            self._inbox.raised = self._delivery.key, self._now, error
            raise
        finally:
            activity.start(COMMITTING, self._delivery)

    def _call_without_keys(self) -> None:
        inbox, connection = self._inbox, connections[self._inbox.using]
        while True:
            self._begin(self._delivery)
            inbox.activity.start(HANDLER, self._delivery)
            inbox.call(self._delivery)
            restore_autocommit(connection, commit=True)
            if not self.goes_on(self.handled + 1):
                return
            self.handled += 1

    def _own_failure(self) -> BaseException | None:
        """Return the failure of a key that was found, if it is our own handler's that committed it and then raised."""
        key, now, error = self._inbox.raised
        if error is None or key != self._delivery.key:
            return None
        if not self._inbox.keys.of([key]).filter(processed_at=now).exists():
            return None
        return committed_and_raised(error)

    def _call_chained(self) -> None:
        with chain_on(self._inbox.using) if self._chains else nullcontext() as chain:
            self._call()
            while chain and self._link(chain):
                self._call()

    def _link(self, chain: Chain) -> bool:
        """End the transaction at hand, and begin the next; return whether that could be done."""
        inbox, number = self._inbox, self.handled + 1
        if not self.goes_on(number) or not chain.holds():
            return False
        if (defer := inbox.gate.defer(self._guard)) is None:
            return False
        now, delivery = timezone.now(), self._deliveries[number]
        is_new = chain.link(
            self._guard,
            defer,
            *inbox.keys.statement(delivery, now),
            limits=LIMITS if delivery.entry.is_redelivered else ("", ""),
        )
        if self._guard.is_deferred:
            inbox.gate.add(self._delivery.key)
        self.handled, self._now = number, now
        if not is_new:
            raise AlreadyHandled
        return True
