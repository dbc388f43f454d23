"""Events of committed transactions: staged with the caller's writes, published after the commit.

No transaction is open while Redis is waited for.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.utils import timezone

from .conf import get_settings
from .exceptions import BusError, BusUnavailable
from .messages import EventMessage, Fields, encode, encode_payload, split_name, stream_key
from .models import OutboxEvent
from .transport import Transport, get_transport

logger = logging.getLogger("lightbus_django")

GRACE = timedelta(seconds=10)
"""How long a process has for committing an event and publishing it, before a relay does."""

RELAY_SIZE = 1000
"""How many rows a relay claims at a time."""

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode_payload = msgspec.json.Encoder().encode


class Staged(NamedTuple):
    """A row of the outbox and the fields to publish."""

    id: UUID
    event_name: str
    fields: Fields


def current_database() -> str:
    """Return the alias of the transaction at hand: the one that is open, else where OutboxEvent is written."""
    in_transaction = [
        connection.alias for connection in connections.all(initialized_only=True) if connection.in_atomic_block
    ]
    return in_transaction[0] if len(in_transaction) == 1 else router.db_for_write(OutboxEvent)


def stage(message: EventMessage, using: str) -> None:
    """Write the event in the transaction of `using`, to be published once that is committed.

    Without a transaction it is published at once.

    Raises:
        InvalidPayload: no row was written; the transaction goes on.
    """
    payload = encode_payload(message.payload)
    row = OutboxEvent(
        id=UUID(message.id),
        event_name=message.name,
        version=message.version,
        payload=_encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode(),
        due_at=timezone.now() + GRACE,
    )
    row.save(using=using, force_insert=True)
    batch = _Batch.at_hand(using)
    batch.add(Staged(row.id, row.event_name, encode(message, payload)))
    # Each event needs a hook of its own: Django drops those of a savepoint that is rolled back.
    transaction.on_commit(batch.publish, using=using, robust=True)


class _Batch:
    """The events of one transaction; the first of their hooks to run publishes all of them."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.events: list[Staged] = []
        self.in_transaction = False
        self.published = False

    @classmethod
    def at_hand(cls, using: str) -> "_Batch":
        """Return the batch of the transaction that is open. A rollback takes it away with its hooks."""
        for hook in reversed(connections[using].run_on_commit):
            batch = getattr(hook[1], "__self__", None)
            if isinstance(batch, cls) and not batch.published:
                return batch
        return cls(using)

    def add(self, event: Staged) -> None:
        self.events.append(event)
        self.in_transaction |= connections[self.using].in_atomic_block

    def publish(self) -> None:
        if self.published:
            return
        self.published = True
        settings = get_settings()
        try:
            events = self._committed()
            publish(events, self.using, get_transport(settings.url, settings.redis_timeout), settings.stream_use)
        except (BusError, DatabaseError) as error:
            logger.warning("outbox: %d events wait for the relay: %s", len(self.events), error)

    def _committed(self) -> list[Staged]:
        """Return the events whose rows are there: a savepoint may have been rolled back without Django's knowing."""
        if not self.in_transaction:
            return self.events
        ids = OutboxEvent.objects.using(self.using).filter(pk__in=[event.id for event in self.events])
        committed = set(ids.values_list("pk", flat=True))
        return [event for event in self.events if event.id in committed]


def publish(events: Sequence[Staged], using: str, transport: Transport, stream_use: str) -> int:
    """Publish events of committed rows in order, and mark the rows; return how many were published.

    Raises:
        BusUnavailable: the rows of what was not published are as they were.
    """
    outbox = OutboxEvent.objects.using(using)
    count = 0
    for first in range(0, len(events), RELAY_SIZE):
        some = events[first : first + RELAY_SIZE]
        results = transport.publish_many((stream_key(event.event_name, stream_use), event.fields) for event in some)
        published = [event.id for event, result in zip(some, results, strict=True) if isinstance(result, str)]
        outbox.filter(pk__in=published).update(due_at=None, published_at=timezone.now(), error="")
        count += len(published)
        for event, result in zip(some, results, strict=True):
            if isinstance(result, BusUnavailable):
                raise result
            if isinstance(result, BusError):
                logger.error("outbox: %s %s can't be published yet: %s", event.event_name, event.id, result)
                outbox.filter(pk=event.id).update(due_at=timezone.now() + 6 * GRACE, error=str(result))
    return count


def relay(using: str, now: datetime, transport: Transport, stream_use: str) -> int:
    """Publish what is due at `now` and was left behind, up to RELAY_SIZE rows; return how many rows were due.

    Raises:
        BusUnavailable: the rows are due again after GRACE.
    """
    rows = _claim(using, now)
    publish([_staged(row) for row in rows], using, transport, stream_use)
    return len(rows)


def _claim(using: str, now: datetime) -> list[OutboxEvent]:
    """Take due rows away from other relays for the time of GRACE."""
    outbox = OutboxEvent.objects.using(using)
    features = connections[using].features
    due = outbox.filter(due_at__lte=now).order_by("id")
    if not due.exists():
        return []
    with transaction.atomic(using=using):
        rows = list(due.select_for_update(skip_locked=features.has_select_for_update_skip_locked)[:RELAY_SIZE])
        outbox.filter(pk__in=[row.pk for row in rows]).update(due_at=now + GRACE)
    return rows


def _staged(row: OutboxEvent) -> Staged:
    api_name, event_name = split_name(row.event_name)
    message = EventMessage(id=str(row.id), api_name=api_name, event_name=event_name, version=row.version, payload={})
    payload = {key: bytes(value) for key, value in _decode_payload(row.payload).items()}
    return Staged(row.id, row.event_name, encode(message, payload))
