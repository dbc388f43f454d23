"""Handles many events in one transaction, and splits them when the handler raises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lightbus_django.database.errors import transient_errors
from lightbus_django.exceptions import DatabaseUnavailable, EventContended, TransactionEnded

from .activity import HANDLER, INSERTING_KEY
from .delivery import Delivery
from .handler_runner import HandlerRunner
from .keys import AlreadyHandled


@dataclass
class Batch:
    """One call of `Inbox.handle`, if the listener takes lists of events.

    If the handler raises, the first half of the events is handled instead, until the event that fails is found.
    """

    runner: HandlerRunner
    deliveries: Sequence[Delivery]
    begin: Callable[..., None]
    stopping: Callable[[], bool]
    defer: bool
    new: Sequence[Delivery] = field(init=False, default=())
    """The events that the handler was given, because they were not handled yet."""

    def handle(self) -> int:
        """Handle all events, or the first half if they fail together; return how many are handled."""
        runner, deliveries = self.runner, self.deliveries
        runner.record_failures()
        try:
            with transient_errors(runner.using):
                runner.connect()
                failure = self._handle()
        except DatabaseUnavailable as error:
            if self.stopping():
                raise
            try:
                failure = runner.contention.handle_again(deliveries[0].key, self._handle, error)
            except EventContended as contended:
                if len(deliveries) == 1:
                    raise
                failure = contended
        if failure is not None and len(deliveries) > 1 and not isinstance(failure, TransactionEnded):
            return 0 if self.stopping() else replace(self, deliveries=deliveries[: len(deliveries) // 2]).handle()
        if failure is not None:
            runner.unrecorded = [(delivery, delivery.problem or failure) for delivery in self.new]
            runner.record_failures()
        runner.contention.successes += 1
        return len(deliveries)

    def _handle(self) -> BaseException | None:
        """Handle the events that are not handled yet; return their failure."""
        self.new = self.deliveries
        if not self.runner.listener.idempotent:
            with self.runner.no_transaction() as handling:
                self._call_handler()
            return handling.failure
        new = {delivery.key: delivery for delivery in self.deliveries}
        while new:
            self.new = list(new.values())
            try:
                return self._handle_new()
            except AlreadyHandled as error:
                found = self.runner.keys.existing(new)
                if not found:
                    text = f"{self.runner.group}: keys were not inserted, and are not there: {error.__cause__}"
                    raise DatabaseUnavailable(text) from error
                for key in found:
                    self.runner.gate.add_found(key)
                    self.runner.announcer.note_found(key)
                    delivery = new.pop(key)
                    if (failure := self.runner.failure_of_handled(key)) is not None:
                        self.runner.record(delivery, delivery.problem or failure)
        return None

    def _handle_new(self) -> BaseException | None:
        with self.runner.transaction([delivery.key for delivery in self.new]) as handling:
            self.runner.activity.start(INSERTING_KEY, *self.new)
            handling.monitor = self.runner.keys.insert_all(self.new, handling.processed_at)
            self._call_handler()
        return handling.failure

    def _call_handler(self) -> None:
        """Call the handler with the events that can be read, and record the others as failed."""
        for delivery in self.new:
            if delivery.problem is not None:
                self.runner.record_here(delivery, delivery.problem)
        readable = [delivery for delivery in self.new if delivery.message is not None]
        self.begin(*readable)
        self.runner.activity.start(HANDLER, *readable)
        if readable:
            self.runner.call(self.runner.listener.call_with, [delivery.message for delivery in readable])
