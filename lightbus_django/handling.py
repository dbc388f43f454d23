"""One event and its handler: whose failure it is, the key that says it is handled, and further attempts."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from django.db import connections, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from .conf import Settings
from .database import independent_hooks, is_transient, nobody_to_blame
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .failures import Delivery, Failures
from .listeners import Listener
from .models import FailedEvent, ProcessedEvent
from .savepoints import check_rollback

TROUBLES = 20
"""How often one event alone may meet trouble of the database, which answers else, before it is its own."""


class Handling:
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
        self._claimed: FailedEvent | None = None
        self._troubles: Counter[str] = Counter()

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
                    check_rollback(self.using)
                    self._keys([failed.event_id]).update(processed_at=timezone.now())
        except BaseException as error:
            if not self._is_failure(error):
                raise
            return error
        return None

    # --- Whose failure it is ------------------------------------------------------------------

    def _is_failure(self, error: BaseException) -> bool:
        """Whether what a handler raised is its own failure; what it raises may be no Exception, as sys.exit()'s is."""
        if isinstance(error, (KeyboardInterrupt, BusUnavailable, DatabaseUnavailable)):
            return False
        return not is_transient(error, self.using)

    def _is_to_blame(self, key: str) -> bool:
        """Whether an event that has met trouble of the database, again, seems to be the cause of it."""
        with nobody_to_blame(self.using):
            connections[self.using].ensure_connection()
        self._troubles = Counter({key: self._troubles[key] + 1})
        return self._troubles[key] > TROUBLES

    # --- What is written down -----------------------------------------------------------------

    def _record_with_key(self, delivery: Delivery, error: BaseException) -> None:
        with nobody_to_blame(self.using), transaction.atomic(using=self.using):
            ProcessedEvent.objects.using(self.using).bulk_create([self._key(delivery)], ignore_conflicts=True)
            self._failures.record(delivery, error)

    def _key(self, delivery: Delivery) -> ProcessedEvent:
        return ProcessedEvent(event_id=delivery.key, consumer_group=self.group, event_name=delivery.event_name)

    def _keys(self, keys: Iterable[str]) -> QuerySet[ProcessedEvent]:
        return ProcessedEvent.objects.using(self.using).filter(consumer_group=self.group, event_id__in=list(keys))
