"""Handles events one by one, each in a transaction of its own."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from django.db import DatabaseError, Error, connections
from django.utils import timezone

from lightbus_django.database.chain import Chain, ChainBroken, chain_on
from lightbus_django.database.connections import restore_autocommit
from lightbus_django.database.errors import one_line, transient_errors
from lightbus_django.exceptions import BusUnavailable, DatabaseUnavailable, SequenceBehind, UnreadableEvent

from .activity import COMMITTING, HANDLER, INSERTING_KEY, READING_KEY
from .delivery import Delivery
from .handler_runner import HandlerRunner, Handling
from .keys import LOCK_TIMEOUT_SQL, AlreadyHandled

logger = logging.getLogger("lightbus_django")


@dataclass
class OneByOne:
    """One call of `Inbox.handle`, if the listener takes one event at a time."""

    runner: HandlerRunner
    deliveries: Sequence[Delivery]
    begin: Callable[..., None]
    stopping: Callable[[], bool]
    defer: bool
    handled: int = 0
    """How many events are handled, which is the index of the next one."""
    is_repeated: bool = False
    """Whether the next event met a transient error, after which the server may still have its first transaction."""
    is_chained: bool = True
    """Whether to chain the transactions of successive events."""

    def handle(self) -> int:
        """Handle events; return how many of them are handled."""
        try:
            try:
                with transient_errors(self.runner.using):
                    self.runner.connect()
                    self._end(self._handle())
                    while self._goes_on(self.handled):
                        self._end(self._handle())
            except DatabaseUnavailable as error:
                if self.stopping():
                    raise
                self.is_repeated, self.is_chained = True, False
                self._end(self.runner.contention.handle_again(self._delivery.key, self._handle, error))
        except (BusUnavailable, DatabaseUnavailable, DatabaseError, SequenceBehind):
            if not self.handled:
                raise
            # The events before it are handled, and the next call meets the error again.
        self.runner.contention.successes += self.handled
        return self.handled

    @property
    def _delivery(self) -> Delivery:
        return self.deliveries[self.handled]

    def _goes_on(self, index: int) -> bool:
        """Whether there is an event at this index, and time for it before the others are acknowledged."""
        return index < len(self.deliveries) and not (self.stopping() or self.runner.gate.is_overdue)

    def _end(self, failure: BaseException | None) -> None:
        if failure is not None:
            self.runner.record(self._delivery, failure)
        self.handled += 1

    def _handle(self) -> BaseException | None:
        """Handle the next event, and those chained to it; return the failure of the last, where `handled` points."""
        runner = self.runner
        if not runner.listener.idempotent:
            return self._handle_without_keys()
        try:
            with runner.transaction([self._delivery.key], defer=self.defer) as handling:
                runner.activity.start(INSERTING_KEY, self._delivery)
                now = handling.processed_at
                handling.monitor = runner.keys.insert(self._delivery, now, limits_lock=self.is_repeated)
                chains = self.defer and self.is_chained and len(self.deliveries) > 1
                with chain_on(runner.using) if chains else nullcontext() as chain:
                    self._call_handler()
                    while chain and self._begin_next(chain, handling):
                        self._call_handler()
        except AlreadyHandled:
            runner.activity.start(READING_KEY, self._delivery)
            runner.keys.check_exists(self._delivery)
            runner.gate.add_found(self._delivery.key)
            runner.announcer.note_found(self._delivery.key)
            return runner.failure_of_handled(self._delivery.key)
        except ChainBroken as broken:
            self.is_chained = False
            if isinstance(broken.__cause__, Error):
                cause = one_line(broken.__cause__)
                logger.info("%s: handling %s again: %s", runner.group, self._delivery.key, cause)
            return self._handle()
        return handling.failure

    def _begin_next(self, chain: Chain, handling: Handling) -> bool:
        """Commit and begin the next event's transaction in one round trip; return False if that can't be done.

        Raises AlreadyHandled if its key is already there.
        """
        runner, index, monitor = self.runner, self.handled + 1, handling.monitor
        if monitor is None or not self._goes_on(index) or not chain.is_intact:
            return False
        if (defer := runner.gate.defer_at(monitor)) is None:
            return False
        now, delivery = timezone.now(), self.deliveries[index]
        limits = LOCK_TIMEOUT_SQL if delivery.entry.is_redelivered else ("", "")
        runner.activity.go_on(COMMITTING)
        is_new = chain.commit_and_begin(monitor, defer, *runner.keys.statement(delivery, now), limits)
        if monitor.is_deferred:
            runner.gate.add(self._delivery.key)
        self.handled, handling.keys, handling.processed_at = index, [delivery.key], now
        if not is_new:
            raise AlreadyHandled
        return True

    def _handle_without_keys(self) -> BaseException | None:
        connection = connections[self.runner.using]
        with self.runner.no_transaction() as handling:
            self._call_handler()
            while self._goes_on(self.handled + 1):
                restore_autocommit(connection, commit=True)
                self.handled += 1
                self._call_handler()
        return handling.failure

    def _call_handler(self) -> None:
        runner, delivery = self.runner, self.deliveries[self.handled]
        self.begin(delivery)
        runner.activity.start(HANDLER, delivery)
        if delivery.message is None:
            raise delivery.problem or UnreadableEvent("it holds no message")
        runner.call(runner.listener.call, delivery.message)
