"""Events staged with the caller's writes, to be published once these are committed."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from .chunks import chunks
from .conf import get_settings
from .dispatch import GRACE, Staged, publish_with_notes
from .exceptions import BusError
from .inserts import insert
from .messages import EventMessage, encode, encode_payload
from .models import OutboxEvent
from .relay import RELAY_BYTES, RELAY_SIZE, read
from .transport import Transport, get_transport
from .witness import Witness

logger = logging.getLogger("lightbus_django")

MARGIN = GRACE / 2
"""How long before its rows are due a process does not begin to publish them without making sure."""

INSERT_SIZE = 1000
INSERT_BYTES = 1024 * 1024
"""How many events, and bytes of payload, are written with one statement, unless one event alone has more."""

_COLUMNS = ("id", "event_name", "version", "payload", "created_at", "due_at", "error")

_encode_payload = msgspec.json.Encoder().encode


def current_database() -> str:
    """Return the alias of the transaction at hand: the one that is open, else where OutboxEvent is written."""
    in_transaction = [
        connection.alias for connection in connections.all(initialized_only=True) if connection.in_atomic_block
    ]
    return in_transaction[0] if len(in_transaction) == 1 else router.db_for_write(OutboxEvent)


def stage(messages: Sequence[EventMessage], using: str) -> None:
    """Write the events in the transaction of `using`, to be published once that is committed.

    Without a transaction they are published at once.

    Raises:
        InvalidPayload: no row was written; the transaction goes on.
    """
    max_size = get_settings().max_payload_size
    payloads = [encode_payload(message.payload, max_size) for message in messages]
    connection: Any = connections[using]
    # Several statements have to be one transaction; a single one is.
    together = transaction.atomic(using, savepoint=False) if len(messages) > 1 else nullcontext()
    with together, transaction.mark_for_rollback_on_error(using):
        batch = _Batch.at_hand(connection)
        rows = (_row(*event, batch) for event in zip(messages, payloads, strict=True))
        for some in chunks(rows, lambda row: len(row[3]), count=INSERT_SIZE, size=INSERT_BYTES):
            insert(OutboxEvent, using, _COLUMNS, some)
        for message, payload in zip(messages, payloads, strict=True):
            size = sum(map(len, payload.values()))
            batch.add(Staged(UUID(message.id), message.name, size, encode(message, payload)))
        # Each call needs a hook of its own: Django drops those of a savepoint that is rolled back.
        connection.on_commit(batch.publish, robust=True)


def _row(message: EventMessage, payload: Mapping[str, bytes], batch: "_Batch") -> tuple[Any, ...]:
    connection: Any = batch.connection
    text = _encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode()
    created_at, due_at = map(connection.ops.adapt_datetimefield_value, (timezone.now(), batch.due_at))
    row_id = UUID(message.id)
    stored_id = row_id if connection.features.has_native_uuid_field else row_id.hex
    return (stored_id, message.name, message.version, text, created_at, due_at, "")


def _transport() -> Transport:
    settings = get_settings()
    return get_transport(settings.url, settings.redis_timeout)


class _Batch:
    """The events of one transaction; the first of their hooks to run publishes all of them."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        # While Redis is down nobody will publish them but a relay: it may do so as soon as Redis is back.
        self.due_at = timezone.now() + (timedelta() if _transport().is_down else GRACE)
        self.events: list[Staged] = []
        self.size = 0
        self.claims: list[datetime] = []
        self.in_transaction = False
        self.witness = Witness.of(connection)
        self.doubts = self.witness.doubts
        self.published = False

    @classmethod
    def at_hand(cls, connection: BaseDatabaseWrapper) -> "_Batch":
        """Return the batch of the transaction that is open. A rollback takes it away with its hooks."""
        for hook in reversed(connection.run_on_commit):
            batch = getattr(hook[1], "__self__", None)
            if isinstance(batch, cls) and not batch.published:
                return batch
        return cls(connection)

    def add(self, event: Staged) -> None:
        self.size += event.size
        if self.size > RELAY_BYTES:
            event = event._replace(fields={})  # they are read when it is their turn
        self.events.append(event)
        self.in_transaction |= self.connection.in_atomic_block

    def publish(self) -> None:
        if self.published:
            return
        self.published = True
        settings, transport = get_settings(), _transport()
        if not transport.is_worth_trying():
            logger.debug("outbox: %d events wait for the relay: Redis at %s is down", len(self.events), transport)
            return
        left = len(self.events)
        try:
            if transport.is_down:
                transport.send([(b"PING",)])  # any answer will do
            for chunk in chunks(self.events, attrgetter("size"), count=RELAY_SIZE, size=RELAY_BYTES):
                events = self._complete(self._ours(chunk, timezone.now()))
                publish_with_notes(events, self.connection.alias, transport, settings)
                left -= len(chunk)
        except (BusError, DatabaseError) as error:
            logger.warning("outbox: %d events wait for the relay: %s", left, error)

    def _complete(self, events: Sequence[Staged]) -> Sequence[Staged]:
        """Return the events with their fields. Those that are not kept here are read, unless their rows are gone."""
        missing = [event.id for event in events if not event.fields]
        if not missing:
            return events
        found = {
            event.id: event for event in read(OutboxEvent.objects.using(self.connection.alias).filter(pk__in=missing))
        }
        return [found.get(event.id, event) for event in events if event.fields or event.id in found]

    def _ours(self, events: Sequence[Staged], now: datetime) -> Sequence[Staged]:
        """Return the events whose rows are there, and not taken by a relay.

        Those of a savepoint, or a transaction, that was rolled back though this hook runs, are not there. And where the
        transaction took long, the rows are due, or soon will be.
        """
        is_late = now > self.due_at - MARGIN
        in_doubt = self.witness.is_blind or self.witness.doubts > self.doubts
        if not is_late and not (in_doubt and self.in_transaction):
            return events
        outbox = OutboxEvent.objects.using(self.connection.alias)
        rows = outbox.filter(pk__in=[event.id for event in events])
        if is_late:
            until = now + GRACE
            rows.claim(now, until)
            # Any other claim may be that of a relay, which publishes more than the row it has claimed.
            self.claims.append(until)
            if outbox.claimed(now).exclude(claimed_until__in=self.claims).exists():
                rows.release(until)
            rows = rows.filter(claimed_until=until)
        ours = set(rows.values_list("pk", flat=True))
        return [event for event in events if event.id in ours]
