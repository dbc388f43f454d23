"""Finds events by the beginning of their ids."""

from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from django.db import Error as DatabaseError

from lightbus_django.bus import entries
from lightbus_django.bus.client import get_client
from lightbus_django.conf import get_settings
from lightbus_django.database.errors import describe, one_line, transient_errors
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import uuid_time
from lightbus_django.exceptions import BusError, LightbusError
from lightbus_django.firing.databases import distinct_databases, has_outbox
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

FOUND = 50
"""Maximum number of ids that a search returns."""


class FoundIds(NamedTuple):
    """Ids of events that begin with a text."""

    ids: list[str]
    """The latest first; at most FOUND."""
    gaps: list[str]
    """What could not be searched, or not to its end, as sentences."""


def find_ids(text: str) -> FoundIds:
    """Return the ids of events that begin with a text, from the tables and the streams of this service.

    The first characters of an id are its time, so they stand for a span of time, in which the streams are searched.
    """
    prefix = text.strip()
    span = uuid_span(prefix)
    if span is not None:
        prefix = prefix.lower()
    found: set[str] = set()
    names = {event for listener in registry for event in listener.events}
    gaps = []
    for alias in distinct_databases():
        try:
            with transient_errors(alias):
                if has_outbox(alias):
                    found.update(_in_tables(alias, prefix, span))
                    names |= OutboxEvent.objects.using(alias).latest_names()
        except (LightbusError, DatabaseError) as error:
            gaps.append(f"Not searched: {describe(error, alias)}")
    if prefix and span is not None:
        settings = get_settings()
        client = get_client(settings.url, settings.redis_timeout)
        since, until = map(uuid_time, span)
        try:
            for stream in sorted({stream_key(name, settings.stream_use) for name in names}):
                ids, is_complete = entries.find_ids(client, stream, prefix, since, until)
                found.update(ids)
                if not is_complete:
                    gaps.append(f"{stream} was not searched to the end, because it has too many entries of that time.")
        except BusError as error:
            gaps.append(f"The streams were not searched: {one_line(error)}")
    return FoundIds(sorted(found, reverse=True)[:FOUND], gaps)


def _in_tables(alias: str, prefix: str, span: tuple[UUID, UUID] | None) -> Iterator[str]:
    for model in (ProcessedEvent, FailedEvent):
        rows = model._default_manager.using(alias).filter(
            event_id__gte=prefix, event_id__lte=f"{prefix}zzzzzzzz", event_id__startswith=prefix
        )
        yield from rows.order_by("-event_id").values_list("event_id", flat=True)[:FOUND]
    if span is not None:
        outbox = OutboxEvent.objects.using(alias).filter(pk__range=span).order_by("-pk")
        yield from map(str, outbox.values_list("pk", flat=True)[:FOUND])


def uuid_span(prefix: str) -> tuple[UUID, UUID] | None:
    """Return the smallest and the greatest UUID with these first digits; None if they are not digits of one."""
    digits = prefix.replace("-", "").lower()
    try:
        return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    except ValueError:
        return None
