"""Old rows: which may go from the tables, a few at a time."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from .conf import Settings
from .models import FailedEvent, OutboxEvent, ProcessedEvent

CHUNK = 1000
"""How many rows are looked at, and deleted in one transaction, with each step."""

SKEW = timedelta(hours=1)
"""How far the clocks of Redis and of this machine may be apart."""


@dataclass(frozen=True)
class Cutoffs:
    """Times before which rows are old."""

    inbox: datetime
    outbox: datetime
    failed: datetime

    @classmethod
    def at(cls, now: datetime, settings: Settings, oldest_event: datetime | None) -> "Cutoffs":
        """Return those of `now`, where `oldest_event` came first of what the streams still hold.

        An event's key has to be there for as long as the event may be delivered again.
        """
        inbox = now - timedelta(seconds=settings.inbox_retention)
        return cls(
            inbox=min(inbox, oldest_event - SKEW) if oldest_event else inbox,
            outbox=now - timedelta(seconds=settings.outbox_retention),
            failed=now - timedelta(seconds=settings.failed_retention),
        )


def prune(using: str, cutoffs: Cutoffs) -> Iterator[tuple[str, int]]:
    """Delete old rows of the database `using`, some with each step; yield of what how many.

    What stays whatever its age: failed events that are retried, the keys of failed events, and events
    of the outbox that are not published yet.
    """
    failed = FailedEvent.objects.using(using)
    for keys in _old(failed, "failed_at", cutoffs.failed):
        yield "dead letters", _delete_dead_letters(using, keys)
    inbox = ProcessedEvent.objects.using(using)
    failures = failed.filter(event_id=OuterRef("event_id"), consumer_group=OuterRef("consumer_group"))
    for keys in _old(inbox, "processed_at", cutoffs.inbox):
        yield "processed events", inbox.filter(pk__in=keys).exclude(Exists(failures)).delete()[0]
    outbox = OutboxEvent.objects.using(using)
    for keys in _old(outbox, "created_at", cutoffs.outbox):
        yield "published events", outbox.filter(pk__in=keys, due_at=None, published_at__lt=cutoffs.outbox).delete()[0]


def _old(rows: QuerySet[Any], age: str, cutoff: datetime) -> Iterator[list[Any]]:
    """Yield primary keys of old rows. They are in order of age but for a few, so no index on the age is needed."""
    last = None
    while True:
        after = rows.filter(pk__gt=last) if last is not None else rows
        chunk = list(after.order_by("pk").values_list("pk", age)[:CHUNK])
        old = [key for key, time in chunk if time < cutoff]
        if not old:
            return
        yield old
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
            processed.update(discarded=True)
        return dead.delete()[0]
