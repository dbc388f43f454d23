"""Publishes committed rows of the outbox, and marks them as published.

No transaction is open during a call to Redis.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import CharField, DateTimeField
from django.db.models.functions import Coalesce, Greatest

from lightbus_django.bus.client import RedisClient
from lightbus_django.bus.confirmations import CONFIRMATIONS_SIZE, MAX_FIELDS, Confirmations
from lightbus_django.bus.errors import is_outage
from lightbus_django.bus.first_publications import record
from lightbus_django.bus.sandbox import keeps_events
from lightbus_django.conf import Settings
from lightbus_django.database.many_values import many
from lightbus_django.database.values_by_key import LIMIT, ValuesByKey
from lightbus_django.events.chunks import chunks
from lightbus_django.events.names import is_name, stream_key
from lightbus_django.events.times import as_stored, is_ahead, stream_time
from lightbus_django.exceptions import BusError, BusFull, BusUnavailable, NodeUnavailable
from lightbus_django.models import OutboxEvent
from lightbus_django.signals import announce, event_published

from .rows import EncodedRow, put_off_row

_PK = OutboxEvent._meta.get_field("id")

GRACE = timedelta(seconds=10)
"""The time that a process has to publish its rows or those it has claimed, before a relay may take them."""

POSTPONEMENT = timedelta(seconds=5)
"""The time after which the relay tries again to publish to a node of a cluster that is down."""

_CALLED_AT = Greatest("created_at", Coalesce("claimed_until", "due_at", output_field=DateTimeField()) - GRACE)
"""About when a row was published whose stream id is not known or not usable: at the beginning of the GRACE period."""

MARK_EVERY = 1000
"""After this many confirmations, the publishing process marks the rows itself, in case no relay is running."""


def publish_and_mark(
    rows: Sequence[EncodedRow], using: str, client: RedisClient, settings: Settings
) -> tuple[int, Sequence[BusUnavailable]]:
    """Publish committed rows in order, and mark them as published.

    Rows that Redis refuses are put off. Rows whose node of a cluster is down or full are due again later.

    Returns how many were published, and an error for each row whose node is down or full.

    Raises:
        BusUnavailable: Redis can't be reached. Rows that were not published are unchanged.
    """
    refused = _record_first_publications(rows, client, settings)
    accepted = [row for row in rows if row.id not in refused]
    events = ((stream_key(row.event_name, settings.stream_use), row.fields) for row in accepted)
    appended = client.append_many(events, can_wait=True) if accepted else []
    by_id = {**refused, **{row.id: result for row, result in zip(accepted, appended, strict=True)}}
    results = [by_id[row.id] for row in rows]
    published = {row.id: result for row, result in zip(rows, results, strict=True) if isinstance(result, str)}
    _announce(rows, results)
    # The first row comes last: a relay claims only that one, and others must leave the rest alone until all are marked.
    for row_ids in chunks(reversed(published), lambda _: 0, count=LIMIT, size=0):
        stream_ids = {row_id: published[row_id] for row_id in row_ids}
        OutboxEvent.objects.using(using).filter(pk__in=many(row_ids, _PK, using)).mark_published(
            Coalesce("published_at", _times(stream_ids, are_ahead=datetime.now(UTC))),
            ValuesByKey(stream_ids, CharField()),
        )
    unreachable = _put_off_refused(rows, results, using, client)
    for row_ids in chunks(unreachable, lambda _: 0, count=LIMIT, size=0):
        those = OutboxEvent.objects.using(using).filter(pk__in=many(row_ids, _PK, using))
        those.postpone(datetime.now(UTC) + POSTPONEMENT)
    return len(published), list(unreachable.values())


def publish_and_confirm(
    rows: Sequence[EncodedRow], using: str, client: RedisClient, settings: Settings
) -> Sequence[BusUnavailable]:
    """Publish committed rows in order, each with a confirmation in Redis. A relay marks the rows in bulk.

    Returns an error for each row that waits for the relay because its node of a cluster is down or full.

    Raises:
        BusError: the relay publishes the rows that were not published, and marks those that could not be marked.
    """
    if not rows:
        return []
    if keeps_events() or any(len(row.fields) > MAX_FIELDS for row in rows):
        return publish_and_mark(rows, using, client, settings)[1]
    results = Confirmations(client, settings.service_name, using).append_confirmed(
        (stream_key(row.event_name, settings.stream_use), row.id, row.fields) for row in rows
    )
    _announce(rows, results)
    unreachable = _put_off_refused(rows, results, using, client)
    if any(isinstance(result, int) and result % MARK_EVERY == 0 for result in results):
        _, errors = mark_confirmed({row.event_name for row in rows}, using, client, settings)
        for error in errors.values():
            raise error
    return list(unreachable.values())


def mark_confirmed(
    event_names: Iterable[str], using: str, client: RedisClient, settings: Settings
) -> tuple[int, dict[str, BusError]]:
    """Mark the rows whose publication is confirmed in the streams of these events.

    Returns how many confirmations there were, and an error for each event whose confirmations can't be read.

    Raises:
        BusUnavailable: rows that are not marked are still confirmed.
    """
    confirmations = Confirmations(client, settings.service_name, using)
    names_of = defaultdict(set)
    for name in filter(is_name, event_names):
        names_of[stream_key(name, settings.stream_use)].add(name)
    count, errors = 0, dict[str, BusError]()
    for stream, names in names_of.items():
        try:
            count += _mark_confirmed_in(stream, confirmations, using)
        except BusError as error:
            if is_outage(error):
                raise
            errors |= dict.fromkeys(names, error)
    return count, errors


def _mark_confirmed_in(stream: str, confirmations: Confirmations, using: str) -> int:
    # A row that already has a time of publication may be about to be published again: the confirmation is an old one.
    events = OutboxEvent.objects.using(using).filter(published_at=None)
    count, there_may_be_more = 0, True
    while there_may_be_more:
        confirmed = confirmations.read(stream)
        for row_ids in chunks(confirmed, lambda _: 0, count=LIMIT, size=0):
            known = {row_id: stream_id for row_id in row_ids if (stream_id := confirmed[row_id])}
            events.filter(pk__in=many(row_ids, _PK, using)).mark_published(
                Coalesce(_times(known), _CALLED_AT), ValuesByKey(known, CharField())
            )
        if confirmed:
            confirmations.remove(stream, confirmed)
        count += len(confirmed)
        there_may_be_more = len(confirmed) >= CONFIRMATIONS_SIZE
    return count


def _times(stream_ids: Mapping[UUID, str], *, are_ahead: datetime | None = None) -> ValuesByKey:
    """Return when rows were published, which is the time in the stream id.

    Args:
        are_ahead: the time of rows whose stream id is ahead of the clock; None for an unknown time.
    """
    now = datetime.now(UTC)
    times = {
        row_id: are_ahead if is_ahead(stream_id, now) else stream_time(stream_id)
        for row_id, stream_id in stream_ids.items()
    }
    return ValuesByKey({row_id: as_stored(time) for row_id, time in times.items() if time}, DateTimeField())


def _record_first_publications(
    rows: Sequence[EncodedRow], client: RedisClient, settings: Settings
) -> dict[UUID, BusError]:
    """Tell listeners when events that are published again were first published; return the errors by row."""
    again: defaultdict[str, dict[UUID, datetime]] = defaultdict(dict)
    for row in rows:
        if row.published_at is not None:
            again[stream_key(row.event_name, settings.stream_use)][row.id] = row.published_at
    errors = record(client, again, keep=settings.inbox_retention) if again else {}
    return {row_id: error for stream, error in errors.items() for row_id in again[stream]}


def _announce(rows: Sequence[EncodedRow], results: Sequence[object]) -> None:
    """Send the signals of rows that are published."""
    if not event_published.receivers:
        return
    for row, result in zip(rows, results, strict=True):
        if not isinstance(result, BusError):
            arguments = {"event_name": row.event_name, "event_id": str(row.id)}
            announce(event_published, OutboxEvent, **arguments, is_repeated=row.published_at is not None)


def _put_off_refused(
    rows: Sequence[EncodedRow], results: Sequence[object], using: str, client: RedisClient
) -> dict[UUID, BusUnavailable]:
    """Put off rows that Redis refuses; return those whose node of a cluster is down or full, with the errors."""
    unreachable: dict[UUID, BusUnavailable] = {}
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, NodeUnavailable) or (isinstance(result, BusFull) and client.is_of_cluster):
            unreachable[row.id] = result
        elif isinstance(result, BusUnavailable):
            raise result
        elif isinstance(result, BusError):
            put_off_row(row.id, row.event_name, result, using)
    return unreachable
