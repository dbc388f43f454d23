"""Retries and discards of many failed events, in chunks, and recorded in the admin's history."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.http import HttpRequest
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.events.times import as_stored
from lightbus_django.models import FailedEvent, FailedEventQuerySet, new_retry_request
from lightbus_django.operating.failures import find_listener, obstacles, warnings

LIMIT = 10_000
"""Maximum number of events that are retried or discarded with one click."""

CHUNK = 100
"""Number of events that are loaded and changed at a time."""

REASONS = 5
"""Maximum number of reasons that are shown, the most frequent first."""


class Preview(NamedTuple):
    """What a retry would do; nothing was changed."""

    retried: int
    """The number of events that would be retried."""
    due: int
    """The number of those that are due already, or are being retried."""
    refused: Counter[str]
    """The numbers of events whose retry can't succeed, by the reason."""
    samples: dict[str, int]
    """The primary key of the first of these, by the reason, if the event has a listener."""
    warnings: Counter[str]
    """The numbers of events that need thought, by what to consider."""
    has_more: bool
    """Whether LIMIT is reached."""


class Retried(NamedTuple):
    """What came of a retry."""

    due: int
    """The number of events that are due now."""
    refused: Counter[str]
    """The numbers of events whose retry can't succeed, by the reason."""
    has_more: bool
    """Whether LIMIT is reached."""

    def report(self, request: HttpRequest) -> None:
        """Tell the user what was done, and what was not and why."""
        if self.due:
            text = ngettext("%s event is due for a retry.", "%s events are due for a retry.", self.due)
            messages.success(request, text % f"{self.due:,}")
        for reason, refused in self.refused.most_common(REASONS):
            text = ngettext(
                "%(count)s event was not retried, because that can't succeed: %(reason)s.",
                "%(count)s events were not retried, because that can't succeed: %(reason)s.",
                refused,
            )
            messages.error(request, text % {"count": f"{refused:,}", "reason": reason})
        if not self.due and not self.refused:
            text = _("They are due already or being retried at this moment, or are no failed events any more.")
            messages.warning(request, text)
        elif self.has_more:
            messages.warning(request, _("There are more: retry all again for the rest."))


def preview(events: FailedEventQuerySet) -> Preview:
    """Look at what a retry of the events would do, LIMIT of those at most that are not due yet."""
    retried, seen = 0, 0
    refused: Counter[str] = Counter()
    samples: dict[str, int] = {}
    to_consider: Counter[str] = Counter()
    for chunk in _chunks(_waiting(events)):
        seen += len(chunk)
        for event in chunk:
            reason = next(obstacles(event, events.db), None)
            if reason is not None:
                refused[reason] += 1
                if reason not in samples and find_listener(event, events.db) is not None:
                    samples[reason] = event.pk
                continue
            retried += 1
            to_consider.update(warnings(event, events.db))
    due = events.order_by()[: LIMIT + 1].count() - seen if seen < LIMIT else 0
    return Preview(retried, max(0, due), refused, samples, to_consider, seen >= LIMIT)


def retry(events: FailedEventQuerySet, user: Any) -> Retried:
    """Make those events due that are not yet, but not those whose retry can't succeed; LIMIT at a time."""
    count, seen = 0, 0
    refused: Counter[str] = Counter()
    request = new_retry_request(events.db, user.get_username())
    for chunk in _chunks(_waiting(events)):
        seen += len(chunk)
        reasons = {event.pk: next(obstacles(event, events.db), None) for event in chunk}
        refused.update(reason for reason in reasons.values() if reason is not None)
        rows = _rows(events.db, [key for key, reason in reasons.items() if reason is None])
        _log(rows, user, CHANGE, "Retry now")
        count += rows.request_retry(request)
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


def _waiting(events: FailedEventQuerySet) -> FailedEventQuerySet:
    """Return those events that are neither due yet nor being retried, with what a check needs.

    Other columns may be large.
    """
    now = as_stored(datetime.now(UTC))
    waiting = events.exclude(next_attempt_at__lte=now).unclaimed(now).order_by("pk").defer(None)
    return waiting.only("event_id", "event_name", "consumer_group", "fields", "stream_id", "attempts", "error")


def _chunks(events: FailedEventQuerySet) -> Iterator[list[FailedEvent]]:
    """Yield LIMIT of the events at most, CHUNK at a time."""
    seen, last = 0, 0
    while seen < LIMIT and (chunk := list(events.filter(pk__gt=last)[:CHUNK])):
        seen, last = seen + len(chunk), chunk[-1].pk
        yield chunk


def _rows(using: str, keys: list[int]) -> FailedEventQuerySet:
    return FailedEvent.objects.using(using).filter(pk__in=keys)


def _log(rows: FailedEventQuerySet, user: Any, flag: int, message: str) -> None:
    # Other columns may be large.
    LogEntry.objects.log_actions(user.pk, rows.only("event_id", "event_name"), flag, message)
