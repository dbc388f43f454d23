"""A listener's turn at a thread that it shares with others."""

import time
from enum import Enum

from lightbus_django.listening.consumer import BLOCK, Consumer
from lightbus_django.listening.state import State

from .health import Health
from .loop import Attempts

MAX_IDLE = 10.0
"""Seconds after which a consumer takes a step although nothing has arrived."""


class TurnState(Enum):
    """What a listener does that shares threads; docs/architecture.md draws how the states follow one another."""

    WAITING = "waits for events"
    DELAYED = "waits after an error"
    READY = "waits for a thread"
    RUNNING = "has a thread"
    STOPPED = "stopped"


class Turn:
    """One listener among those that share threads."""

    def __init__(self, consumer: Consumer, health: Health) -> None:
        self.consumer = consumer
        self.attempts = Attempts(health)
        self.state = TurnState.READY
        self.due_at = 0.0
        """When it becomes ready although nothing arrives, on the monotonic clock."""
        self.is_wanted_again = False
        """Whether something arrived while it was running."""

    def take(self, seconds: float) -> bool:
        """Do what there is to do without waiting, for about `seconds`, so that another listener can use the thread.

        What is handled is acknowledged then. Returns whether there may be more to do.

        Raises:
            BusError, DatabaseUnavailable: as `Consumer.step`.
        """
        consumer, until = self.consumer, time.monotonic() + seconds
        try:
            while (has_more := consumer.step(block=0)) and consumer.contended is None:
                if time.monotonic() >= until or consumer.stopping.is_set():
                    break
            consumer.reader.flush()
        finally:
            consumer.group_consumer.give_back_connection()
        return has_more

    def is_due(self, now: float) -> bool:
        """Whether it has something to do although nothing has arrived."""
        if self.state is TurnState.WAITING and self._is_called:
            return True
        return self.state in (TurnState.WAITING, TurnState.DELAYED) and now >= self.due_at

    def next_step_at(self) -> float:
        """Return when the consumer's next step is due although nothing arrives, on the monotonic clock."""
        consumer, now = self.consumer, time.monotonic()
        if consumer.state is State.PAUSED:
            return now + BLOCK
        set_aside = (due for due, _ in consumer.in_flight.set_aside)
        return min(max(now, consumer.reclaim_at), now + MAX_IDLE, *set_aside)

    @property
    def _is_called(self) -> bool:
        """Whether another thread has asked for a step: for a retry, or a pause."""
        consumer = self.consumer
        return consumer.retries_due.is_set() or consumer.pause.is_wanted is not (consumer.state is State.PAUSED)
