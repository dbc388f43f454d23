"""Proof of delivery: joins outbox, streams, inbox and failures, and finds events that a listener never handled.

An event that is on its way is not missing: the position of a group is read after the keys, and the keys of what the
group has acknowledged are read once more.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connections, router, transaction
from django.utils import timezone

from lightbus_django.bus import entries
from lightbus_django.bus.client import get_client
from lightbus_django.bus.consumer_group import id_key
from lightbus_django.bus.streams import groups
from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.events.codec import Fields, dump_fields
from lightbus_django.events.ids import event_key
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import as_aware, as_stored, fired_at, first_uuid, is_ahead, stream_time
from lightbus_django.firing.databases import has_outbox
from lightbus_django.firing.rows import read_rows
from lightbus_django.listening.listener import Listener
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent, stored_group

CHUNK = 2000
"""Number of events that are looked up at a time."""

KEPT = 1000
"""Maximum number of ids of missing events that are kept for each listener; all are counted."""


class Fired(NamedTuple):
    """An event that listeners should get."""

    id: str
    name: str
    stream_id: str
    """Empty if it is not known."""
    published_at: datetime | None
    """None if it is not published yet; aware."""


class Verified(msgspec.Struct, kw_only=True):
    """What became of the events for one listener."""

    listener: str
    group: str
    fired: int = 0
    published: int = 0
    handled: int = 0
    waiting: int = 0
    failed: int = 0
    discarded: int = 0
    before_start: int = 0
    """Published before the listener's start, so they are not for it."""
    unproven: int = 0
    """Acknowledged without a record, as with `idempotent=False` or after INBOX_RETENTION."""
    missing: int = 0
    missing_ids: list[str] = []
    """At most KEPT."""
    replayed: int = 0


