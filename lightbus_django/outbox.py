"""Events staged with the caller's writes, to be published once these are committed."""

import logging
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.utils import timezone

from .conf import get_settings
from .exceptions import BusError
from .messages import EventMessage, encode, encode_payload
from .models import OutboxEvent
from .relay import GRACE, RELAY_SIZE, Staged, publish
from .transport import get_transport

logger = logging.getLogger("lightbus_django")

MARGIN = GRACE / 2
"""How long before its rows are due a process does not begin to publish them without making sure."""

_encode_payload = msgspec.json.Encoder().encode


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
    payload = encode_payload(message.payload, get_settings().max_payload_size)
    batch = _Batch.at_hand(using)
    row = OutboxEvent(
        id=UUID(message.id),
        event_name=message.name,
        version=message.version,
        payload=_encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode(),
        due_at=batch.due_at,
    )
    row.save(using=using, force_insert=True)
    batch.add(Staged(row.id, row.event_name, encode(message, payload)))
    # Each event needs a hook of its own: Django drops those of a savepoint that is rolled back.
    transaction.on_commit(batch.publish, using=using, robust=True)


class _Batch:
    """The events of one transaction; the first of their hooks to run publishes all of them."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.due_at = timezone.now() + GRACE
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
        transport = get_transport(settings.url, settings.redis_timeout)
        if not transport.is_worth_trying():
            logger.debug("outbox: %d events wait for the relay: Redis at %s is down", len(self.events), transport)
            return
        try:
            for first in range(0, len(self.events), RELAY_SIZE):
                events = self._ours(self.events[first : first + RELAY_SIZE], timezone.now())
                publish(events, self.using, transport, settings.stream_use)
        except (BusError, DatabaseError) as error:
            logger.warning("outbox: %d events wait for the relay: %s", len(self.events), error)

    def _ours(self, events: Sequence[Staged], now: datetime) -> Sequence[Staged]:
        """Return the events whose rows are there, and not taken by a relay.

        A savepoint may have been rolled back without Django's knowing. And where the transaction took
        long, the rows are due, or soon will be.
        """
        if not self.in_transaction:
            return events
        rows = OutboxEvent.objects.using(self.using).filter(pk__in=[event.id for event in events])
        due_at = self.due_at
        if now > due_at - MARGIN:
            due_at = now + GRACE
            rows.filter(due_at=self.due_at).update(due_at=due_at)
        ours = set(rows.filter(due_at=due_at).values_list("pk", flat=True))
        return [event for event in events if event.id in ours]
