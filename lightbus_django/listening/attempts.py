"""One listener's part of the database: an event's transaction, whose failure it is, and further attempts."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import Error, connections, router, transaction
from django.utils import timezone

from lightbus_django.conf import Settings
from lightbus_django.database.bulk_insert import inserting
from lightbus_django.database.chain import ChainBroken
from lightbus_django.database.connections import restore_autocommit
from lightbus_django.database.errors import is_transient, one_line, transient_errors
from lightbus_django.database.transactions import Guard
from lightbus_django.exceptions import (
    BusUnavailable,
    DatabaseUnavailable,
    EventContended,
    KeyLocked,
    SequenceBehind,
    TransactionEnded,
    UnreadableEvent,
)
from lightbus_django.models import FailedEvent, ProcessedEvent

from .activity import CLAIMING, COMMITTING, CONNECTING, HANDLER, RECORDING, Activity
from .commit_gate import Gate
from .contention import Contention
from .delivery import Delivery
from .failures import Failures
from .isolation import Isolation, watch_connections
from .keys import AlreadyHandled, Keys
from .listener import Listener
from .tracebacks import describe

logger = logging.getLogger("lightbus_django")

ASIDE = timedelta(seconds=1)
"""For how long a retry is put off that can't get through."""


class Attempts:
    """What is done for one listener in its database.

    Its methods raise DatabaseUnavailable or BusUnavailable if the database or Redis is not available, and
    SequenceBehind if no row can be inserted. They may be called again: the idempotency key tells what was committed.
    """

    def __init__(self, listener: Listener, group: str, settings: Settings) -> None:
        self.listener = listener
        self.group = group
        self.using = listener.using or router.db_for_write(ProcessedEvent)
        self.activity = Activity()
        self.keys = Keys(group, self.using)
        self.gate = Gate(self.using, group, defers=settings.defer_commits and listener.defer_commits)
        self._failures = Failures(group, self.using, settings)
        self._max_attempts = settings.max_attempts
        self._claimed: FailedEvent | None = None
        self._unrecorded: tuple[FailedEvent, BaseException] | None = None
        self.raised: tuple[str, datetime, BaseException | None] = "", timezone.now(), None
        """The key of the last event whose handler raised, when that was inserted, and what it raised."""
        self.troubles = Contention(self.using)
        self._isolation = Isolation(self.using, self.group)
        watch_connections()

    def connect(self) -> None:
        """Have a connection that is open."""
        self.activity.start(CONNECTING)
        with transient_errors(self.using):
            connections[self.using].ensure_connection()

    # --- Retries ------------------------------------------------------------------------------

    def retry(self, now: datetime) -> bool:
        """Make the one retry that is due longest at `now`; return whether there was one."""
        self.activity.start(CLAIMING)
        with transient_errors(self.using):
            if self._unrecorded is not None:
                self._failures.record_again(*self._unrecorded)
                self._claimed = self._unrecorded = None
            # A claim that was not tried, because a server was away, comes first: no attempt is lost.
            if self._claimed is not None and not self._failures.renew(self._claimed, now):
                self._claimed = None
            self._claimed = self._claimed or self._failures.claim_due(now)
        if self._claimed is None:
            return False
        failed = self._claimed
        error: BaseException | None
        try:
            with transient_errors(self.using):
                error = self._retry(failed)
        except DatabaseUnavailable as trouble:
            try:
                error = self.persist(failed.event_id, lambda: self._retry(failed), trouble)
            except EventContended:
                self.give_back(ASIDE)
                return True
        if error is not None:
            self._unrecorded = failed, error
            with transient_errors(self.using):
                self._failures.record_again(failed, error)
            self._unrecorded = None
        self.troubles.end(failed.event_id)
        self._claimed = None
        return True

    def give_back(self, delay: timedelta = timedelta(0)) -> None:
        """Leave a retry that was claimed, and not tried, to any process, after a while."""
        if self._claimed is not None:
            with transient_errors(self.using):
                self._failures.give_back(self._claimed, delay)
            self._claimed = None

    def _retry(self, failed: FailedEvent) -> BaseException | None:
        if failed.attempts > self._max_attempts:
            return UnreadableEvent(f"its process died in the last of {failed.attempts - 1} attempts")
        if failed.may_have_effects:
            logger.warning("%s: %s is retried, though effects of it may be there", self.group, failed.event_id)
        row = self._failures.rows.filter(pk=failed.pk)
        key = self.keys.of([failed.event_id])
        now = timezone.now()

        def begin() -> Guard:
            # Deleted first, so that of two processes that make this attempt one has nothing to delete.
            if not row.delete()[0]:
                raise AlreadyHandled
            if not key.update(processed_at=now):
                with inserting(ProcessedEvent, self.using):
                    self.keys.rows.create(
                        event_id=failed.event_id,
                        consumer_group=self.keys.stored_group,
                        event_name=failed.event_name,
                        processed_at=now,
                    )
            return Guard(connections[self.using])

        def call() -> None:
            self.activity.start(HANDLER)
            try:
                self.isolate(self.listener.call_one, failed.message())
            finally:
                self.activity.start(COMMITTING)

        try:
            if self.listener.idempotent:
                return self.transact(begin, call, is_committed=key.filter(processed_at=now).exists)
        except AlreadyHandled:
            return None
        if (error := self.attempt(call)) is None:
            row.delete()
        return error

    # --- One attempt --------------------------------------------------------------------------

    def isolate(self, call: Callable[..., None], *arguments: object) -> None:
        """Call a handler; what it leaves in the thread does not reach the next event."""
        self._isolation.run(call, *arguments)

    def attempt(self, call: Callable[[], None]) -> BaseException | None:
        """Call a handler in no transaction; return its failure."""
        try:
            call()
            restore_autocommit(connections[self.using], commit=True)
        except BaseException as error:
            restore_autocommit(connections[self.using], commit=False)
            if not self._is_failure(error):
                raise
            return error
        return None

    def transact(
        self,
        begin: Callable[[], Guard],
        call: Callable[[], None],
        *,
        is_committed: Callable[[], bool],
        defers: bool = False,
    ) -> BaseException | None:
        """Call a handler in a transaction of its own; return its failure.

        Args:
            begin: writes down that it is handled, and returns what watches the transaction.
            call: calls the handler.
            is_committed: whether what `begin` wrote is in the database.
            defers: the commit need not wait for the disk.

        Raises:
            AlreadyHandled: by `begin`, or `call`.
            ChainBroken: by `call`.
        """
        connection: Any = connections[self.using]
        guard: Guard | None = None
        try:
            with transaction.atomic(using=self.using):
                guard = begin()
                driver = connection.connection
                call()
                guard.handler_returned()
                guard.check(self.gate.defer(guard) if defers else None)
        except (AlreadyHandled, ChainBroken):
            if guard is None or not guard.is_broken:
                raise
        except BaseException as error:
            if guard is None or isinstance(error, KeyboardInterrupt):
                raise
            is_lost = isinstance(error, Error) and connection.connection is not driver
            # An error of the driver itself, if a cursor was open.
            is_closed = connection.closed_in_transaction and isinstance(error, (Error, connection.Database.Error))
            is_failure = self._is_failure(error) and not is_lost
            # If the commit was not answered, the key tells whether it was made.
            if (is_failure or not guard.has_returned) and is_committed():
                return committed_and_raised(error)
            if is_closed:
                text = f"the handler closed its connection to the database {self.using!r}"
                raise DatabaseUnavailable(text) from error
            if is_lost:
                raise DatabaseUnavailable(f"database {self.using!r}: {type(error).__name__}: {error}") from error
            if not is_failure:
                raise
            return error
        if guard.is_broken:
            if not is_committed():
                return TransactionEnded("the handler rolled back; what it has done since may be in the database")
            logger.error("%s: %s committed its transaction itself", self.group, self.listener.path)
        return None

    def persist(
        self, key: str, work: Callable[[], BaseException | None], trouble: DatabaseUnavailable
    ) -> BaseException | None:
        """Try the work of an event again that met `trouble`; return its failure, which may be that trouble in the end.

        Raises:
            EventContended: it did not get through, though the database answers.
        """
        self.tell_of_another_try(key, trouble)
        self.activity.start(CONNECTING)
        try:
            return self.troubles.persist(key, work, trouble)
        except EventContended as contended:
            if isinstance(contended.__cause__, KeyLocked) or not self.troubles.count_round(key):
                raise
            return contended

    def tell_of_another_try(self, key: str, trouble: Exception) -> None:
        """Log that the work of an event is done again."""
        logger.info("%s: %s is tried again: %s", self.group, key, one_line(trouble))

    def _is_failure(self, error: BaseException) -> bool:
        """Whether what a handler raised is its own failure; what it raises may be no Exception, as sys.exit()'s is."""
        if isinstance(error, (KeyboardInterrupt, BusUnavailable, DatabaseUnavailable, SequenceBehind)):
            return False
        return not is_transient(error, self.using)

    def record(self, delivery: Delivery, error: BaseException) -> None:
        """Record a failure, together with the key of the event unless another process has handled that meanwhile."""
        self.activity.start(RECORDING, delivery)
        with transient_errors(self.using):
            if not self.listener.idempotent:
                self._failures.record(delivery, error)
                return
            with transaction.atomic(using=self.using):
                try:
                    with self.keys.waiting(is_patient=not delivery.entry.is_redelivered):
                        guard = self.keys.insert(delivery, timezone.now())
                except AlreadyHandled:
                    self.keys.check_known(delivery)
                    self.gate.add_found(delivery.key)
                    if not isinstance(error, TransactionEnded):
                        return
                    guard = Guard(connections[self.using])
                self._failures.record(delivery, error)
                guard.check()
            if guard.is_deferred:
                self.gate.add(delivery.key)


def committed_and_raised(error: BaseException) -> TransactionEnded:
    """Return the failure of a handler that ended its transaction, and then raised."""
    ended = TransactionEnded(f"the handler committed, then raised {describe(error)}")
    ended.__cause__ = error
    return ended