class Verification:
    """One comparison of what was fired with what was handled."""

    def __init__(
        self, listeners: Collection[Listener], *, since: datetime, until: datetime, replay: bool = False
    ) -> None:
        """Prepare the comparison.

        Args:
            listeners: the listeners of this service to look at.
            since: events fired at this time or later; aware.
            until: events fired before this time; aware.
            replay: hand what is missing to its listener alone.
        """
        self.settings = get_settings()
        self.service_name = format_name(self.settings.service_name)
        self.client = get_client(self.settings.url, self.settings.redis_timeout)
        self.since = since
        self.until = until
        self.replay = replay
        self.results = {
            listener: Verified(listener=listener.listener_name, group=listener.group(self.service_name))
            for listener in listeners
        }
        self.aliases = [alias for alias in connections if self._has_outbox(alias)]
        self._starts = self._read_starts()

    def run(self, advance: Callable[[int], None] = lambda count: None) -> list[Verified]:
        """Compare; return the result for each listener.

        Args:
            advance: called with the numbers of events that have been looked at.

        Raises:
            BusError, DatabaseUnavailable: it is incomplete; run it again.
        """
        for alias in self.aliases:
            for chunk in self._from_outbox(alias):
                self._compare(chunk)
                advance(len(chunk))
        streams = {
            stream_key(event, self.settings.stream_use) for listener in self.results for event in listener.events
        }
        for stream in sorted(streams):
            for chunk in self._from_stream(stream):
                self._compare(chunk)
                advance(len(chunk))
        return list(self.results.values())

    # --- What was fired -----------------------------------------------------------------------

    def _from_outbox(self, alias: str) -> Iterator[list[Fired]]:
        names = {event for listener in self.results for event in listener.events}
        rows = OutboxEvent.objects.using(alias).filter(event_name__in=names)
        rows = rows.filter(created_at__gte=as_stored(self.since), created_at__lt=as_stored(self.until)).order_by("pk")
        columns = "pk", "event_name", "stream_id", "published_at", "due_at"
        last = first_uuid(self.since)
        while True:
            with transient_errors(alias):
                found = list(rows.filter(pk__gt=last).values_list(*columns)[:CHUNK])
            if not found:
                return
            last = found[-1][0]
            yield [
                Fired(str(pk), name, stream_id, None if at is None or due is not None else as_aware(at))
                for pk, name, stream_id, at, due in found
            ]

    def _from_stream(self, stream: str) -> Iterator[list[Fired]]:
        """Yield the events of a stream that no outbox has, such as those of `fire`."""
        for scanned in entries.scan(self.client, stream, self.since):
            new = {event.event_id: event for event in scanned if self._is_in_time(event)}
            for alias in self.aliases:
                ids = [UUID(event_id) for event_id in new if fired_at(event_id) is not None]
                with transient_errors(alias):
                    for row_id in OutboxEvent.objects.using(alias).filter(pk__in=ids).values_list("pk", flat=True):
                        new.pop(str(row_id), None)
            yield [
                Fired(event.event_id, event.name, event.stream_id, stream_time(event.stream_id))
                for event in new.values()
            ]

    def _is_in_time(self, event: entries.ScannedEvent) -> bool:
        time = fired_at(event.event_id) or stream_time(event.stream_id)
        return self.since <= time < self.until or is_ahead(event.stream_id, datetime.now(UTC))

    # --- What became of it --------------------------------------------------------------------

    def _compare(self, events: Sequence[Fired]) -> None:
        for listener, result in self.results.items():
            wanted = [event for event in events if event.name in listener.events]
            if wanted:
                self._compare_for(listener, result, wanted)

    def _compare_for(self, listener: Listener, result: Verified, events: Sequence[Fired]) -> None:
        using = listener.using or router.db_for_write(ProcessedEvent)
        result.fired += len(events)
        result.published += sum(event.published_at is not None for event in events)
        rest = self._count_recorded(using, result, events)
        rest = [event for event in rest if not self._count_unpublished_or_early(listener, result, event)]
        acknowledged = self._count_unread(result, rest)
        if not listener.idempotent:
            result.unproven += len(acknowledged)
            return
        missing = self._count_recorded(using, result, acknowledged)
        oldest = datetime.now(UTC) - timedelta(seconds=self.settings.inbox_retention)
        for event in missing:
            if event.published_at is not None and event.published_at < oldest:
                result.unproven += 1
                continue
            result.missing += 1
            if len(result.missing_ids) < KEPT:
                result.missing_ids.append(event.id)
            if self.replay and self._hand_over(using, result.group, event):
                result.replayed += 1

    def _count_recorded(self, using: str, result: Verified, events: Sequence[Fired]) -> list[Fired]:
        """Count the events that the listener's database knows; return the others."""
        group = stored_group(result.group, using)
        keys = {event_key(event.id): event for event in events}
        with transient_errors(using):
            processed = ProcessedEvent.objects.using(using).filter(consumer_group=group, event_id__in=keys)
            discarded = dict(processed.values_list("event_id", "discarded"))
            failures = FailedEvent.objects.using(using).filter(consumer_group=group, event_id__in=keys)
            failed = set(failures.values_list("event_id", flat=True))
        result.failed += len(failed)
        for key, is_discarded in discarded.items():
            if key not in failed:
                result.discarded += is_discarded
                result.handled += not is_discarded
        return [event for key, event in keys.items() if key not in failed and key not in discarded]

    def _count_unpublished_or_early(self, listener: Listener, result: Verified, event: Fired) -> bool:
        """Count an event that is not on the bus yet, or not for the listener; return whether it was counted."""
        if event.published_at is None:
            result.waiting += 1
            return True
        start = self._starts.get((stream_key(event.name, self.settings.stream_use), result.group))
        if start is not None and event.published_at < start:
            result.before_start += 1
            return True
        return False

    def _count_unread(self, result: Verified, events: Sequence[Fired]) -> list[Fired]:
        """Count the events that the group has not read or not acknowledged; return the others."""
        by_stream: defaultdict[str, list[Fired]] = defaultdict(list)
        for event in events:
            by_stream[stream_key(event.name, self.settings.stream_use)].append(event)
        acknowledged = []
        for stream, of_stream in by_stream.items():
            found = next((group for group in groups(self.client, stream) if group.name == result.group), None)
            if found is None:
                result.waiting += len(of_stream)
                continue
            last = id_key(found.last_delivered_id)
            read = [event for event in of_stream if not event.stream_id or id_key(event.stream_id) <= last]
            known = [event for event in read if event.stream_id]
            flags = entries.are_pending(self.client, stream, result.group, [event.stream_id for event in known])
            pending = {event.id for event, flag in zip(known, flags, strict=True) if flag}
            result.waiting += len(of_stream) - len(read) + len(pending)
            acknowledged += [event for event in read if event.id not in pending]
        return acknowledged

    # --- Replay -------------------------------------------------------------------------------

    def _hand_over(self, using: str, group: str, event: Fired) -> bool:
        """Make an event a failed event of one listener, due at once; return False if it can't be found any more.

        Its key is inserted in the same transaction, so the event can't be handled twice if it comes after all.
        """
        stream = stream_key(event.name, self.settings.stream_use)
        fields = self._fields(event, stream)
        if fields is None:
            return False
        stored, now = stored_group(group, using), timezone.now()
        key = event_key(event.id)
        with transient_errors(using), transaction.atomic(using=using):
            _, is_new = ProcessedEvent.objects.using(using).get_or_create(
                event_id=key,
                consumer_group=stored,
                defaults={"event_name": event.name, "stream_id": event.stream_id, "processed_at": now},
            )
            if not is_new:
                return False
            FailedEvent.objects.using(using).create(
                event_id=key,
                consumer_group=stored,
                event_name=event.name,
                stream=stream,
                stream_id=event.stream_id or "0-0",
                fields=dump_fields(fields),
                error="Never handled; handed over by lightbus_verify --replay",
                attempts=0,
                failed_at=now,
                next_attempt_at=now,
            )
        return True

    def _fields(self, event: Fired, stream: str) -> Fields | None:
        for alias in self.aliases:
            if fired_at(event.id) is not None:
                for row in read_rows(OutboxEvent.objects.using(alias).filter(pk=UUID(event.id))):
                    return row.fields
        return entries.read_entry(self.client, stream, event.stream_id) if event.stream_id else None

    # --- Preparation --------------------------------------------------------------------------

    def _has_outbox(self, alias: str) -> bool:
        with transient_errors(alias):
            return has_outbox(alias)

    def _read_starts(self) -> dict[tuple[str, str], datetime]:
        """Return when groups start, by stream and group."""
        starts = {}
        for alias in self.aliases:
            rows: Iterable[Any] = ConsumerGroup.objects.using(alias).exclude(starts_at=None)
            for row in rows:
                starts[row.stream, row.consumer_group] = as_aware(row.starts_at)
        return starts
