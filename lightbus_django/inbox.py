"""Handling events once: the idempotency key commits with the handler's own writes."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from django.db import DatabaseError, IntegrityError, router, transaction
from django.db.models import QuerySet

from .conf import Settings
from .database import independent_hooks, is_transient, nobody_to_blame
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .failures import Delivery, Failures
from .listeners import Listener
from .messages import EventMessage
from .models import FailedEvent, ProcessedEvent

WINDOW = 0.1
"""Seconds for which events share a transaction: fast handlers share a commit, slow ones do not."""

# What a handler may raise and its process goes on: sys.exit() and a cancelled coroutine raise no Exception.
_FAILURES = (Exception, SystemExit, asyncio.CancelledError)


class _KeyTaken(Exception):
    """The inbox has one of the keys already."""


class Inbox:
    """One listener's part of the database.

    Its methods raise DatabaseUnavailable or BusUnavailable where nobody is to blame: then what they
    would have done is not committed, and they may be called again.
    """

    def __init__(self, listener: Listener, group: str, settings: Settings) -> None:
        self.listener = listener
        self.group = group
        self.using = listener.using or router.db_for_write(ProcessedEvent)
        self._failures = Failures(group, self.using, settings)
        self._max_attempts = settings.max_attempts
        self._batch_size = self._share = settings.batch_size
        self._claimed: FailedEvent | None = None

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[[Delivery], None] = lambda delivery: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> int:
        """Handle deliveries in order; return how many of them, from the first, are settled.

        Not all, if the window closes or `stopping()` says so. `begin` is told of each event before
        its handler is called. An event that was handled before is left alone. A handler that raises
        leaves a FailedEvent, and its neighbours alone.
        """
        if not self.listener.idempotent:
            return self._handle_without_keys(deliveries, begin, stopping)
        deliveries = deliveries[: self._share]
        known: set[str] = set()
        while True:
            try:
                return self._handle_with_keys(deliveries, known, begin, stopping)
            except _KeyTaken:
                with nobody_to_blame(self.using):
                    keys = self._keys(delivery.key for delivery in deliveries)
                    found = set(keys.values_list("event_id", flat=True))
                if found == known:
                    raise DatabaseUnavailable(f"{self.group}: another process is at the same events") from None
                known = found

    def _handle_with_keys(
        self,
        deliveries: Sequence[Delivery],
        known: set[str],
        begin: Callable[[Delivery], None],
        stopping: Callable[[], bool],
    ) -> int:
        new: dict[str, Delivery] = {}
        for delivery in deliveries:
            if delivery.key not in known:
                new.setdefault(delivery.key, delivery)
        settled = 0
        closed = False
        try:
            with nobody_to_blame(self.using), transaction.atomic(using=self.using):
                self._insert_keys(new.values())
                started = time.monotonic()
                for delivery in deliveries:
                    settled += 1
                    if not new.pop(delivery.key, None):
                        continue
                    begin(delivery)
                    self._handle_one(delivery)
                    closed = time.monotonic() - started > WINDOW
                    if closed or stopping():
                        break
                if new:  # left for another transaction
                    self._keys(new).delete()
        except DatabaseError as error:
            # The commit was refused, by a deferred constraint for instance; of several, one by one tells by whose.
            if len(deliveries) > 1:
                raise
            self._record_with_key(deliveries[0], error)
        self._share = settled if closed else min(2 * self._share, self._batch_size)
        return settled

    def _handle_without_keys(
        self, deliveries: Sequence[Delivery], begin: Callable[[Delivery], None], stopping: Callable[[], bool]
    ) -> int:
        settled = 0
        for delivery in deliveries:
            begin(delivery)
            try:
                with nobody_to_blame(self.using):
                    self._call(delivery.message, delivery.problem)
            except (BusUnavailable, DatabaseUnavailable):
                if settled:
                    return settled  # these are; the next call meets the trouble again
                raise
            except _FAILURES as error:
                with nobody_to_blame(self.using):
                    self._failures.record(delivery, error)
            settled += 1
            if stopping():
                break
        return settled

    def _handle_one(self, delivery: Delivery) -> None:
        try:
            with transaction.atomic(using=self.using):
                self._call(delivery.message, delivery.problem)
        except _FAILURES as error:
            if isinstance(error, BusUnavailable) or is_transient(error):
                raise
            self._failures.record(delivery, error)

    def _call(self, message: EventMessage | None, problem: UnreadableEvent | None = None) -> None:
        if message is None:
            raise problem or UnreadableEvent("it holds no message")
        with independent_hooks(self.using, self.group):
            self.listener.call(message)

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Make a delivery a dead letter without handling it, unless it was handled before."""
        with nobody_to_blame(self.using):
            known = self._keys([delivery.key]).exists()
        if not known:
            self._record_with_key(delivery, UnreadableEvent(reason))

    def _record_with_key(self, delivery: Delivery, error: BaseException) -> None:
        with nobody_to_blame(self.using), transaction.atomic(using=self.using):
            ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery)], ignore_conflicts=True)
            self._failures.record(delivery, error)

    # --- Retries ------------------------------------------------------------------------------

    def retry(self, now: datetime) -> bool:
        """Make the one retry that is due longest at `now`; return whether there was one."""
        with nobody_to_blame(self.using):
            # What was claimed, and not tried for want of a server, comes first: no attempt is lost.
            self._claimed = self._claimed or self._failures.claim_due(now)
            if self._claimed is None:
                return False
            error = self._attempt(self._claimed)
            if error is not None:
                self._failures.record_again(self._claimed, error)
        self._claimed = None
        return True

    def give_back(self) -> None:
        """Leave a retry that was claimed, and not tried, to other processes."""
        if self._claimed is not None:
            with nobody_to_blame(self.using):
                self._failures.give_back(self._claimed)
            self._claimed = None

    def _attempt(self, failed: FailedEvent) -> BaseException | None:
        if failed.attempts > self._max_attempts:
            return UnreadableEvent(f"its process died in the last of {failed.attempts - 1} attempts")
        row = self._failures.rows.filter(pk=failed.pk)
        try:
            if not self.listener.idempotent:
                self._call(failed.message())
                row.delete()
                return None
            # Deleted first, so that of two processes that make this attempt one has nothing to delete.
            with transaction.atomic(using=self.using):
                if row.delete()[0]:
                    self._call(failed.message())
        except _FAILURES as error:
            if isinstance(error, BusUnavailable) or is_transient(error):
                raise
            return error
        return None

    # --- Keys ---------------------------------------------------------------------------------

    def _key(self, delivery: Delivery) -> ProcessedEvent:
        return ProcessedEvent(event_id=delivery.key, consumer_group=self.group, event_name=delivery.event_name)

    def _keys(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.group, event_id__in=list(keys))

    def _insert_keys(self, deliveries: Iterable[Delivery]) -> None:
        try:
            ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery) for delivery in deliveries])
        except IntegrityError as error:
            raise _KeyTaken from error
