"""Batch handlers: many events in one transaction, and still each of them handled once, or failed by itself."""

from collections.abc import Callable, Collection, Sequence

from django.db import connections
from django.utils import timezone

from lightbus_django.conf import Settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.database.transactions import Guard
from lightbus_django.exceptions import DatabaseUnavailable, EventContended, KeyLocked, TransactionEnded

from .activity import COMMITTING, HANDLER, INSERTING_KEY
from .delivery import Delivery
from .inbox import Inbox
from .keys import AlreadyHandled
from .listener import Listener


class BatchInbox(Inbox):
    """The inbox of a listener that takes lists of events.

    If its handler raises, what it wrote is rolled back and it gets the first half of them, until the one
    event is found that it can't handle.
    """

    def __init__(self, listener: Listener, group: str, settings: Settings) -> None:
        super().__init__(listener, group, settings)
        self._failed: list[tuple[Delivery, BaseException]] = []
        """What is not recorded yet: of a handler that committed, the keys are there already."""

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[..., None] = lambda *deliveries: None,
        stopping: Callable[[], bool] = lambda: False,
        defer: bool = False,
    ) -> int:
        self._begin = begin
        self._record_failed()
        self.gate.begin()
        first = deliveries[0].key
        try:
            with transient_errors(self.using):
                self.connect()
                error = self._try_all(deliveries)
        except DatabaseUnavailable as trouble:
            if stopping():
                raise
            try:
                if isinstance(trouble, KeyLocked):
                    raise EventContended(str(trouble)) from trouble
                error = self.persist(first, lambda: self._try_all(deliveries), trouble)
            except EventContended as contended:
                if len(deliveries) == 1:
                    raise
                error = contended
        if error is not None and len(deliveries) > 1 and not isinstance(error, TransactionEnded):
            if stopping():
                return 0
            return self.handle(deliveries[: len(deliveries) // 2], begin=begin, stopping=stopping)
        if error is not None:
            self._failed = [(delivery, delivery.problem or error) for delivery in self._tried]
            self._record_failed()
        self.troubles.successes += 1
        return len(deliveries)

    def _record_failed(self) -> None:
        while self._failed:
            self.record(*self._failed[0])
            del self._failed[0]

    def _try_all(self, deliveries: Sequence[Delivery]) -> BaseException | None:
        """Handle events together, those that are not handled yet; return their failure."""
        self._tried = list(deliveries)
        if not self.listener.idempotent:
            return self.attempt(lambda: self._call_all(deliveries))
        new = {delivery.key: delivery for delivery in deliveries}
        while new:
            try:
                return self._try_new(new)
            except AlreadyHandled as taken:
                found = self.keys.known(new)
                if not found:
                    text = f"{self.group}: keys are neither inserted nor there: {taken.__cause__}"
                    raise DatabaseUnavailable(text) from taken
                for key in found:
                    self.gate.add_found(key)
                    del new[key]
                self._tried = list(new.values())
        return None

    def _try_new(self, new: dict[str, Delivery]) -> BaseException | None:
        now = timezone.now()
        guard: Guard | None = None

        def insert() -> Guard:
            nonlocal guard
            self.activity.start(INSERTING_KEY, *new.values())
            is_patient = not any(delivery.entry.is_redelivered for delivery in new.values())
            with self.keys.waiting(is_patient=is_patient):
                self.keys.insert_all(new.values(), now)
            guard = Guard(connections[self.using])
            return guard

        error = self.transact(
            insert,
            lambda: self._call_all(new.values()),
            is_committed=self.keys.of(new).filter(processed_at=now).exists,
        )
        if guard is not None and guard.is_deferred:  # by the handler, or the session
            for key in new:
                self.gate.add(key)
        return error

    def _call_all(self, deliveries: Collection[Delivery]) -> None:
        """Call the handler with those that can be read; the others have failed."""
        readable = []
        for delivery in deliveries:
            if delivery.message is not None:
                readable.append(delivery)
            elif delivery.problem is not None:
                self._failures.record(delivery, delivery.problem)
        self._begin(*readable)
        self.activity.start(HANDLER, *readable)
        try:
            if readable:
                messages = [delivery.message for delivery in readable if delivery.message is not None]
                self.isolate(self.listener.call_with, messages)
        finally:
            self.activity.start(COMMITTING, *readable)
