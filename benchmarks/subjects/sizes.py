"""Bytes that an event takes in each store, with a payload of so many bytes of JSON."""

from collections.abc import Iterator
from secrets import token_urlsafe
from typing import Any

from django.db import connection, transaction

from lightbus_django import fire_many, on_commit_many
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from .events import EVENT, STREAM, connect
from .ours import consumer, housekeeping, relay_all

BATCHES = 10
"""The tables are vacuumed after each, as autovacuum does, so that rows take the place of earlier versions of others."""

FAILED = 200

Sample = dict[str, float]


def stream(events: int, *, payload: int) -> Sample:
    """Redis: the entries of a stream."""
    for batch in _batches(events, payload):
        fire_many(batch)
    return {"events": events, "bytes": connect().memory_usage(STREAM, samples=0) / events}


def outbox(events: int, *, payload: int) -> Sample:
    """PostgreSQL: rows of the outbox and their indexes, once they are marked; Redis: confirmations until then."""
    keeper, confirmations, client = housekeeping(), 0.0, connect()
    for batch in _batches(events, payload):
        with transaction.atomic():
            on_commit_many(batch)
        keys = [key for key in client.scan_iter() if b":published:" in key]
        waiting = max((client.scard(key) for key in keys if client.type(key) == b"set"), default=0)
        if waiting:
            confirmations = sum(client.memory_usage(key, samples=0) for key in keys) / waiting
        relay_all(keeper)
        keeper.relay()
        _vacuum(OutboxEvent)
    return {"events": events, "confirmation": confirmations, "bytes": _size(OutboxEvent)}


def inbox(events: int) -> Sample:
    """PostgreSQL: idempotency keys and their indexes."""
    member = consumer(lambda event, **payload: None)
    member.step(block=0)
    for batch in _batches(events, 100):
        fire_many(batch)
        while member.step(block=0):
            pass
        _vacuum(ProcessedEvent)
    member.stop()
    return {"events": events, "bytes": _size(ProcessedEvent)}


def failed(events: int, *, payload: int) -> Sample:
    """PostgreSQL: failed events, with their content, traceback and indexes."""

    def fail(event: object, **payload: Any) -> None:
        raise ValueError("the payload is of no use")

    member = consumer(fail)
    member.step(block=0)
    fire_many(next(_batches(FAILED * BATCHES, payload)))
    while member.step(block=0):
        pass
    member.stop()
    return {"events": events, "bytes": _size(FailedEvent)}


def _batches(events: int, payload: int) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    text = token_urlsafe(payload)[: payload - len('{"text": ""}')]  # which no database can compress much
    for _ in range(BATCHES):
        yield [(EVENT, {"text": text})] * max(1, events // BATCHES)


def _vacuum(model: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"VACUUM {model._meta.db_table}")


def _size(model: Any) -> float:
    """Return the bytes of a row with its part of the indexes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_total_relation_size(%s)", [model._meta.db_table])
        (size,) = cursor.fetchone()
    return float(size) / model.objects.count()
