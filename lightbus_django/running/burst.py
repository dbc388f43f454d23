"""`--burst`: do all that there is to do, then end; what could not be done is an error."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.db import reset_queries

from lightbus_django.exceptions import BusError, BusFull
from lightbus_django.listening.consumer import Consumer
from lightbus_django.models import OutboxEvent

from .housekeeping import Housekeeping
from .outages import Outage

ASK_INTERVAL = 1.0
"""Seconds between two looks at what is left or due in the databases, while there are events to handle."""


def run_burst(consumers: Sequence[Consumer], housekeeping: Housekeeping, is_stopping: Callable[[], bool]) -> None:
    """Handle, retry, relay and clean up until there is nothing left to do, or `is_stopping`.

    Raises:
        LightbusError, DatabaseError: something could not be done; nothing is lost.
    """
    steps: dict[Any, Callable[[], bool]] = {
        consumer: partial(_step, consumer, Outage(consumer.group, consumer.client)) for consumer in consumers
    }

    def look_for_retries() -> bool:
        housekeeping.flag_due_retries()
        return any(consumer.retries_due.is_set() for consumer in steps)

    asks: dict[Any, Callable[[], bool]] = {"relay": housekeeping.relay, "retries": look_for_retries}
    problems: list[Exception] = []
    ask_at = 0.0
    while not is_stopping():
        reset_queries()
        busy = _run_all(steps, problems)
        if busy and time.monotonic() < ask_at:
            continue
        ask_at = time.monotonic() + ASK_INTERVAL
        if not (_run_all(asks, problems) or busy):
            break
    while not is_stopping() and housekeeping.step():
        reset_queries()
    for problem in [*problems, *housekeeping.problems()]:
        raise problem
    if not is_stopping():
        _check_outboxes(housekeeping)


def _run_all(steps: dict[Any, Callable[[], bool]], problems: list[Exception]) -> bool:
    """Run each; return whether there was something to do. What needs memory that Redis lacks is not run again."""
    busy = False
    for key, step in list(steps.items()):
        try:
            busy |= step()
        except BusFull as error:  # the others may need no memory, and make some
            problems.append(error)
            del steps[key]
    return busy


def _step(consumer: Consumer, outage: Outage) -> bool:
    busy = consumer.step(block=0)
    if consumer.contended is None:
        outage.ended()
    else:
        outage.failed(consumer.contended, is_told=True)
        if outage.needs_somebody:  # or this would never end
            raise consumer.contended
    return busy


def _check_outboxes(housekeeping: Housekeeping) -> None:
    for database in housekeeping.databases:
        if not database.has_outbox:
            continue
        refused = OutboxEvent.objects.using(database.alias).refused()
        if first := refused.first():
            raise BusError(f"outbox: {refused.count()} events can't be published yet; the first one: {first.error}")
