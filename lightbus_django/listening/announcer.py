"""Sends the signals about the events of one listener, once what they say is committed."""

import time
from collections.abc import Sequence
from typing import Any

from lightbus_django import signals
from lightbus_django.events.ids import event_key
from lightbus_django.events.message import EventMessage
from lightbus_django.events.times import as_aware
from lightbus_django.models import FailedEvent
from lightbus_django.signals import announce

from .delivery import Delivery
from .listener import Listener


class Announcer:
    """Notes what becomes of events while they are handled, and sends their signals when they are settled."""

    def __init__(self, listener: Listener, group: str) -> None:
        self._handler = listener.handler
        self._listener = {"listener_name": listener.listener_name, "consumer_group": group}
        self._seconds: dict[str, float] = {}
        self._failures: dict[str, tuple[FailedEvent, BaseException]] = {}
        self._found: set[str] = set()

    def note_call(self, argument: EventMessage | list[EventMessage], seconds: float) -> None:
        """Note how long a call of the handler took that succeeded."""
        messages = [argument] if isinstance(argument, EventMessage) else argument
        self._seconds.update((event_key(message.id), seconds) for message in messages)

    def note_failure(self, failed: FailedEvent, error: BaseException) -> None:
        """Note that an event failed, and that its row is committed or will be."""
        self._failures[failed.event_id] = failed, error

    def note_found(self, key: str) -> None:
        """Note that an event was handled before."""
        self._found.add(key)

    def forget(self) -> None:
        """Forget all notes, because the events are handled again."""
        self._seconds.clear()
        self._failures.clear()
        self._found.clear()

    def handled_of(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return those of the deliveries that neither failed nor were handled before."""
        if not (self._failures or self._found):
            return deliveries
        return [each for each in deliveries if each.key not in self._failures and each.key not in self._found]

    def settled(self, deliveries: Sequence[Delivery]) -> None:
        """Send the signals of events that are settled now, in their order, and forget all notes."""
        seconds, failures, found = self._seconds, self._failures, self._found
        self._seconds, self._failures, self._found = {}, {}, set()
        if not (signals.event_handled.receivers or failures):
            return
        now = time.time()
        for delivery in deliveries:
            key = delivery.key
            if key in failures:
                self.failed(*failures[key])
            elif key not in found:
                self._handled(
                    delivery.event_name, key, delivery.entry.deliveries, seconds.get(key), delivery.entry.stream_id, now
                )

    def retried(self, failed: FailedEvent) -> bool:
        """Send the signals of a failed event that is handled now; return False if it was handled before."""
        seconds, is_found = self._seconds.get(failed.event_id), failed.event_id in self._found
        self.forget()
        if not is_found:
            self._handled(failed.event_name, failed.event_id, failed.attempts, seconds, failed.stream_id, time.time())
        return not is_found

    def failed(self, failed: FailedEvent, error: BaseException) -> None:
        """Send the signals of an event that failed."""
        arguments: dict[str, Any] = {
            **self._listener,
            "event_name": failed.event_name,
            "event_id": failed.event_id,
            "attempt": failed.attempts,
            "seconds": failed.history[-1]["seconds"] if failed.history else None,
            "exception": error,
        }
        next_at = None if failed.next_attempt_at is None else as_aware(failed.next_attempt_at)
        announce(signals.event_failed, self._handler, **arguments, next_attempt_at=next_at)
        if next_at is None:
            announce(signals.event_dead_lettered, self._handler, **arguments)

    def _handled(
        self, event_name: str, event_id: str, attempt: int, seconds: float | None, stream_id: str, now: float
    ) -> None:
        announce(
            signals.event_handled,
            self._handler,
            **self._listener,
            event_name=event_name,
            event_id=event_id,
            attempt=attempt,
            seconds=seconds or 0.0,
            latency=max(0.0, now - int(stream_id.partition("-")[0]) / 1000),
        )
