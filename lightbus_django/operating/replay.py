"""Hands events that a listener never handled to that listener alone."""

from collections.abc import Iterable
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from lightbus_django.bus import entries
from lightbus_django.bus.client import RedisClient
from lightbus_django.database.errors import transient_errors
from lightbus_django.events.codec import Fields, dump_fields
from lightbus_django.events.ids import event_key
from lightbus_django.events.times import fired_at
from lightbus_django.firing.rows import read_rows
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent, stored_group

from .event_records import NO_STREAM_ID
from .fired_events import Fired


def hand_over(event: Fired, stream: str, fields: Fields, *, group: str, using: str) -> bool:
    """Make an event a failed event of one listener, due at once; return False if it has been handled meanwhile.

    Its key is inserted in the same transaction, so it is handled once, even if its entry is delivered after all.

    Args:
        stream: the event's stream.
        fields: the content of its entry.
        group: the listener's consumer group.
        using: the listener's database.

    Raises:
        DatabaseUnavailable
    """
    now = timezone.now()
    ids = {"event_id": event_key(event.id), "consumer_group": stored_group(group, using)}
    with transient_errors(using), transaction.atomic(using=using):
        _, is_new = ProcessedEvent.objects.using(using).get_or_create(
            **ids, defaults={"event_name": event.name, "stream_id": event.stream_id, "processed_at": now}
        )
        if is_new:
            FailedEvent.objects.using(using).create(
                **ids,
                event_name=event.name,
                stream=stream,
                stream_id=event.stream_id or NO_STREAM_ID,
                fields=dump_fields(fields),
                error="Never handled; handed over by lightbus_verify --replay",
                attempts=0,
                failed_at=now,
                next_attempt_at=now,
            )
    return is_new


def find_fields(client: RedisClient, aliases: Iterable[str], event: Fired, stream: str) -> Fields | None:
    """Return the content of an event's entry, from an outbox or the stream; None if it is in neither."""
    if fired_at(event.id) is not None:
        for alias in aliases:
            with transient_errors(alias):
                for row in read_rows(OutboxEvent.objects.using(alias).filter(pk=UUID(event.id))):
                    return row.fields
    return entries.read_entry(client, stream, event.stream_id) if event.stream_id else None
