"""`--burst`: do all the work that there is, then end; work that can't be done is an error."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.db import reset_queries

from lightbus_django.exceptions import BusError, BusFull, NodeUnavailable
from lightbus_django.listening.consumer import Consumer
from lightbus_django.models import OutboxEvent

from .health import Health
from .housekeeping import Housekeeping

QUERY_INTERVAL = 1.0
"""Seconds between two queries for due retries and waiting outbox rows while there are events to handle."""


def run_burst(consumers: Sequence[Consumer], housekeeping: Housekeeping, is_stopping: Callable[[], bool]) -> None:
    """Handle, retry, relay and clean up until there is nothing left to do, or until `is_stopping`.

    Raises:
        LightbusError, DatabaseError: some work could not be done; nothing is lost.
    """
    steps: dict[Any, Callable[[], bool]] = {
        consumer: partial(_step, consumer, Health(consumer.group, consumer.client)) for consumer in consumers
    }

    def flag_due_retries() -> bool:
        housekeeping.apply_pauses()
        housekeeping.flag_due_retries()
        return any(consumer.retries_due.is_set() and not consumer.pause.is_wanted for consumer in steps)

    queries: dict[Any, Callable[[], bool]] = {"relay": housekeeping.relay, "retries": flag_due_retries}
    problems: list[Exception] = []
    query_at = 0.0
    while not is_stopping():
        reset_queries()
        has_worked = _run_all(steps, problems)
        if has_worked and time.monotonic() < query_at:
            continue
        query_at = time.monotonic() + QUERY_INTERVAL
        if not (_run_all(queries, problems) or has_worked):
            break
    while not is_stopping() and housekeeping.step():
        reset_queries()
    for problem in [*problems, *housekeeping.problems()]:
        raise problem
    if not is_stopping():
        _check_outboxes(housekeeping)


def _run_all(steps: dict[Any, Callable[[], bool]], problems: list[Exception]) -> bool:
    """Run each step, and remove those for which Redis lacks memory; return whether there was any work."""
    has_worked = False
    for key, step in list(steps.items()):
        try:
            has_worked |= step()
        except BusFull as error:  # the other steps may free some memory
            problems.append(error)
            del steps[key]
    return has_worked


def _step(consumer: Consumer, health: Health) -> bool:
    has_worked = consumer.step(block=0)
    if isinstance(consumer.problem, NodeUnavailable):
        raise consumer.problem
    if consumer.contended is None:
        health.succeeded()
    else:
        health.failed(consumer.contended, is_logged=True)
        if health.needs_attention:  # it would be retried forever
            raise consumer.contended
    return has_worked


def _check_outboxes(housekeeping: Housekeeping) -> None:
    for database in housekeeping.databases:
        if not database.has_outbox:
            continue
        refused = OutboxEvent.objects.using(database.alias).refused()
        if first := refused.first():
            raise BusError(f"outbox: {refused.count()} events could not be published; the first error: {first.error}")
