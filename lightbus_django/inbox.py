"""Handling events once: the idempotency key commits with the handler's own writes."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from django.db import DatabaseError, IntegrityError, connections, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from .conf import Settings
from .database import independent_hooks, is_transient, nobody_to_blame
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .failures import Delivery, Failures
from .listeners import Listener
from .models import FailedEvent, ProcessedEvent
from .savepoints import Savepoints

WINDOW = 0.1
"""Seconds for which events share a transaction: fast handlers share a commit, slow ones do not."""

TROUBLES = 20
"""How often one event alone may meet trouble of the database, which answers else, before it is its own."""


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
        self._troubles: Counter[str] = Counter()

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[..., None] = lambda *deliveries: None,
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
            except DatabaseUnavailable as error:
                if len(deliveries) > 1 or not self._is_to_blame(deliveries[0].key):
                    raise
                self._record_with_key(deliveries[0], error)
                return 1
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
        begin: Callable[..., None],
        stopping: Callable[[], bool],
    ) -> int:
        new = self._new(deliveries, known)
        settled = 0
        closed = False
        try:
            with nobody_to_blame(self.using), transaction.atomic(using=self.using):
                self._insert_keys(new.values())
                savepoints = Savepoints(self.using)
                started = time.monotonic()
                for delivery in deliveries:
                    settled += 1
                    if not new.pop(delivery.key, None):
                        continue
                    begin(delivery)
                    self._handle_one(delivery, savepoints)
                    if transaction.get_rollback(self.using):
                        # Else Django would roll all back at the end, and say nothing.
                        raise DatabaseUnavailable("the transaction was lost with an error that the handler caught")
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
            settled = 1
        self._share = settled if closed else min(2 * self._share, self._batch_size)
        return settled

    def _handle_without_keys(
        self, deliveries: Sequence[Delivery], begin: Callable[..., None], stopping: Callable[[], bool]
    ) -> int:
        settled = 0
        started = time.monotonic()
        while settled < len(deliveries):
            try:
                with nobody_to_blame(self.using):
                    connections[self.using].ensure_connection()
                    for delivery in deliveries[settled:]:
                        begin(delivery)
                        try:
                            self._call(delivery)
                        except BaseException as error:
                            if not self._is_failure(error):
                                raise
                            self._failures.record(delivery, error)
                            connections[self.using].ensure_connection()
                        settled += 1
                        if stopping() or time.monotonic() - started > WINDOW:
                            return settled
            except (BusUnavailable, DatabaseUnavailable) as error:
                if settled:
                    return settled  # these are; the next call meets the trouble again
                if isinstance(error, BusUnavailable) or not self._is_to_blame(deliveries[0].key):
                    raise
                self._record_with_key(deliveries[0], error)
                settled = 1
        return settled

    def _handle_one(self, delivery: Delivery, savepoints: Savepoints) -> None:
        try:
            with savepoints:
                with independent_hooks(self.using, self.group):
                    self._call(delivery)
                self._check_rollback()
        except BaseException as error:
            if not self._is_failure(error):
                raise
            # Else the savepoint was lost with the transaction: nothing can be written, and nobody is to blame.
            if not transaction.get_rollback(self.using):
                self._failures.record(delivery, error)

    def _call(self, delivery: Delivery) -> None:
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        self.listener.call(delivery.message)

    def _check_rollback(self) -> None:
        if transaction.get_rollback(self.using):
            raise transaction.TransactionManagementError(
                "the handler caught a database error that had broken its transaction: let it go, or wrap what "
                "may fail in transaction.atomic()"
            )

    def _is_failure(self, error: BaseException) -> bool:
        """Whether what a handler raised is its own failure; what it raises may be no Exception, as sys.exit()'s is."""
        if isinstance(error, (KeyboardInterrupt, BusUnavailable)):
            return False
        return not is_transient(error, self.using)

    def _is_to_blame(self, key: str) -> bool:
        """Whether an event that has met trouble of the database, again, seems to be the cause of it."""
        with nobody_to_blame(self.using):
            connections[self.using].ensure_connection()
        self._troubles = Counter({key: self._troubles[key] + 1})
        return self._troubles[key] > TROUBLES

    def has_handled(self, event_names: Iterable[str]) -> bool:
        """Whether this group has handled any of these events, as far as the inbox remembers."""
        if not self.listener.idempotent:
            return False
        with nobody_to_blame(self.using):
            rows = ProcessedEvent.objects.using(self.using).filter(consumer_group=self.group)
            return rows.filter(event_name__in=list(event_names)).exists()

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
            if self._claimed is not None and not self._failures.renew(self._claimed, now):
                self._claimed = None
            self._claimed = self._claimed or self._failures.claim_due(now)
        if self._claimed is None:
            return False
        try:
            with nobody_to_blame(self.using):
                error = self._attempt(self._claimed)
        except DatabaseUnavailable as unavailable:
            if not self._is_to_blame(self._claimed.event_id):
                raise
            error = unavailable
        if error is not None:
            with nobody_to_blame(self.using):
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
        connections[self.using].ensure_connection()
        try:
            if not self.listener.idempotent:
                self.listener.call_one(failed.message())
                row.delete()
                return None
            # Deleted first, so that of two processes that make this attempt one has nothing to delete.
            with transaction.atomic(using=self.using):
                if row.delete()[0]:
                    with independent_hooks(self.using, self.group):
                        self.listener.call_one(failed.message())
                    self._check_rollback()
                    self._keys([failed.event_id]).update(processed_at=timezone.now())
        except BaseException as error:
            if not self._is_failure(error):
                raise
            return error
        return None

    # --- Keys ---------------------------------------------------------------------------------

    def _new(self, deliveries: Iterable[Delivery], known: set[str]) -> dict[str, Delivery]:
        """Return by their keys those that are not `known`, each once."""
        new: dict[str, Delivery] = {}
        for delivery in deliveries:
            if (key := delivery.key) not in known:
                new.setdefault(key, delivery)
        return new

    def _key(self, delivery: Delivery) -> ProcessedEvent:
        return ProcessedEvent(event_id=delivery.key, consumer_group=self.group, event_name=delivery.event_name)

    def _keys(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.group, event_id__in=list(keys))

    def _insert_keys(self, deliveries: Iterable[Delivery]) -> None:
        try:
            ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery) for delivery in deliveries])
        except IntegrityError as error:
            raise _KeyTaken from error
