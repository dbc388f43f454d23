"""Finds events by the beginning of their ids."""

from uuid import UUID

from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

FOUND = 50
"""Maximum number of ids that a search returns."""


def find_ids(text: str) -> list[str]:
    """Return the ids of events that begin with a text, the latest first, from all records of this service.

    At most FOUND. The first characters of an id are its time, so they stand for a span of time.
    """
    prefix = text.strip()
    found: set[str] = set()
    for alias in databases_with_tables():
        for model in (ProcessedEvent, FailedEvent):
            rows = model._default_manager.using(alias).filter(
                event_id__gte=prefix, event_id__lte=f"{prefix}zzzzzzzz", event_id__startswith=prefix
            )
            found.update(rows.order_by("-event_id").values_list("event_id", flat=True)[:FOUND])
        if (span := uuid_span(prefix)) is not None:
            outbox = OutboxEvent.objects.using(alias).filter(pk__range=span).order_by("-pk")
            found.update(map(str, outbox.values_list("pk", flat=True)[:FOUND]))
    return sorted(found, reverse=True)[:FOUND]


def uuid_span(prefix: str) -> tuple[UUID, UUID] | None:
    """Return the smallest and the greatest UUID with these first digits; None if they are not digits of one."""
    digits = prefix.replace("-", "").lower()
    try:
        return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    except ValueError:
        return None
