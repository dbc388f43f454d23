"""Handling events once: the idempotency key commits with the handler's own writes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from django.db import DatabaseError, connections
from django.utils import timezone

from .database import transient_errors
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .failures import Delivery
from .handling import Handling
from .keys import AlreadyHandled


class Inbox(Handling):
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
        handled = 0
        try:
            try:
                with transient_errors(self.using):
                    connections[self.using].ensure_connection()
                    for delivery in deliveries:
                        begin(delivery)
                        if (error := self._try(delivery, defer)) is not None:
                            self._record(delivery, error)
                        handled += 1
                        if stopping() or self.gate.is_overdue:
                            break
            except DatabaseUnavailable as trouble:
                delivery = deliveries[handled]
                error = self._persist(delivery.key, partial(self._try, delivery, defer), trouble)
                if error is not None:
                    self._record(delivery, error)
                handled += 1
        except (BusUnavailable, DatabaseUnavailable, DatabaseError):
            if not handled:
                raise
            # These are. The next call meets the trouble again.
        self._troubles.successes += handled
        return handled

    def confirm(self) -> bool:
        """Make durable what was handled since the last time; return False if all of it has to be handled again."""
        with transient_errors(self.using):
            return self.gate.pass_through()

    def _try(self, delivery: Delivery, defer: bool) -> BaseException | None:
        """Handle an event, in a transaction of its own together with its key; return its failure."""
        if not self.listener.idempotent:
            return self._attempt(lambda: self._call(delivery))
        key, now = delivery.key, timezone.now()
        try:
            return self._transact(
                lambda: self.keys.insert(delivery, now),
                lambda: self._call(delivery),
                is_committed=lambda: self.keys.of([key]).filter(processed_at=now).exists(),
                deferred_key=key if defer else None,
            )
        except AlreadyHandled:
            self.keys.check_known(delivery)
            self.gate.add(key)
            return None

    def _call(self, delivery: Delivery) -> None:
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        self.listener.call(delivery.message)

    def has_handled(self, event_names: Iterable[str]) -> bool:
        """Whether this group has handled any of these events, as far as the inbox remembers."""
        if not self.listener.idempotent:
            return False
        with transient_errors(self.using):
            return self.keys.rows.filter(event_name__in=list(event_names)).exists()

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Make a delivery a dead letter without handling it, unless it was handled before."""
        with transient_errors(self.using):
            known = self.keys.known([delivery.key])
        if not known:
            self._record(delivery, UnreadableEvent(reason))
