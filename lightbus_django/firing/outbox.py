"""Writes events to the outbox in the caller's transaction."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.db import connections, transaction
from django.utils import timezone

from lightbus_django.conf import get_settings
from lightbus_django.database.bulk_insert import insert
from lightbus_django.database.text import storable
from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import encode, encode_payload
from lightbus_django.events.message import EventMessage
from lightbus_django.events.times import as_stored, uuid_time
from lightbus_django.exceptions import InvalidEventName
from lightbus_django.models import OutboxEvent

from .after_commit import TransactionEvents
from .rows import EncodedRow

INSERT_SIZE = 1000
"""The maximum number of rows in one INSERT."""

INSERT_BYTES = 1024 * 1024
"""The maximum size of the payloads in one INSERT, unless a single event is larger."""

_COLUMNS = ("id", "event_name", "version", "payload", "created_at", "due_at", "error")

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_encode_payload = msgspec.json.Encoder().encode


def write_to_outbox(messages: Sequence[EventMessage], using: str) -> None:
    """Write events in the current transaction of `using`, and publish them after its commit.

    Without a transaction, they are published at once. In a transaction that is managed by hand, with
    `set_autocommit(False)` and without `atomic()`, Django accepts no commit hooks: a relay publishes them.

    Raises:
        InvalidEventName, InvalidPayload: no row was written, and the transaction can continue.
    """
    max_size = get_settings().max_payload_size
    for message in messages:
        if storable(message.name, OutboxEvent._meta.get_field("event_name"), using) != message.name:
            raise InvalidEventName(
                f"{message.name!r} can't be stored in the database {using!r}: its character set lacks some characters"
            )
    payloads = [encode_payload(message.payload, max_size) for message in messages]
    connection: Any = connections[using]
    accepts_hooks = connection.in_atomic_block or connection.get_autocommit()
    # Several statements need a transaction; a single statement is one.
    atomic = transaction.atomic(using, savepoint=False) if accepts_hooks and len(messages) > 1 else nullcontext()
    with atomic, transaction.mark_for_rollback_on_error(using):
        events = TransactionEvents.of(connection) if accepts_hooks else None
        due_at = events.due_at if events else timezone.now()
        rows = (_row(*event, connection, due_at) for event in zip(messages, payloads, strict=True))
        for chunk in chunks(rows, lambda row: len(row[3]), count=INSERT_SIZE, size=INSERT_BYTES):
            insert(OutboxEvent, using, _COLUMNS, chunk)
        if events:
            events.add(_encoded(*event) for event in zip(messages, payloads, strict=True))


def _row(message: EventMessage, payload: Mapping[str, bytes], connection: Any, due_at: datetime) -> tuple[Any, ...]:
    text = _as_ascii(_encode_payload({key: msgspec.Raw(value) for key, value in payload.items()}).decode())
    row_id = UUID(message.id)
    # `created_at` is the time in the id, because the time of publication is computed from both.
    times = map(connection.ops.adapt_datetimefield_value, (as_stored(uuid_time(row_id)), due_at))
    stored_id = row_id if connection.features.has_native_uuid_field else row_id.hex
    return (stored_id, message.name, message.version, text, *times, "")


def _encoded(message: EventMessage, payload: Mapping[str, bytes]) -> EncodedRow:
    size = sum(map(len, payload.values()))
    return EncodedRow(UUID(message.id), message.name, size, encode(message, payload))


def _as_ascii(text: str) -> str:
    """Return JSON that every database can store, whatever its character set."""
    return text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
