"""What the databases and Redis have of one event."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
from django.db import Error as DatabaseError

from lightbus_django.bus import entries, heartbeats
from lightbus_django.bus.client import get_client
from lightbus_django.bus.entries import Placement
from lightbus_django.bus.heartbeats import Heartbeat
from lightbus_django.bus.streams import Group, groups
from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import describe, one_line, transient_errors
from lightbus_django.events.codec import Fields, decode, load_fields
from lightbus_django.events.ids import event_key
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import is_name, stream_key
from lightbus_django.events.times import as_aware, fired_at, is_ahead, stream_time
from lightbus_django.exceptions import BusError, LightbusError, UnreadableEvent
from lightbus_django.firing.databases import distinct_databases, has_outbox
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent

from .event_ids import uuid_span

NO_STREAM_ID = "0-0"
"""Stream id of a failed event that was handed over without its entry."""


class EventRecords:
    """The records of one event: `read` looks at the databases first, then at Redis."""

    def __init__(self, event_id: str, now: datetime) -> None:
        """Prepare the look-up.

        Args:
            now: the current time; aware.
        """
        self.id = event_id
        self.key = event_key(event_id)
        self.now = now
        self.settings = get_settings()
        self.service_name = format_name(self.settings.service_name)
        self.client = get_client(self.settings.url, self.settings.redis_timeout)
        self.problems: list[str] = []
        """Servers that could not be asked."""
        self.outbox: OutboxEvent | None = None
        self.outbox_database = ""
        self.processed: dict[tuple[str, str], ProcessedEvent] = {}
        """By database and consumer group, as `failed`."""
        self.failed: dict[tuple[str, str], FailedEvent] = {}
        self.groups: dict[tuple[str, str], ConsumerGroup] = {}
        """By stream and consumer group."""
        self.paused: dict[str, str] = {}
        """Who paused each consumer group that is paused."""
        self.name = self.stream = self.stream_id = ""
        self.message: EventMessage | None = None
        self.is_in_stream: bool | None = None
        """None if Redis could not be asked."""
        self.placements: dict[str, tuple[Group, Placement]] = {}
        """How far each consumer group of the stream is with it."""
        self.heartbeats: list[Heartbeat] = []

    def read(self) -> None:
        """Look at everything; a server that doesn't answer becomes one of the problems."""
        for alias in distinct_databases():
            self._read_database(alias)
        self._read_names()
        try:
            self._find_entry()
            self.heartbeats = heartbeats.read(self.client)
            if self.stream_id:
                for group in groups(self.client, self.stream):
                    if (found := entries.place(self.client, group, self.stream_id)) is not None:
                        self.placements[group.name] = group, found
        except BusError as error:
            self.problems.append(one_line(error))

    def read_inbox(self, alias: str) -> None:
        """Read what the inbox and the failures of a database say. Raises DatabaseUnavailable."""
        with transient_errors(alias):
            for processed in ProcessedEvent.objects.using(alias).filter(event_id=self.key):
                self.processed[alias, processed.consumer_group] = processed
            for failed in FailedEvent.objects.using(alias).filter(event_id=self.key):
                self.failed[alias, failed.consumer_group] = failed

    @property
    def published_at(self) -> datetime | None:
        """When it was published first, as far as known."""
        if self.outbox is not None and self.outbox.published_at is not None:
            return as_aware(self.outbox.published_at)
        if self.stream_id and not is_ahead(self.stream_id, self.now):
            return stream_time(self.stream_id)
        return None

    # --- Databases ----------------------------------------------------------------------------

    def _read_database(self, alias: str) -> None:
        try:
            with transient_errors(alias):
                if not has_outbox(alias):
                    return
                if (span := uuid_span(self.id)) is not None and span[0] == span[1]:
                    row = OutboxEvent.objects.using(alias).filter(pk=span[0]).first()
                    if row is not None:
                        self.outbox, self.outbox_database = row, alias
                self.read_inbox(alias)
                for group in ConsumerGroup.objects.using(alias).all():
                    self.groups[group.stream, group.consumer_group] = group
                    if group.paused_at is not None:
                        self.paused[group.consumer_group] = group.paused_by
        except (LightbusError, DatabaseError) as error:
            self.problems.append(describe(error, alias))

    def _read_names(self) -> None:
        rows: list[Any] = [*self.failed.values(), *self.processed.values()]
        self.name = self.outbox.event_name if self.outbox else next((row.event_name for row in rows), "")
        self.stream = next((row.stream for row in self.failed.values()), "")
        if not self.stream and is_name(self.name):
            self.stream = stream_key(self.name, self.settings.stream_use)
        # That of the last publication, which listeners may not have read yet.
        candidates = [self.outbox.stream_id if self.outbox else "", *(row.stream_id for row in rows)]
        self.stream_id = next((each for each in candidates if each and each != NO_STREAM_ID), "")
        if self.outbox is not None:
            try:
                payload = msgspec.json.decode(self.outbox.payload, type=dict[str, Any])
                self.message = EventMessage(id=self.id, api_name="", event_name=self.name, payload=payload)
            except msgspec.MsgspecError:
                pass
        for failed in self.failed.values():
            if self.message is None:
                as_fired = failed.fields if failed.original_fields is None else failed.original_fields
                self._read_fields(load_fields(as_fired), failed.stream_id)

    def _read_fields(self, fields: Fields, stream_id: str) -> None:
        try:
            self.message = decode(fields, stream_id)
        except UnreadableEvent:
            return
        self.name = self.name or self.message.name

    # --- Redis --------------------------------------------------------------------------------

    def _find_entry(self) -> None:
        """Look at the event's entry. If no record has its stream id, search for it."""
        if self.stream_id:
            fields = entries.read_entry(self.client, self.stream, self.stream_id)
            self.is_in_stream = fields is not None
        else:
            self.is_in_stream, fields = False, None
            for stream, stream_id, found in self._search():
                self.is_in_stream, self.stream, self.stream_id, fields = True, stream, stream_id, found
        if fields and self.message is None:
            self._read_fields(fields, self.stream_id)

    def _search(self) -> Iterator[tuple[str, str, Fields]]:
        """Yield stream, stream id and fields of the event, if it is among the entries since it was fired.

        Without any record, search all streams that this service listens to. A row of the outbox that is not marked as
        published may be published nevertheless.
        """
        time = fired_at(self.id)
        is_down = self.outbox is not None and self.outbox.error
        if time is None or is_down:
            return
        names = {event for listener in registry for event in listener.events}
        streams = {self.stream} if self.stream else {stream_key(name, self.settings.stream_use) for name in names}
        for stream in sorted(streams):
            if (found := entries.find_entry(self.client, stream, self.id, time)) is not None:
                yield stream, *found
                return
