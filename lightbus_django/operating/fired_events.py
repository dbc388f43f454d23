"""What was fired in a span of time: the rows of the outboxes, and events in streams that no outbox has."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from lightbus_django.bus import entries
from lightbus_django.bus.client import RedisClient
from lightbus_django.database.errors import transient_errors
from lightbus_django.database.many_values import many
from lightbus_django.events.times import as_aware, fired_at, first_uuid, is_ahead, stream_time
from lightbus_django.models import OutboxEvent

CHUNK = 2000
"""Number of rows that are read at a time."""


class Fired(NamedTuple):
    """An event that listeners should get."""

    id: str
    name: str
    stream_id: str
    """Empty if it is not known."""
    published_at: datetime | None
    """When it was published first, as far as known; None if it is not published yet. Aware."""


class FiredEvents:
    """The events that were fired in a span of time, in lists of limited length."""

    def __init__(self, client: RedisClient, aliases: Sequence[str], since: datetime, until: datetime) -> None:
        """Prepare the look-up.

        Args:
            aliases: the databases that have an outbox.
            since: events fired at this time or later; aware.
            until: events fired before this time; aware.
        """
        self._client = client
        self._aliases = aliases
        self._since = since
        self._until = until

    def of_outbox(self, alias: str, event_names: Iterable[str]) -> Iterator[list[Fired]]:
        """Yield the events of the outbox of a database, without those that one before it has, as a replica does."""
        earlier = self._aliases[: self._aliases.index(alias)]
        rows = OutboxEvent.objects.using(alias).filter(event_name__in=set(event_names), pk__lt=first_uuid(self._until))
        columns = rows.order_by("pk").values_list("pk", "event_name", "stream_id", "published_at", "due_at")
        found = columns.filter(pk__gte=first_uuid(self._since))
        while True:
            with transient_errors(alias):
                chunk = list(found[:CHUNK])
            if not chunk:
                return
            known = self._find_rows(earlier, [pk for pk, *_ in chunk])
            yield [
                Fired(str(pk), name, stream_id, None if at is None or due is not None else as_aware(at))
                for pk, name, stream_id, at, due in chunk
                if pk not in known
            ]
            found = columns.filter(pk__gt=chunk[-1][0])

    def of_stream(self, stream: str, event_names: Iterable[str]) -> Iterator[list[Fired]]:
        """Yield the events of a stream that no outbox has, such as those of `fire` and of other services."""
        names = set(event_names)
        for scanned in entries.scan(self._client, stream, self._since):
            new = {event.event_id: event for event in scanned if event.name in names and self._is_in_time(event)}
            for row_id in self._find_rows(self._aliases, [UUID(each) for each in new if fired_at(each) is not None]):
                new.pop(str(row_id), None)
            yield [
                Fired(event.event_id, event.name, event.stream_id, stream_time(event.stream_id))
                for event in new.values()
            ]

    def _find_rows(self, aliases: Iterable[str], ids: Sequence[UUID]) -> set[UUID]:
        """Return those of some events that are in the outbox of one of these databases."""
        found: set[UUID] = set()
        for alias in aliases:
            with transient_errors(alias):
                rows = OutboxEvent.objects.using(alias).filter(pk__in=many(ids, OutboxEvent._meta.pk, alias))
                found.update(rows.values_list("pk", flat=True))
        return found

    def _is_in_time(self, event: entries.ScannedEvent) -> bool:
        time = fired_at(event.event_id) or stream_time(event.stream_id)
        return self._since <= time < self._until or is_ahead(event.stream_id, datetime.now(UTC))
