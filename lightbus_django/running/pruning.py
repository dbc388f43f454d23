"""Old rows: which may go from the tables, a few at a time."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from lightbus_django.bus import streams
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.text import storable
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import SKEW, as_stored
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

CHUNK = 1000
"""How many rows are looked at, and deleted in one transaction, with each step."""


@dataclass(frozen=True)
class Cutoffs:
    """Times before which rows are old."""

    inbox: datetime
    outbox: datetime
    failed: datetime
    inbox_of: Mapping[str, datetime] = field(default_factory=dict)
    """The keys of these events are old before these times, if they are earlier."""

    def is_old(self, event_name: str, processed_at: datetime) -> bool:
        return processed_at < min(self.inbox, self.inbox_of.get(event_name, self.inbox))

    def as_stored(self, using: str) -> "Cutoffs":
        """Return the same with the names of events as the database has them."""
        event_name = ProcessedEvent._meta.get_field("event_name")
        return replace(self, inbox_of={storable(name, event_name, using): age for name, age in self.inbox_of.items()})


def cutoffs_at(now: datetime, settings: Settings, client: RedisClient) -> Cutoffs:
    """Return what is old at `now`, a time in UTC.

    An event's key has to be there for as long as the event may be delivered again. So it stays while
    the stream holds anything that is as old, or that may have been published again since.
    """

    def ago(seconds: float, than: datetime = now) -> datetime:
        return as_stored(than - timedelta(seconds=seconds))

    inbox_of = {}
    events_of = defaultdict(set)
    for listener in registry:
        for event in listener.events:
            events_of[stream_key(event, settings.stream_use)].add(event)
    for stream, events in events_of.items():
        if (oldest := streams.oldest_time(client, stream)) is not None:
            inbox_of.update(dict.fromkeys(events, ago(settings.outbox_retention, oldest - SKEW)))
    return Cutoffs(
        inbox=ago(settings.inbox_retention),
        outbox=ago(settings.outbox_retention),
        failed=ago(settings.failed_retention),
        inbox_of=inbox_of,
    )


def prune(using: str, cutoffs: Cutoffs) -> Iterator[tuple[str, int]]:
    """Delete old rows of the database `using`, some with each step; yield of what how many.

    What stays whatever its age: failed events that are retried, the keys of failed events, and events
    of the outbox that are not published yet.
    """
    failed = FailedEvent.objects.using(using)
    for rows in _chunks(failed, "failed_at"):
        old = [key for key, failed_at in rows if failed_at < cutoffs.failed]
        yield "dead letters", _delete_dead_letters(using, old) if old else 0

    inbox = ProcessedEvent.objects.using(using)
    cutoffs = cutoffs.as_stored(using)
    failures = failed.filter(event_id=OuterRef("event_id"), consumer_group=OuterRef("consumer_group"))
    for rows in _chunks(inbox, "processed_at", "event_name", until=cutoffs.inbox):
        old = [key for key, processed_at, event_name in rows if cutoffs.is_old(event_name, processed_at)]
        # Their age once more, for a retry may have renewed it.
        keys = inbox.filter(pk__in=old, processed_at__lt=cutoffs.inbox).exclude(Exists(failures))
        yield "processed events", keys.delete()[0] if old else 0

    outbox = OutboxEvent.objects.using(using)
    for rows in _chunks(outbox, "created_at", until=cutoffs.outbox):
        old = [key for key, created_at in rows if created_at < cutoffs.outbox]
        yield "published events", outbox.filter(pk__in=old).published(until=cutoffs.outbox).delete()[0]


def _chunks(rows: QuerySet[Any], age: str, *fields: str, until: datetime | None = None) -> Iterator[list[Any]]:
    """Yield the primary key, the age and further fields of rows, until all of a chunk are young.

    Rows come in order of their age, but for a few, so no index on it is needed.
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
    """Delete those that are dead letters; from then on they count as discarded."""
    with transaction.atomic(using=using):
        dead = FailedEvent.objects.using(using).filter(pk__in=keys, next_attempt_at=None)
        events = defaultdict(list)
        for group, event_id in dead.select_for_update().values_list("consumer_group", "event_id"):
            events[group].append(event_id)
        for group, event_ids in events.items():
            processed = ProcessedEvent.objects.using(using).filter(consumer_group=group, event_id__in=event_ids)
            processed.update(discarded=True, processed_at=timezone.now())
        return dead.delete()[0]
