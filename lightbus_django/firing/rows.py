"""Rows of the outbox, encoded for their streams, and how many are sent to Redis at a time."""

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from django.db.models import Func, IntegerField
from django.utils import timezone

from lightbus_django.events.chunks import chunks
from lightbus_django.events.codec import Fields, encode
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import split_name
from lightbus_django.exceptions import InvalidEventName
from lightbus_django.models import OutboxEvent, OutboxEventQuerySet

Item = TypeVar("Item")

logger = logging.getLogger("lightbus_django")

PIPELINE_SIZE = 1000
"""The maximum number of events in one pipeline."""

PIPELINE_BYTES = 16 * 1024 * 1024
"""The maximum size of the payloads in one pipeline, unless a single event is larger."""

PUT_OFF = timedelta(minutes=1)
"""The time after which a refused row is due again."""

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class EncodedRow(NamedTuple):
    """A row of the outbox, with its event encoded for the stream."""

    id: UUID
    event_name: str
    size: int
    """The size of the payload in bytes, or less."""
    fields: Fields = {}
    """The fields of the stream entry; empty if they are not kept in memory."""
    published_at: datetime | None = None
    """The time of the first publication, if the event is published again."""


def in_pipelines(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield lists of items, in order, each list small enough for one pipeline; `size` returns an item's bytes."""
    return chunks(items, size, count=PIPELINE_SIZE, size=PIPELINE_BYTES)


class PayloadSize(Func):
    """The size of a text column, which a database knows without reading the text. SQLite counts characters."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="LENGTH", **context)

    as_oracle = as_sqlite


def first_pipeline(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the rows that fit into one pipeline, without their last column, which is the payload's size."""
    return [row[:-1] for row in next(in_pipelines(rows, itemgetter(-1)), [])]


def read_rows(events: OutboxEventQuerySet) -> list[EncodedRow]:
    """Read rows and encode their events. A row that can't be read is put off."""
    rows = []
    columns = "pk", "event_name", "published_at", "version", "payload"
    for key, name, published_at, version, payload in events.values_list(*columns):
        try:
            fields = _fields(key, name, version, payload)
        except (InvalidEventName, msgspec.MsgspecError, ValueError) as error:
            put_off_row(key, name, error, events.db)
        else:
            rows.append(EncodedRow(key, name, len(payload), fields, published_at))
    return rows


def _fields(key: UUID, name: str, version: int, payload: str) -> Fields:
    api_name, event_name = split_name(name)
    message = EventMessage(id=str(key), api_name=api_name, event_name=event_name, version=version, payload={})
    return encode(message, {field: bytes(value) for field, value in _decode_payload(payload).items()})


def put_off_row(key: UUID, event_name: str, error: Exception, using: str) -> None:
    """Log why a row can't be published, and put it off, so that it doesn't hold up the rows after it."""
    logger.error("outbox: %s %s can't be published yet: %s", event_name, key, error)
    OutboxEvent.objects.using(using).filter(pk=key).put_off(timezone.now() + PUT_OFF, str(error))
