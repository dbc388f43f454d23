"""Handles each event once: the idempotency key is committed with the handler's own writes."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from lightbus_django.conf import Settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.exceptions import EventContended, KeyLocked, UnreadableEvent

from .activity import CONFIRMING, READING_KEY
from .batch import Batch
from .delivery import Delivery
from .handler_runner import HandlerRunner
from .listener import Listener
from .one_by_one import OneByOne
from .retries import Retries


class Inbox:
    """What a consumer does in its listener's database.

    Its methods raise DatabaseUnavailable or BusUnavailable if the database or Redis is not available, and
    SequenceBehind if no rows can be inserted. They may be called again, because the keys tell what was committed.
    """

    def __init__(self, listener: Listener, group: str, process_name: str, settings: Settings) -> None:
        self._runner = HandlerRunner(listener, group, process_name, settings)
        self._strategy: type[Batch | OneByOne] = Batch if listener.batch else OneByOne
        self._retries = Retries(self._runner, settings.max_attempts)
        self._gate = self._runner.gate
        self.using = self._runner.using
        self.activity = self._runner.activity
        self.contention = self._runner.contention
        self.keys = self._runner.keys
        self.tally = self._runner.tally
        self.announcer = self._runner.announcer

    def connect(self) -> None:
        """Open the database connection unless it is open."""
        self._runner.connect()

    def handle(
        self,
        deliveries: Sequence[Delivery],
        *,
        begin: Callable[..., None] = lambda *deliveries: None,
        stopping: Callable[[], bool] = lambda: False,
        defer: bool = False,
    ) -> int:
        """Handle events; return how many of them, from the first, are handled.

        Fewer than all if `stopping` returns true, if it takes long, or if an error comes after the first. An event
        whose key is already there is skipped. A handler that raises leaves a failed event.

        Args:
            deliveries: the events, at least one.
            begin: called with the events that are about to be given to the handler.
            stopping: whether to stop after the event in hand.
            defer: whether commits may wait for the disk in `confirm` instead.

        Raises:
            EventContended: the first event doesn't get through, but others may.
        """
        self._gate.open()
        return self._strategy(self._runner, deliveries, begin, stopping, defer).handle()

    def confirm(self) -> bool:
        """Make durable what was handled since the last call; return False if all of it has to be handled again."""
        self.activity.start(CONFIRMING)
        with transient_errors(self.using):
            return self._gate.confirm()

    def retry(self, now: datetime) -> bool:
        """Retry the failed event that has been due longest at `now`; return False if none is due."""
        return self._retries.retry(now)

    def give_back(self) -> None:
        """Let any process make a retry that this one has claimed and not made; record pending failures."""
        self._runner.record_failures()
        self._retries.release()

    def has_handled(self, event_names: Iterable[str]) -> bool:
        """Whether the consumer group has keys of any of these events."""
        if not self._runner.listener.idempotent:
            return False
        self.activity.start(READING_KEY)
        with transient_errors(self.using):
            return self.keys.of_events(event_names).exists()

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Make an event a dead letter without handling it, unless it was handled before.

        Raises:
            EventContended: another process is handling it.
        """
        self.activity.start(READING_KEY, delivery)
        with transient_errors(self.using):
            is_handled = bool(self.keys.existing([delivery.key]))
        if is_handled:
            self._gate.add_found(delivery.key)
            self.announcer.note_found(delivery.key)
            return
        try:
            self._runner.record(delivery, UnreadableEvent(reason))
        except KeyLocked as error:
            raise EventContended(str(error)) from error
