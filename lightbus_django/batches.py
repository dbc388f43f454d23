"""Batch handlers: many events at once, and still each of them handled once, or failed by itself."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from django.db import DatabaseError, connections, transaction

from .database import independent_hooks, nobody_to_blame
from .exceptions import DatabaseUnavailable
from .failures import Delivery
from .inbox import Inbox
from .savepoints import Savepoints


class _Split(Exception):
    """The handler raised, and one of several events is the cause."""


class BatchInbox(Inbox):
    """The inbox of a listener that takes lists of events.

    If its handler raises, what it wrote is rolled back and it gets the first half of them, until the one
    event is found that it can't handle.
    """

    def _handle_with_keys(
        self,
        deliveries: Sequence[Delivery],
        known: set[str],
        begin: Callable[..., None],
        stopping: Callable[[], bool],
    ) -> int:
        new = self._new(deliveries, known)
        try:
            with nobody_to_blame(self.using), transaction.atomic(using=self.using):
                self._insert_keys(new.values())
                self._handle_all(new.values(), begin)
        except (_Split, DatabaseError) as error:
            if len(deliveries) == 1:  # its commit was refused
                self._record_with_key(deliveries[0], error)
                return 1
            return self._handle_with_keys(deliveries[: len(deliveries) // 2], known, begin, stopping)
        return len(deliveries)

    def _handle_all(self, deliveries: Iterable[Delivery], begin: Callable[..., None]) -> None:
        readable = self._readable(deliveries)
        if not readable:
            return
        begin(*readable)
        with closing(Savepoints(self.using)) as savepoints:
            try:
                with savepoints, independent_hooks(self.using, self.group):
                    self._call_with(readable)
                savepoints.end()
            except BaseException as error:
                self._split_or_record(readable, error)
            if savepoints.is_lost:
                raise DatabaseUnavailable("the transaction was lost with an error that the handler caught")

    def _handle_without_keys(
        self, deliveries: Sequence[Delivery], begin: Callable[..., None], stopping: Callable[[], bool]
    ) -> int:
        try:
            with nobody_to_blame(self.using):
                connections[self.using].ensure_connection()
                readable = self._readable(deliveries)
                begin(*readable)
                try:
                    if readable:
                        self._call_with(readable)
                except BaseException as error:
                    self._split_or_record(readable, error)
        except _Split:
            return self._handle_without_keys(deliveries[: len(deliveries) // 2], begin, stopping)
        except DatabaseUnavailable as error:
            if len(deliveries) > 1 or not self._is_to_blame(deliveries[0].key):
                raise
            self._record_with_key(deliveries[0], error)
        return len(deliveries)

    def _readable(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Return those that hold a message; the others have failed."""
        readable = []
        for delivery in deliveries:
            if delivery.problem is not None:
                self._failures.record(delivery, delivery.problem)
            else:
                readable.append(delivery)
        return readable

    def _call_with(self, deliveries: Sequence[Delivery]) -> None:
        self.listener.call_with([delivery.message for delivery in deliveries if delivery.message is not None])

    def _split_or_record(self, deliveries: Sequence[Delivery], error: BaseException) -> None:
        if not self._is_failure(error):
            raise error
        if len(deliveries) > 1:
            raise _Split from error
        self._failures.record(deliveries[0], error)
