"""Events of committed rows, published; and their rows, marked or put off.

No transaction is open while Redis is waited for.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from django.db.models import DateTimeField
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from .conf import Settings
from .exceptions import BusError, BusUnavailable
from .messages import Fields, is_name, stream_key
from .models import OutboxEvent
from .notes import MAX_FIELDS, NOTES_SIZE, Notes
from .transport import Transport

logger = logging.getLogger("lightbus_django")

GRACE = timedelta(seconds=10)
"""How long somebody has for publishing the rows that are theirs, before a relay takes them."""

SETTLE_EVERY = 1000
"""After so many notes the one who made the last settles them, lest they pile up where no relay runs."""


class Staged(NamedTuple):
    """A row of the outbox, the size of its payload in bytes or less, and the fields to publish."""

    id: UUID
    event_name: str
    size: int
    fields: Fields = {}


def publish(events: Sequence[Staged], using: str, transport: Transport, settings: Settings) -> int:
    """Publish events of committed rows in order, and mark the rows; return how many were published.

    Raises:
        BusUnavailable: the rows of what was not published are as they were.
    """
    if not events:
        return 0
    results = transport.publish_many(
        (stream_key(event.event_name, settings.stream_use), event.fields) for event in events
    )
    published = [event.id for event, result in zip(events, results, strict=True) if isinstance(result, str)]
    first = Coalesce("published_at", timezone.now(), output_field=DateTimeField())
    rows = OutboxEvent.objects.using(using).filter(pk__in=published)
    rows.update(due_at=None, claimed_until=None, published_at=first, error="")
    _put_off_refused(events, results, using)
    return len(published)


def publish_with_notes(events: Sequence[Staged], using: str, transport: Transport, settings: Settings) -> None:
    """Publish events of committed rows in order, and note it in Redis: a relay marks the rows, many at a time.

    Raises:
        BusError: rows of what was not published, or can't be settled, wait for a relay.
    """
    if not events:
        return
    if any(len(event.fields) > MAX_FIELDS for event in events):
        publish(events, using, transport, settings)
        return
    results = Notes(transport, settings.service_name, using).publish(
        (stream_key(event.event_name, settings.stream_use), event.id, event.fields) for event in events
    )
    _put_off_refused(events, results, using)
    if any(isinstance(result, int) and result % SETTLE_EVERY == 0 for result in results):
        _, problems = settle({event.event_name for event in events}, using, transport, settings)
        for problem in problems:
            raise problem


def settle(
    event_names: Iterable[str], using: str, transport: Transport, settings: Settings
) -> tuple[int, list[BusError]]:
    """Mark the rows that Redis has a note of, in the streams of these events.

    Returns how many notes there were, and the errors of those that can't be read.

    Raises:
        BusUnavailable: what is not settled is noted still.
    """
    notes = Notes(transport, settings.service_name, using)
    count, problems = 0, []
    for stream in {stream_key(name, settings.stream_use) for name in event_names if is_name(name)}:
        try:
            count += _settle(stream, notes, using)
        except BusUnavailable:
            raise
        except BusError as error:
            problems.append(error)
    return count, problems


def _settle(stream: str, notes: Notes, using: str) -> int:
    # A row that has its time by now may be about to be published again; its note is old.
    outbox = OutboxEvent.objects.using(using).filter(published_at=None)
    count, there_may_be_more = 0, True
    while there_may_be_more:
        keys = notes.read(stream)
        if keys:
            # They were published when GRACE began, whenever they are marked. MySQL takes columns as they are by then.
            began = Coalesce("claimed_until", "due_at", output_field=DateTimeField()) - GRACE
            outbox.filter(pk__in=keys).update(
                published_at=Greatest("created_at", began), due_at=None, claimed_until=None, error=""
            )
            notes.remove(stream, keys)
        count += len(keys)
        there_may_be_more = len(keys) >= NOTES_SIZE
    return count


def _put_off_refused(events: Sequence[Staged], results: Sequence[object], using: str) -> None:
    for event, result in zip(events, results, strict=True):
        if isinstance(result, BusUnavailable):
            raise result
        if isinstance(result, BusError):
            put_off(using, event.id, event.event_name, result)


def put_off(using: str, key: UUID, event_name: str, error: Exception) -> None:
    """Let a row that can't be published wait, lest it holds up those behind it."""
    logger.error("outbox: %s %s can't be published yet: %s", event_name, key, error)
    later = timezone.now() + 6 * GRACE
    OutboxEvent.objects.using(using).filter(pk=key).update(due_at=later, claimed_until=None, error=str(error))
