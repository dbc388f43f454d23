"""Pruning: which rows are old, and how they are deleted a few at a time."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.partitions import is_partitioned
from lightbus_django.database.text import storable
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import SKEW, as_stored
from lightbus_django.exceptions import NotAStream
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent, RetryRequest

CHUNK = 1000
"""Number of rows that are read, and deleted in one transaction, with each step."""


@dataclass(frozen=True)
class Cutoffs:
    """Times before which rows are old."""

    inbox: datetime
    outbox: datetime
    failed: datetime
    inbox_of: Mapping[str, datetime] = field(default_factory=dict)
    """Earlier times for the keys of some events, by event name."""

    @property
    def inbox_of_all(self) -> datetime:
        """The time before which the keys of all events are old."""
        return min([self.inbox, *self.inbox_of.values()])

    def is_old(self, event_name: str, processed_at: datetime) -> bool:
        return processed_at < min(self.inbox, self.inbox_of.get(event_name, self.inbox))

    def as_stored(self, using: str) -> "Cutoffs":
        """Return these cutoffs with event names as the database stores them."""
        event_name = ProcessedEvent._meta.get_field("event_name")
        return replace(self, inbox_of={storable(name, event_name, using): age for name, age in self.inbox_of.items()})


def cutoffs_at(now: datetime, settings: Settings, client: RedisClient) -> Cutoffs:
    """Return the cutoffs at `now`, a time in UTC.

    An event's key must outlive its last possible delivery. So it is kept while the stream has entries of its age, or
    entries that may have been published again since.
    """

    def ago(seconds: float, than: datetime = now) -> datetime:
        return as_stored(than - timedelta(seconds=seconds))

    inbox_of = {}
    events_of = defaultdict(set)
    for listener in registry:
        for event in listener.events:
            events_of[stream_key(event, settings.stream_use)].add(event)
    for stream, events in events_of.items():
        with suppress(NotAStream):
            if (oldest := streams.oldest_time(client, stream)) is not None:
                inbox_of.update(dict.fromkeys(events, ago(settings.outbox_retention, oldest - SKEW)))
    return Cutoffs(
        inbox=ago(settings.inbox_retention),
        outbox=ago(settings.outbox_retention),
        failed=ago(settings.failed_retention),
        inbox_of=inbox_of,
    )


def prune(using: str, cutoffs: Cutoffs) -> Iterator[tuple[str, int]]:
    """Delete old rows of the database `using`, some with each step; yield their kind and number.

    Failed events that are retried, the keys of failed events, and unpublished events in the outbox are kept whatever
    their age. Partitioned tables are left alone: their old rows go with their partitions.
    """
    failed = FailedEvent.objects.using(using)
    for rows in _chunks(failed, "failed_at"):
        old = [key for key, failed_at in rows if failed_at < cutoffs.failed]
        yield "dead letters", _delete_dead_letters(using, old) if old else 0

    requests = RetryRequest.objects.using(using)
    for rows in _chunks(requests, "requested_at", until=cutoffs.failed):
        old = [key for key, requested_at in rows if requested_at < cutoffs.failed]
        requests.filter(pk__in=old).delete()

    if not is_partitioned(ProcessedEvent, using):
        yield from _prune_inbox(using, cutoffs.as_stored(using))
    if not is_partitioned(OutboxEvent, using):
        yield from _prune_outbox(using, cutoffs)


def _prune_inbox(using: str, cutoffs: Cutoffs) -> Iterator[tuple[str, int]]:
    inbox = ProcessedEvent.objects.using(using)
    failures = FailedEvent.objects.using(using).filter(
        event_id=OuterRef("event_id"), consumer_group=OuterRef("consumer_group")
    )
    for rows in _chunks(inbox, "processed_at", "event_name", until=cutoffs.inbox):
        old = [key for key, processed_at, event_name in rows if cutoffs.is_old(event_name, processed_at)]
        # The age is checked again because a retry may have renewed it.
        keys = inbox.filter(pk__in=old, processed_at__lt=cutoffs.inbox).exclude(Exists(failures))
        yield "processed events", keys.delete()[0] if old else 0


def _prune_outbox(using: str, cutoffs: Cutoffs) -> Iterator[tuple[str, int]]:
    outbox = OutboxEvent.objects.using(using)
    for rows in _chunks(outbox, "created_at", until=cutoffs.outbox):
        old = [key for key, created_at in rows if created_at < cutoffs.outbox]
        yield "published events", outbox.filter(pk__in=old).published(until=cutoffs.outbox).delete()[0]


def _chunks(rows: QuerySet[Any], age: str, *fields: str, until: datetime | None = None) -> Iterator[list[Any]]:
    """Yield chunks of rows, as primary key, `age` and further fields; stop at a chunk without rows older than `until`.

    Primary keys are roughly in order of age, so the query needs no index on it.
    """
    last = None
    while chunk := list(
        (rows.filter(pk__gt=last) if last is not None else rows).order_by("pk").values_list("pk", age, *fields)[:CHUNK]
    ):
        if until is not None and min(row[1] for row in chunk) >= until:
            return
        yield chunk
        last = chunk[-1][0]


def _delete_dead_letters(using: str, keys: list[int]) -> int:
    """Delete those that are dead letters, and mark their keys as discarded."""
    with transaction.atomic(using=using):
        dead = FailedEvent.objects.using(using).filter(pk__in=keys, next_attempt_at=None)
        events = defaultdict(list)
        for group, event_id in dead.select_for_update().values_list("consumer_group", "event_id"):
            events[group].append(event_id)
        for group, event_ids in events.items():
            processed = ProcessedEvent.objects.using(using).filter(consumer_group=group, event_id__in=event_ids)
            processed.update(discarded=True, processed_at=timezone.now())
        dead.leave_requests()
        return dead.delete()[0]
