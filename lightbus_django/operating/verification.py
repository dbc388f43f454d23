"""Proof of delivery: joins outbox, streams, inbox and failures, and finds events that a listener never handled.

An event that is on its way is not missing: the position of a group is read after the keys, and the keys of what the
group has acknowledged are read once more.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from django.db import reset_queries, router

from lightbus_django.bus.client import get_client
from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import transient_errors
from lightbus_django.database.many_values import many
from lightbus_django.events.ids import event_key
from lightbus_django.events.names import stream_key
from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.listening.listener import Listener
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent, stored_group

from . import deliveries
from .fired_events import Fired, FiredEvents
from .replay import find_fields, hand_over
from .unclaimed_groups import UnclaimedGroups, find_unclaimed_groups

_EVENT_ID = ProcessedEvent._meta.get_field("event_id")

KEPT = 1000
"""Maximum number of ids of missing events that are kept for each listener; all are counted."""


class Verified(msgspec.Struct, kw_only=True):
    """What became of the events for one listener."""

    listener: str
    group: str
    fired: int = 0
    published: int = 0
    handled: int = 0
    waiting: int = 0
    """Not published yet, not read, or not acknowledged."""
    failed: int = 0
    """To be retried, or dead letters."""
    discarded: int = 0
    before_start: int = 0
    """Published before the listener's start, so they are not for it."""
    unproven: int = 0
    """Acknowledged without a record, as with `idempotent=False`, after INBOX_RETENTION, or if no start is recorded."""
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

        Raises:
            DatabaseUnavailable
        """
        self.settings = get_settings()
        self.service_name = format_name(self.settings.service_name)
        self.client = get_client(self.settings.url, self.settings.redis_timeout)
        self.replay = replay
        self.results = {
            listener: Verified(listener=listener.listener_name, group=listener.group(self.service_name))
            for listener in listeners
        }
        self.aliases = list(databases_with_tables())
        self._fired = FiredEvents(self.client, self.aliases, since, until)
        self._rows = self._read_rows()
        self._oldest_key = datetime.now(UTC) - timedelta(seconds=self.settings.inbox_retention)

    def run(self, advance: Callable[[int], None] = lambda count: None) -> list[Verified]:
        """Compare; return the result for each listener.

        Args:
            advance: called with the numbers of events that have been looked at.

        Raises:
            BusError, DatabaseUnavailable: it is incomplete; run it again.
        """
        names = {event for listener in self.results for event in listener.events}
        for alias in self.aliases:
            self._compare(self._fired.of_outbox(alias, names), advance)
        for stream in sorted(set(map(self._stream, names))):
            self._compare(self._fired.of_stream(stream, names), advance)
        return list(self.results.values())

    def _compare(self, chunks: Iterable[Sequence[Fired]], advance: Callable[[int], None]) -> None:
        for chunk in chunks:
            for listener, result in self.results.items():
                by_stream: defaultdict[str, list[Fired]] = defaultdict(list)
                for event in chunk:
                    if event.name in listener.events:
                        by_stream[self._stream(event.name)].append(event)
                for stream, events in by_stream.items():
                    self._compare_for(listener, result, stream, events)
            advance(len(chunk))
            reset_queries()  # with DEBUG on, Django logs every query

    def _stream(self, name: str) -> str:
        return stream_key(name, self.settings.stream_use)

    @property
    def unclaimed_groups(self) -> UnclaimedGroups | None:
        """The groups of this service without a listener, whose events are not compared; None if there are none."""
        ours = {row.consumer_group for row in self._rows.values() if row.service_name == self.service_name}
        return find_unclaimed_groups(ours, self.service_name)

    # --- What became of the events ------------------------------------------------------------

    def _compare_for(self, listener: Listener, result: Verified, stream: str, events: Sequence[Fired]) -> None:
        """Count what became of some events of a stream for one listener."""
        using = listener.using or router.db_for_write(ProcessedEvent)
        row = self._rows.get((stream, result.group))
        unknown = self._count_recorded(using, result, events)
        published = [event for event in unknown if event.published_at is not None]
        result.fired += len(events)
        result.waiting += len(unknown) - len(published)
        result.published += len(events) - len(unknown) + len(published)
        expected = self._without_early(result, published, row)
        if not expected:
            return
        found = deliveries.sort(self.client, stream, result.group, expected, has_run=row is not None)
        result.waiting += len(found.on_their_way)
        gone = found.gone
        if listener.idempotent:
            gone = self._count_recorded(using, result, gone)
        if not gone:
            return
        gone = self._without_early(result, deliveries.find_first_publications(self.client, stream, gone), row)
        now = datetime.now(UTC)
        for event in gone:
            if (
                not listener.idempotent
                or deliveries.is_pruned(event, self._oldest_key, now)
                or deliveries.may_precede_start(event, row)
            ):
                result.unproven += 1
            else:
                self._count_missing(using, result, stream, event)

    def _without_early(self, result: Verified, events: Sequence[Fired], row: ConsumerGroup | None) -> list[Fired]:
        """Count the events that are older than the listener; return the others."""
        rest = [event for event in events if not deliveries.precedes_start(event, row)]
        result.before_start += len(events) - len(rest)
        return rest

    def _count_recorded(self, using: str, result: Verified, events: Sequence[Fired]) -> list[Fired]:
        """Count the events that the listener's database knows; return the others."""
        group = stored_group(result.group, using)
        keys = {event_key(event.id): event for event in events}
        with transient_errors(using):
            among = many(keys, _EVENT_ID, using)
            processed = ProcessedEvent.objects.using(using).filter(consumer_group=group, event_id__in=among)
            discarded = dict(processed.values_list("event_id", "discarded"))
            failures = FailedEvent.objects.using(using).filter(consumer_group=group, event_id__in=among)
            failed = set(failures.values_list("event_id", flat=True))
        result.failed += len(failed)
        for key, is_discarded in discarded.items():
            if key not in failed:
                result.discarded += is_discarded
                result.handled += not is_discarded
        return [event for key, event in keys.items() if key not in failed and key not in discarded]

    def _count_missing(self, using: str, result: Verified, stream: str, event: Fired) -> None:
        result.missing += 1
        if len(result.missing_ids) < KEPT:
            result.missing_ids.append(event.id)
        if self.replay and (fields := find_fields(self.client, self.aliases, event, stream)) is not None:
            result.replayed += hand_over(event, stream, fields, group=result.group, using=using)

    def _read_rows(self) -> dict[tuple[str, str], ConsumerGroup]:
        """Return what the databases know of each group, by stream and group."""
        rows = {}
        for alias in self.aliases:
            with transient_errors(alias):
                for row in ConsumerGroup.objects.using(alias):
                    rows[row.stream, row.consumer_group] = row
        return rows
