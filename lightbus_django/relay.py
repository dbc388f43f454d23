"""The relay: publishing rows of the outbox that were left behind, or that are to be published again."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.db import transaction
from django.db.models import F, Func, IntegerField
from django.utils import timezone

from .conf import Settings
from .dispatch import GRACE, Staged, publish, put_off, settle
from .exceptions import InvalidEventName
from .messages import EventMessage, Fields, encode, split_name
from .models import OutboxEvent, OutboxEventQuerySet
from .transport import Transport

RELAY_SIZE = 1000
"""How many rows are published at a time."""

RELAY_BYTES = 16 * 1024 * 1024
"""How many bytes of payload are published at a time, unless one row alone has more."""

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def relay(using: str, now: datetime, transport: Transport, settings: Settings) -> int:
    """Publish what is due at `now` and was left behind, up to RELAY_SIZE rows; return how many rows were due.

    What is noted as published is marked before, so that it is not published again.

    Raises:
        BusUnavailable: the rows are due again after GRACE.
        BusError: some notes can't be read, and nothing is left that is due.
    """
    outbox = OutboxEvent.objects.using(using)
    due = outbox.filter(due_at__lte=now)
    rows = _look(due) if due.exists() else []
    waiting = {name for _, name in rows} | _latest_waiting(outbox)
    problems = settle(waiting, using, transport, settings)
    if rows:
        claimed, count = _claim(outbox, rows[0][0], rows[-1][0], now)
        publish(_read(claimed), claimed, transport, settings)
        if count:
            return count
    for problem in problems:
        raise problem
    return 0


def republish(rows: OutboxEventQuerySet, transport: Transport, settings: Settings) -> Iterator[int]:
    """Publish again, under their ids, rows that were published; yield how many, some at a time.

    Raises:
        BusUnavailable: the rest was not published.
    """
    last = None
    while chunk := _look(rows.filter(pk__gt=last) if last else rows):
        last = chunk[-1][0]
        rows_of_chunk = rows.filter(pk__range=(chunk[0][0], last))
        yield publish(_read(rows_of_chunk), rows_of_chunk, transport, settings)


class _Bytes(Func):
    """The size of a text, which a database knows without reading it. SQLite has but the characters."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="LENGTH", **context)

    as_oracle = as_sqlite


def _look(rows: OutboxEventQuerySet) -> list[tuple[UUID, str]]:
    """Return key and event name of the first rows: up to RELAY_SIZE, and RELAY_BYTES if there are several."""
    found: list[tuple[UUID, str]] = []
    left = RELAY_BYTES
    for key, name, size in rows.order_by("pk").values_list("pk", "event_name", _Bytes("payload"))[:RELAY_SIZE]:
        left -= size
        if found and left < 0:
            break
        found.append((key, name))
    return found


def _latest_waiting(outbox: OutboxEventQuerySet) -> set[str]:
    return set(outbox.exclude(due_at=None).order_by("-due_at").values_list("event_name", flat=True)[:RELAY_SIZE])


def _claim(outbox: OutboxEventQuerySet, first: UUID, last: UUID, now: datetime) -> tuple[OutboxEventQuerySet, int]:
    """Take due rows away from other relays for the time of GRACE; return them, and how many they are.

    None while another relay is at older ones: what one transaction fired stays in order.
    """
    until = now + GRACE
    if _another_relays(outbox, now, until):
        return outbox.none(), 0
    rows = outbox.filter(pk__range=(first, last))
    due = rows.filter(due_at__lte=now)
    oldest = due.order_by("pk").values_list("pk", flat=True).first()
    if oldest is None:
        return outbox.none(), 0
    with transaction.atomic(using=outbox.db):
        # Relays wait for one another at one row: to wait with some rows locked is a deadlock with who marks them.
        if not due.filter(pk=oldest).update(due_at=until):
            return outbox.none(), 0
        if _another_relays(outbox, now, until):
            transaction.set_rollback(True, using=outbox.db)
            return outbox.none(), 0
        count = 1 + due.update(due_at=until)
    return rows.filter(due_at=until), count


def _another_relays(outbox: OutboxEventQuerySet, now: datetime, until: datetime) -> bool:
    """Whether there is a claim that is not settled yet, other than the one up to `until`."""
    claimed = outbox.filter(due_at__gt=now, due_at__lte=timezone.now() + GRACE, error="").exclude(due_at=until)
    return claimed.filter(due_at__gt=F("created_at") + GRACE).exists()


def _read(rows: OutboxEventQuerySet) -> list[Staged]:
    """Return the events that rows hold, in order; one that can't be read is put off."""
    events = []
    columns = "pk", "event_name", "published_at", "version", "payload"
    for key, name, published_at, version, payload in rows.order_by("pk").values_list(*columns):
        try:
            events.append(Staged(key, name, _fields(key, name, version, payload), published_at))
        except (InvalidEventName, msgspec.MsgspecError, ValueError) as error:
            put_off(rows.db, key, name, error)
    return events


def _fields(key: UUID, name: str, version: int, payload: str) -> Fields:
    api_name, event_name = split_name(name)
    message = EventMessage(id=str(key), api_name=api_name, event_name=event_name, version=version, payload={})
    return encode(message, {field: bytes(value) for field, value in _decode_payload(payload).items()})
