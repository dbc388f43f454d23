"""Events of committed rows, published; and their rows, marked or put off.

No transaction is open while Redis is waited for.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.db.models import Case, DateTimeField, F, Value, When
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.confirmations import CONFIRMATIONS_SIZE, MAX_FIELDS, Confirmations
from lightbus_django.bus.first_publications import record
from lightbus_django.bus.sandbox import keeps_events
from lightbus_django.conf import Settings
from lightbus_django.database.text import storable
from lightbus_django.events.codec import Fields
from lightbus_django.events.names import is_name, stream_key
from lightbus_django.events.times import as_stored, fired_at, is_ahead, stream_time
from lightbus_django.exceptions import BusError, BusUnavailable
from lightbus_django.models import OutboxEvent

logger = logging.getLogger("lightbus_django")

GRACE = timedelta(seconds=10)
"""How long somebody has for publishing the rows that are theirs, before a relay takes them."""

SETTLE_EVERY = 1000
"""Every so many notes, the publishing process marks the rows itself; notes don't pile up where no relay runs."""


class Staged(NamedTuple):
    """A row of the outbox, the size of its payload in bytes or less, and the fields to publish."""

    id: UUID
    event_name: str
    size: int
    fields: Fields = {}
    published_at: datetime | None = None
    """When it was published first, if that was before."""


def publish(events: Sequence[Staged], using: str, client: RedisClient, settings: Settings) -> int:
    """Publish events of committed rows in order, and mark the rows; return how many were published.

    Raises:
        BusUnavailable: the rows of what was not published are as they were.
    """
    refused = _record_first(events, client, settings)
    for event in events:
        if event.id in refused:
            put_off(using, event.id, event.event_name, refused[event.id])
    events = [event for event in events if event.id not in refused]
    if not events:
        return 0
    results = client.append_many((stream_key(event.event_name, settings.stream_use), event.fields) for event in events)
    published: defaultdict[datetime, list[UUID]] = defaultdict(list)
    now = datetime.now(UTC)
    for event, result in zip(events, results, strict=True):
        if isinstance(result, str):
            time = now if is_ahead(result, now) else stream_time(result)
            published[as_stored(time)].append(event.id)
    count = sum(map(len, published.values()))
    rows = OutboxEvent.objects.using(using).filter(pk__in=[key for keys in published.values() for key in keys])
    times = Case(
        *(When(pk__in=keys, then=Value(time)) for time, keys in published.items()), output_field=DateTimeField()
    )
    rows.update(due_at=None, claimed_until=None, published_at=Coalesce("published_at", times), error="")
    _put_off_refused(events, results, using)
    return count


def publish_confirmed(events: Sequence[Staged], using: str, client: RedisClient, settings: Settings) -> None:
    """Publish events of committed rows in order, and note it in Redis: a relay marks the rows, many at a time.

    Raises:
        BusError: rows of what was not published, or can't be settled, wait for a relay.
    """
    if not events:
        return
    if keeps_events() or any(len(event.fields) > MAX_FIELDS for event in events):
        publish(events, using, client, settings)
        return
    results = Confirmations(client, settings.service_name, using).append_confirmed(
        (stream_key(event.event_name, settings.stream_use), event.id, event.fields) for event in events
    )
    _put_off_refused(events, results, using)
    if any(isinstance(result, int) and result % SETTLE_EVERY == 0 for result in results):
        _, problems = settle({event.event_name for event in events}, using, client, settings)
        for problem in problems:
            raise problem


def settle(
    event_names: Iterable[str], using: str, client: RedisClient, settings: Settings
) -> tuple[int, list[BusError]]:
    """Mark the rows that Redis has a note of, in the streams of these events.

    Returns how many notes there were, and the errors of those that can't be read.

    Raises:
        BusUnavailable: what is not settled is noted still.
    """
    notes = Confirmations(client, settings.service_name, using)
    count, problems = 0, []
    for stream in {stream_key(name, settings.stream_use) for name in event_names if is_name(name)}:
        try:
            count += _settle(stream, notes, using)
        except BusUnavailable:
            raise
        except BusError as error:
            problems.append(error)
    return count, problems


def _settle(stream: str, notes: Confirmations, using: str) -> int:
    # A row that has its time by now may be about to be published again; its note is old.
    outbox = OutboxEvent.objects.using(using).filter(published_at=None)
    count, there_may_be_more = 0, True
    while there_may_be_more:
        stream_ids = notes.read(stream)
        if stream_ids:
            times = _published_at(stream_ids)  # first, for MySQL takes columns as they are by then
            outbox.filter(pk__in=stream_ids).update(published_at=times, due_at=None, claimed_until=None, error="")
            notes.remove(stream, stream_ids)
        count += len(stream_ids)
        there_may_be_more = len(stream_ids) >= CONFIRMATIONS_SIZE
    return count


def _published_at(stream_ids: Mapping[UUID, str | None]) -> Case:
    """Return when events were published, by their stream ids, as soon after their call as these say.

    Where nobody knows, they were published when GRACE began.
    """
    delays: defaultdict[timedelta, list[UUID]] = defaultdict(list)
    now = datetime.now(UTC)
    for key, stream_id in stream_ids.items():
        called_at = fired_at(str(key))
        if stream_id and called_at is not None and not is_ahead(stream_id, now):
            delays[stream_time(stream_id) - called_at].append(key)
    return Case(
        *(When(pk__in=keys, then=F("created_at") + delay) for delay, keys in delays.items()),
        default=Greatest("created_at", Coalesce("claimed_until", "due_at", output_field=DateTimeField()) - GRACE),
        output_field=DateTimeField(),
    )


def _record_first(events: Sequence[Staged], client: RedisClient, settings: Settings) -> dict[UUID, BusError]:
    """Let listeners know when events that are published again were published first; return where that can't be done."""
    again: defaultdict[str, dict[UUID, datetime]] = defaultdict(dict)
    for event in events:
        if event.published_at is not None:
            again[stream_key(event.event_name, settings.stream_use)][event.id] = event.published_at
    problems = record(client, again, keep=settings.inbox_retention) if again else {}
    return {event_id: problem for stream, problem in problems.items() for event_id in again[stream]}


def _put_off_refused(events: Sequence[Staged], results: Sequence[object], using: str) -> None:
    for event, result in zip(events, results, strict=True):
        if isinstance(result, BusUnavailable):
            raise result
        if isinstance(result, BusError):
            put_off(using, event.id, event.event_name, result)


def put_off(using: str, key: UUID, event_name: str, error: Exception) -> None:
    """Let a row that can't be published wait, so that it doesn't hold up those behind it."""
    logger.error("outbox: %s %s can't be published yet: %s", event_name, key, error)
    later = timezone.now() + 6 * GRACE
    text = storable(str(error), OutboxEvent._meta.get_field("error"), using)
    OutboxEvent.objects.using(using).filter(pk=key).update(due_at=later, claimed_until=None, error=text)
