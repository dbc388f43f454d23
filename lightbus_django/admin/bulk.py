"""Retries and discards of a group of failed events, in chunks, and recorded in the admin's history."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.contrib.admin.models import CHANGE, DELETION, LogEntry

from lightbus_django.events.times import as_stored
from lightbus_django.models import FailedEvent, FailedEventQuerySet
from lightbus_django.operating.failures import obstacles

LIMIT = 10_000
"""Maximum number of events that are retried or discarded with one click."""

CHUNK = 100
"""Number of events that are loaded and changed at a time."""


class Retried(NamedTuple):
    """What came of a retry."""

    due: int
    """The number of events that are due now."""
    refused: Counter[str]
    """The numbers of events whose retry can't succeed, by the reason."""
    has_more: bool
    """Whether LIMIT is reached."""


def retry(events: FailedEventQuerySet, user: Any) -> Retried:
    """Make those events due that are not yet, but not those whose retry can't succeed; LIMIT at a time."""
    waiting = events.exclude(next_attempt_at__lte=as_stored(datetime.now(UTC))).order_by("pk")
    waiting = waiting.only("event_id", "event_name", "consumer_group", "fields", "stream_id", "attempts")
    count, seen, last = 0, 0, 0
    refused: Counter[str] = Counter()
    while seen < LIMIT and (chunk := list(waiting.filter(pk__gt=last)[:CHUNK])):
        seen, last = seen + len(chunk), chunk[-1].pk
        reasons = {event.pk: next(obstacles(event, events.db), None) for event in chunk}
        refused.update(reason for reason in reasons.values() if reason is not None)
        rows = _rows(events.db, [key for key, reason in reasons.items() if reason is None])
        _log(rows, user, CHANGE, "Retry now")
        count += rows.retry_now()
    return Retried(count, refused, seen >= LIMIT)


def discard(events: FailedEventQuerySet, user: Any, reason: str) -> int:
    """Discard LIMIT of the events at most; return how many."""
    keys = list(events.order_by("pk").values_list("pk", flat=True)[:LIMIT])
    count = 0
    for first in range(0, len(keys), CHUNK):
        rows = _rows(events.db, keys[first : first + CHUNK])
        _log(rows, user, DELETION, f"Discard: {reason}" if reason else "Discard")
        count += rows.discard(user.get_username(), reason)
    return count


def _rows(using: str, keys: list[int]) -> FailedEventQuerySet:
    return FailedEvent.objects.using(using).filter(pk__in=keys)


def _log(rows: FailedEventQuerySet, user: Any, flag: int, message: str) -> None:
    # Other columns may be large.
    LogEntry.objects.log_actions(user.pk, rows.only("event_id", "event_name"), flag, message)
