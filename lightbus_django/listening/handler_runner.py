"""Runs a listener's handler in a transaction with its idempotency keys, or without one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import Error, connections, router, transaction
from django.utils import timezone

from lightbus_django.conf import Settings
from lightbus_django.database.chain import ChainBroken
from lightbus_django.database.connections import restore_autocommit
from lightbus_django.database.errors import is_transient, transient_errors
from lightbus_django.database.transaction_monitor import TransactionMonitor
from lightbus_django.exceptions import BusUnavailable, DatabaseUnavailable, SequenceBehind, TransactionEnded
from lightbus_django.models import ProcessedEvent
from lightbus_django.signals import event_handled

from .activity import COMMITTING, CONNECTING, RECORDING, Activity
from .announcer import Announcer
from .commit_gate import CommitGate
from .contention import Contention
from .delivery import Delivery
from .failures import Failures
from .isolation import Isolation, watch_connections
from .keys import AlreadyHandled, Keys
from .listener import Listener
from .tally import Tally
from .tracebacks import describe
from .wrappers import wrapped, wrappers

logger = logging.getLogger("lightbus_django")


@dataclass
class Handling:
    """One run of the handler, for the events with these keys. `monitor` is set once the keys are inserted."""

    keys: Sequence[str] = ()
    processed_at: datetime = field(default_factory=timezone.now)
    monitor: TransactionMonitor | None = None
    failure: BaseException | None = None


class HandlerRunner:
    """One listener's handler with its keys, failures and commits; single events, batches and retries share it."""

    def __init__(self, listener: Listener, group: str, process_name: str, settings: Settings) -> None:
        self.listener = listener
        self.group = group
        self.using = listener.using or router.db_for_write(ProcessedEvent)
        self.activity = Activity()
        self.keys = Keys(group, self.using, process_name)
        self.tally = Tally()
        self.announcer = Announcer(listener, group)
        self.failures = Failures(group, self.using, process_name, settings, self.tally)
        self.gate = CommitGate(self.using, group, defers=settings.defer_commits and listener.defer_commits)
        self.contention = Contention(self.using, group, self.activity)
        self._isolation = Isolation(self.using, group)
        self.unrecorded: list[tuple[Delivery, BaseException]] = []
        """Failures of a batch that are not recorded yet."""
        self._last_raised: tuple[Handling, BaseException] | None = None
        watch_connections()

    def call(self, handler: Callable[..., None], argument: Any) -> None:
        """Call the handler, isolated from other events."""
        if wrappers:
            handler = wrapped(handler, self.listener, self.group)
        try:
            self._isolation.run(handler, argument)
        except BaseException as error:
            self.failures.note_call(error, self.activity.seconds)
            raise
        if event_handled.receivers:
            self.announcer.note_call(argument, self.activity.seconds)

    def connect(self) -> None:
        """Open the connection unless it is open, or raise DatabaseUnavailable."""
        self.activity.start(CONNECTING)
        with transient_errors(self.using):
            connections[self.using].ensure_connection()

    @contextmanager
    def transaction(self, keys: Sequence[str], *, defer: bool = False, is_retry: bool = False) -> Iterator[Handling]:
        """Open the transaction of one handling: the block inserts the keys, sets `monitor` and calls the handler.

        If the handler fails, the transaction is rolled back and the error is in `failure`. `defer` says whether the
        commit may be deferred. The keys of a retry don't wait for the commit gate: nothing is acknowledged after it.

        Raises:
            AlreadyHandled, ChainBroken: as the block did.
            BusUnavailable, DatabaseUnavailable, SequenceBehind, django.db.Error: the handler is not to blame.
        """
        handling = Handling(keys)
        try:
            with transaction.atomic(using=self.using):
                try:
                    yield handling
                finally:
                    self.activity.go_on(COMMITTING)
                if monitor := handling.monitor:
                    monitor.handler_returned()
                    monitor.check(self.gate.defer_at(monitor) if defer else None)
        except (AlreadyHandled, ChainBroken):
            if handling.monitor is None or not handling.monitor.has_ended:
                raise
        except BaseException as error:
            if handling.monitor is None or isinstance(error, KeyboardInterrupt):
                raise
            handling.failure = self._failure_of(handling, handling.monitor, error)
            return
        if (monitor := handling.monitor) and monitor.has_ended:
            if not self._is_committed(handling):
                text = "the handler rolled back; what it wrote afterwards may be in the database"
                handling.failure = TransactionEnded(text)
                return
            logger.error(
                "%s: %s committed the transaction of its event; leave that to lightbus_django",
                self.group,
                self.listener.path,
            )
        if monitor and monitor.is_deferred and not is_retry:
            for key in handling.keys:
                self.gate.add(key)

    def _failure_of(self, handling: Handling, monitor: TransactionMonitor, error: BaseException) -> BaseException:
        """Return the failure of a handling that raised; raise an error for which the handler is not to blame."""
        connection: Any = connections[self.using]
        is_lost = isinstance(error, Error) and monitor.has_lost_connection
        # The driver raises its own error if a cursor was open.
        is_closed = connection.closed_in_transaction and isinstance(error, (Error, connection.Database.Error))
        is_failure = self.is_failure(error) and not is_lost
        if not monitor.has_returned:
            self._last_raised = handling, error
        # If the commit was not answered, the key tells whether it took place.
        if (is_failure or not monitor.has_returned) and self._is_committed(handling):
            return _committed_and_raised(error)
        if is_closed:
            text = f"the handler closed its connection to the database {self.using!r}"
            raise DatabaseUnavailable(text) from error
        if is_lost:
            raise DatabaseUnavailable(f"database {self.using!r}: {type(error).__name__}: {error}") from error
        if not is_failure:
            raise error
        return error

    def failure_of_handled(self, key: str) -> BaseException | None:
        """Return the failure of an event whose key was found because its handler had committed, and then raised.

        That is so if the database did not answer when the handler raised.
        """
        if self._last_raised is not None:
            handling, error = self._last_raised
            if key in handling.keys and self._is_committed(handling):
                return _committed_and_raised(error)
        return None

    def _is_committed(self, handling: Handling) -> bool:
        return self.keys.of(handling.keys).filter(processed_at=handling.processed_at).exists()

    @contextmanager
    def no_transaction(self) -> Iterator[Handling]:
        """Let the block call the handler without keys; otherwise as `transaction`."""
        handling = Handling()
        connection = connections[self.using]
        try:
            yield handling
            restore_autocommit(connection, commit=True)
        except BaseException as error:
            restore_autocommit(connection, commit=False)
            if not self.is_failure(error):
                raise
            handling.failure = error

    def is_failure(self, error: BaseException) -> bool:
        """Whether an error (perhaps not an Exception, such as SystemExit) is the handler's own failure."""
        if isinstance(error, (KeyboardInterrupt, BusUnavailable, DatabaseUnavailable, SequenceBehind)):
            return False
        return not is_transient(error, self.using)

    def record_failures(self) -> None:
        """Record the failures that are not recorded yet."""
        while self.unrecorded:
            self.record(*self.unrecorded[0])
            del self.unrecorded[0]

    def record(self, delivery: Delivery, error: BaseException) -> None:
        """Record a failure with the key of its event, unless another process has handled the event meanwhile."""
        self.activity.start(RECORDING, delivery)
        with transient_errors(self.using):
            if not self.listener.idempotent:
                self.record_here(delivery, error)
                return
            with transaction.atomic(using=self.using):
                try:
                    monitor = self.keys.insert(delivery, timezone.now())
                except AlreadyHandled:
                    self.keys.check_exists(delivery)
                    self.gate.add_found(delivery.key)
                    if not isinstance(error, TransactionEnded):
                        self.announcer.note_found(delivery.key)
                        return
                    monitor = TransactionMonitor(connections[self.using])
                self.record_here(delivery, error)
                monitor.check()
            if monitor.is_deferred:
                self.gate.add(delivery.key)

    def record_here(self, delivery: Delivery, error: BaseException) -> None:
        """Record a failure in the transaction that is open, if one is."""
        self.announcer.note_failure(self.failures.record(delivery, error), error)


def _committed_and_raised(error: BaseException) -> TransactionEnded:
    """Return the failure of a handler that ended its transaction, and then raised."""
    ended = TransactionEnded(f"the handler committed, then raised {describe(error)}")
    ended.__cause__ = error
    return ended
