"""Publishing rows of the outbox: those just committed, those left behind, those to be published again.

No transaction is open while Redis is waited for.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.db import transaction
from django.db.models import DateTimeField, F
from django.db.models.functions import Coalesce
from django.utils import timezone

from .exceptions import BusError, BusUnavailable, InvalidEventName
from .messages import EventMessage, Fields, encode, split_name, stream_key
from .models import OutboxEvent, OutboxEventQuerySet
from .transport import Transport

logger = logging.getLogger("lightbus_django")

GRACE = timedelta(seconds=10)
"""How long somebody has for publishing the rows that are theirs, before a relay takes them."""

RELAY_SIZE = 1000
"""How many rows are published at a time."""

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Staged(NamedTuple):
    """A row of the outbox and the fields to publish."""

    id: UUID
    event_name: str
    fields: Fields


def publish(events: Sequence[Staged], using: str, transport: Transport, stream_use: str) -> int:
    """Publish events of committed rows in order, and mark the rows; return how many were published.

    Raises:
        BusUnavailable: the rows of what was not published are as they were.
    """
    if not events:
        return 0
    results = transport.publish_many((stream_key(event.event_name, stream_use), event.fields) for event in events)
    outbox = OutboxEvent.objects.using(using)
    published = [event.id for event, result in zip(events, results, strict=True) if isinstance(result, str)]
    first = Coalesce("published_at", timezone.now(), output_field=DateTimeField())
    outbox.filter(pk__in=published).update(due_at=None, published_at=first, error="")
    for event, result in zip(events, results, strict=True):
        if isinstance(result, BusUnavailable):
            raise result
        if isinstance(result, BusError):
            _put_off(using, event.id, event.event_name, result)
    return len(published)


def relay(using: str, now: datetime, transport: Transport, stream_use: str) -> int:
    """Publish what is due at `now` and was left behind, up to RELAY_SIZE rows; return how many rows were due.

    Raises:
        BusUnavailable: the rows are due again after GRACE.
    """
    rows = _claim(using, now)
    publish(_read(rows, using), using, transport, stream_use)
    return len(rows)


def republish(rows: OutboxEventQuerySet, transport: Transport, stream_use: str) -> Iterator[int]:
    """Publish again, under their ids, rows that were published; yield how many, some at a time.

    Raises:
        BusUnavailable: the rest was not published.
    """
    last = None
    while chunk := list((rows.filter(pk__gt=last) if last else rows).order_by("pk")[:RELAY_SIZE]):
        yield publish(_read(chunk, rows.db), rows.db, transport, stream_use)
        last = chunk[-1].pk


def _claim(using: str, now: datetime) -> list[OutboxEvent]:
    """Take due rows away from other relays for the time of GRACE.

    None while another relay is at older ones: what one transaction fired stays in order.
    """
    outbox = OutboxEvent.objects.using(using)
    due = outbox.filter(due_at__lte=now).order_by("pk")
    if not due.exists():
        return []
    with transaction.atomic(using=using):
        # Locked rows are waited for, not skipped, so that the next query sees what the other relay took.
        rows = list(due.select_for_update()[:RELAY_SIZE])
        taken = outbox.filter(due_at__gt=now, due_at__lte=now + GRACE, error="")
        if taken.filter(due_at__gt=F("created_at") + GRACE).exists():
            return []
        outbox.filter(pk__in=[row.pk for row in rows]).update(due_at=now + GRACE)
    return rows


def _read(rows: Sequence[OutboxEvent], using: str) -> list[Staged]:
    """Return the events that rows hold; one that can't be read is put off."""
    events = []
    for row in rows:
        try:
            events.append(_staged(row))
        except (InvalidEventName, msgspec.MsgspecError, ValueError) as error:
            _put_off(using, row.pk, row.event_name, error)
    return events


def _staged(row: OutboxEvent) -> Staged:
    api_name, event_name = split_name(row.event_name)
    message = EventMessage(id=str(row.id), api_name=api_name, event_name=event_name, version=row.version, payload={})
    payload = {key: bytes(value) for key, value in _decode_payload(row.payload).items()}
    return Staged(row.id, row.event_name, encode(message, payload))


def _put_off(using: str, key: UUID, event_name: str, error: Exception) -> None:
    """Let a row that can't be published wait, lest it holds up those behind it."""
    logger.error("outbox: %s %s can't be published yet: %s", event_name, key, error)
    OutboxEvent.objects.using(using).filter(pk=key).update(due_at=timezone.now() + 6 * GRACE, error=str(error))
