"""Handling events once: the idempotency key commits with the handler's own writes."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from django.db import DatabaseError, IntegrityError, connections, transaction
from django.utils import timezone

from .conf import Settings
from .database import independent_hooks, nobody_to_blame
from .exceptions import BusUnavailable, DatabaseUnavailable, UnreadableEvent
from .failures import Delivery
from .handling import Handling
from .inserts import insert
from .listeners import Listener
from .models import ProcessedEvent
from .savepoints import Savepoints

WINDOW = 0.1
"""Seconds for which events share a transaction: fast handlers share a commit, slow ones do not."""

_COLUMNS = ("event_id", "consumer_group", "event_name", "processed_at", "discarded")


class _KeyTaken(Exception):
    """The inbox has one of the keys already."""


class Inbox(Handling):
    """What is delivered, handled once."""

    def __init__(self, listener: Listener, group: str, settings: Settings) -> None:
        super().__init__(listener, group, settings)
        self._batch_size = self._share = settings.batch_size

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
                with closing(Savepoints(self.using)) as savepoints, independent_hooks(self.using, self.group):
                    started = time.monotonic()
                    for delivery in deliveries:
                        settled += 1
                        if not new.pop(delivery.key, None):
                            continue
                        begin(delivery)
                        self._handle_one(delivery, savepoints)
                        if savepoints.is_lost:
                            # Else Django would roll all back at the end, and say nothing.
                            raise DatabaseUnavailable("the transaction was lost with an error that the handler caught")
                        closed = time.monotonic() - started > WINDOW
                        if closed or stopping():
                            break
                    savepoints.end()
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
                self._call(delivery)
        except BaseException as error:
            if not self._is_failure(error):
                raise
            # Else the savepoint was lost with the transaction: nothing can be written, and nobody is to blame.
            if not savepoints.is_lost:
                self._failures.record(delivery, error)

    def _call(self, delivery: Delivery) -> None:
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        self.listener.call(delivery.message)

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

    def _new(self, deliveries: Iterable[Delivery], known: set[str]) -> dict[str, Delivery]:
        """Return by their keys those that are not `known`, each once."""
        new: dict[str, Delivery] = {}
        for delivery in deliveries:
            if (key := delivery.key) not in known:
                new.setdefault(key, delivery)
        return new

    def _insert_keys(self, deliveries: Iterable[Delivery]) -> None:
        now = connections[self.using].ops.adapt_datetimefield_value(timezone.now())
        rows = [(delivery.key, self.group, delivery.event_name, now, False) for delivery in deliveries]
        try:
            insert(ProcessedEvent, self.using, _COLUMNS, rows)
        except IntegrityError as error:
            raise _KeyTaken from error
