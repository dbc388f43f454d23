"""One event's story, from records: where it was fired, who has handled it, and who has not and why."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from django.db import Error as DatabaseError
from django.db import connections, router

from lightbus_django.bus import entries, heartbeats
from lightbus_django.bus.client import get_client
from lightbus_django.bus.consumer_group import id_key
from lightbus_django.bus.heartbeats import Heartbeat
from lightbus_django.bus.streams import groups
from lightbus_django.conf import format_name, get_settings
from lightbus_django.database.errors import one_line, transient_errors
from lightbus_django.events.codec import decode, load_fields
from lightbus_django.events.ids import event_key
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import is_name, stream_key
from lightbus_django.events.times import as_aware, fired_at, is_ahead, stream_time
from lightbus_django.exceptions import BusError, LightbusError, UnreadableEvent
from lightbus_django.firing.databases import has_outbox
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent, ProcessedEvent, stored_group

from .durations import duration
from .event_ids import uuid_span
from .outcomes import (
    DEAD_LETTER,
    DISCARDED,
    HANDLED,
    IN_HAND,
    MISSING,
    NOT_WANTED,
    PAUSED,
    RETRYING,
    UNKNOWN,
    WAITING,
    Outcome,
    Story,
)


def tell(event_id: str, now: datetime | None = None) -> Story | None:
    """Return the story of an event; None if no record mentions it.

    A server that does not answer is named in the story, with what is known from the others.

    Args:
        event_id: a complete event id.
        now: the current time; aware.
    """
    return _Research(event_id.strip(), datetime.now(UTC) if now is None else now).story()


class _Research:
    """What the records say of one event."""

    def __init__(self, event_id: str, now: datetime) -> None:
        self.id = event_id
        self.key = event_key(event_id)
        self.now = now
        self.settings = get_settings()
        self.service_name = format_name(self.settings.service_name)
        self.client = get_client(self.settings.url, self.settings.redis_timeout)
        self.problems: list[str] = []
        self.outbox: OutboxEvent | None = None
        self.outbox_database = ""
        self.processed: dict[tuple[str, str], ProcessedEvent] = {}
        self.failed: dict[tuple[str, str], FailedEvent] = {}
        self.starts: dict[tuple[str, str], ConsumerGroup] = {}
        self.paused: dict[str, str] = {}
        self.heartbeats: list[Heartbeat] = []
        self.name = self.stream = self.stream_id = ""
        self.message: EventMessage | None = None
        self.is_in_stream: bool | None = None
        """None if Redis could not be asked."""

    def story(self) -> Story | None:
        for alias in connections:
            self._read_database(alias)
        self._read_names()
        bus_outcomes: dict[str, Outcome] = {}
        try:
            self._find_entry()
            self.heartbeats = heartbeats.read(self.client)
            if self.stream_id:
                bus_outcomes = {each.group: each for each in self._outcomes_on_bus()}
        except BusError as error:
            self.problems.append(one_line(error))
        if not self.name:
            return None
        return Story(
            id=self.id,
            name=self.name,
            payload=self.message.payload if self.message else None,
            fired_at=fired_at(self.id) or (as_aware(self.outbox.created_at) if self.outbox else None),
            published_at=self._published_at(),
            stream=self.stream,
            stream_id=self.stream_id,
            origin=self._origin(),
            outbox_database=self.outbox_database,
            is_published=bool(self.stream_id) or (self.outbox is not None and self.outbox.due_at is None),
            outcomes=list(self._outcomes(bus_outcomes)),
            problems=self.problems,
        )

    # --- Records ------------------------------------------------------------------------------

    def _read_database(self, alias: str) -> None:
        try:
            with transient_errors(alias):
                if not has_outbox(alias):
                    return
                if (span := uuid_span(self.id)) is not None and span[0] == span[1]:
                    row = OutboxEvent.objects.using(alias).filter(pk=span[0]).first()
                    if row is not None:
                        self.outbox, self.outbox_database = row, alias
                for processed in ProcessedEvent.objects.using(alias).filter(event_id=self.key):
                    self.processed[alias, processed.consumer_group] = processed
                for failed in FailedEvent.objects.using(alias).filter(event_id=self.key):
                    self.failed[alias, failed.consumer_group] = failed
                for group in ConsumerGroup.objects.using(alias).all():
                    self.starts[group.stream, group.consumer_group] = group
                    if group.paused_at is not None:
                        self.paused[group.consumer_group] = group.paused_by
        except (LightbusError, DatabaseError) as error:
            self.problems.append(f"database {alias!r}: {one_line(error)}")

    def _read_names(self) -> None:
        rows: list[Any] = [*self.failed.values(), *self.processed.values()]
        self.name = self.outbox.event_name if self.outbox else next((row.event_name for row in rows), "")
        self.stream = next((row.stream for row in self.failed.values()), "")
        if not self.stream and is_name(self.name):
            self.stream = stream_key(self.name, self.settings.stream_use)
        # That of the last publication, which listeners may not have read yet.
        candidates = [self.outbox.stream_id if self.outbox else "", *(row.stream_id for row in rows)]
        self.stream_id = next(filter(None, candidates), "")
        if self.outbox is not None:
            try:
                payload = msgspec.json.decode(self.outbox.payload, type=dict[str, Any])
                self.message = EventMessage(id=self.id, api_name="", event_name=self.name, payload=payload)
            except msgspec.MsgspecError:
                pass
        for failed in self.failed.values():
            if self.message is None:
                self._read_fields(load_fields(failed.fields), failed.stream_id)

    def _read_fields(self, fields: Any, stream_id: str) -> None:
        try:
            self.message = decode(fields, stream_id)
        except UnreadableEvent:
            return
        self.name = self.name or self.message.name

    def _find_entry(self) -> None:
        """Look for the event in its stream; without any record, in all streams of this service."""
        if self.stream_id:
            fields = entries.read_entry(self.client, self.stream, self.stream_id)
            self.is_in_stream = fields is not None
            if fields and self.message is None:
                self._read_fields(fields, self.stream_id)
            return
        self.is_in_stream = False
        if (time := fired_at(self.id)) is None or (self.outbox is not None and self.outbox.due_at is not None):
            return
        names = {event for listener in registry for event in listener.events}
        streams = [self.stream] if self.stream else sorted({stream_key(n, self.settings.stream_use) for n in names})
        for stream in streams:
            if (found := entries.find_entry(self.client, stream, self.id, time)) is not None:
                self.stream, (self.stream_id, fields) = stream, found
                self.is_in_stream = True
                self._read_fields(fields, self.stream_id)
                return

    def _published_at(self) -> datetime | None:
        if self.outbox is not None and self.outbox.published_at is not None:
            return as_aware(self.outbox.published_at)
        if self.stream_id and not is_ahead(self.stream_id, self.now):
            return stream_time(self.stream_id)
        return None

    def _origin(self) -> str:
        row = self.outbox
        if row is None:
            where = f"it is in {self.stream} as {self.stream_id}" if self.is_in_stream else "it is not in its stream"
            return f"The outbox has no row of it: it was fired with fire(), by another service, or was pruned; {where}."
        start = f"Fired with on_commit() by {self.service_name}, database {self.outbox_database!r}; "
        if row.due_at is None:
            entry = f" as {row.stream_id}" if row.stream_id else ""
            gone = "" if self.is_in_stream is not False or not row.stream_id else "; since then it was trimmed"
            return f"{start}published{entry}{gone}."
        if row.error:
            return f"{start}not published: {row.error} It is tried again at {_clock(as_aware(row.due_at))}."
        due = as_aware(row.due_at)
        if row.published_at is not None:
            return f"{start}published, and will be published again by a relay."
        if due > self.now:
            return f"{start}not published yet; its process has until {_clock(due)}, then a relay publishes it."
        return f"{start}not published for {duration((self.now - due).total_seconds())}: is lightbus_listen running?"

    # --- Outcomes -----------------------------------------------------------------------------

    def _outcomes(self, on_bus: dict[str, Outcome]) -> Iterator[Outcome]:
        expected = [listener for listener in registry if self.name in listener.events]
        told = set()
        for listener in sorted(expected, key=lambda listener: listener.listener_name):
            group = listener.group(self.service_name)
            told.add(group)
            using = listener.using or router.db_for_write(ProcessedEvent)
            stored = stored_group(group, using)
            outcome = self._recorded(using, stored, listener.listener_name)
            if outcome is None:
                outcome = self._not_recorded(listener, group, on_bus)
            yield msgspec.structs.replace(outcome, group=group, listener=listener.listener_name, database=using)
        for alias, group in sorted({*self.processed, *self.failed}):
            if group not in told and (found := self._recorded(alias, group, "")) is not None:
                told.add(group)
                yield found
        told.update(listener.group(self.service_name) for listener in registry)  # the others don't want it
        yield from (outcome for group, outcome in on_bus.items() if group not in told)

    def _recorded(self, alias: str, group: str, listener: str) -> Outcome | None:
        """Return what a group's database says of the event; None if it says nothing."""
        failed, processed = self.failed.get((alias, group)), self.processed.get((alias, group))
        common: dict[str, Any] = {"group": group, "listener": listener, "database": alias}
        if failed is not None:
            error = failed.error.partition("\n")[0][:200]
            common |= {"at": as_aware(failed.failed_at), "attempts": failed.attempts, "failed_id": failed.pk}
            if failed.is_dead_letter:
                text = (
                    f"Dead letter since {_time(as_aware(failed.failed_at))}, after {failed.attempts} attempts: {error}"
                )
                return Outcome(state=DEAD_LETTER, text=text, **common)
            due = as_aware(failed.next_attempt_at)  # type: ignore[arg-type]
            count = f"{failed.attempts} of {self.settings.max_attempts} attempts failed"
            return Outcome(state=RETRYING, text=f"{count}, the next one is at {_clock(due)}: {error}", **common)
        if processed is None:
            return None
        at = as_aware(processed.processed_at)
        common |= {"at": at, "process": processed.process_name, "attempts": processed.attempts}
        if processed.discarded:
            by = f" by {processed.discarded_by}" if processed.discarded_by else ""
            reason = f": {processed.discard_reason}" if processed.discard_reason else ""
            return Outcome(state=DISCARDED, text=f"Discarded{by} at {_time(at)}{reason}", **common)
        process = f" by {processed.process_name}" if processed.process_name else ""
        after = ""
        if processed.stream_id and not is_ahead(processed.stream_id, self.now):
            delay = max(timedelta(), at - stream_time(processed.stream_id))
            after = f", {duration(delay.total_seconds())} after it was published"
        attempt = f", in attempt {processed.attempts}" if (processed.attempts or 1) > 1 else ""
        return Outcome(state=HANDLED, text=f"Handled{process} at {_time(at)}{after}{attempt}", **common)

    def _not_recorded(self, listener: Listener, group: str, on_bus: dict[str, Outcome]) -> Outcome:
        """Return what is known of the event if the listener's database says nothing."""

        def outcome(state: str, text: str) -> Outcome:
            return Outcome(group=group, listener=listener.listener_name, state=state, text=text)

        if not self.stream_id:
            if self.outbox is not None and self.outbox.due_at is not None and self.outbox.published_at is None:
                return outcome(WAITING, "Waits to be published")
            return outcome(UNKNOWN, "No record, and the event is not in its stream")
        row = self.starts.get((self.stream, group))
        first = self._published_at()
        if row is not None and row.starts_at is not None and first is not None and first < as_aware(row.starts_at):
            return outcome(NOT_WANTED, f"Published before the listener's start at {_time(as_aware(row.starts_at))}")
        found = on_bus.get(group)
        if found is None:
            if self.is_in_stream is None:
                return outcome(UNKNOWN, "Redis could not be asked")
            return outcome(WAITING, "No process has run this listener yet, so its consumer group does not exist")
        if found.state == UNKNOWN:
            if not listener.idempotent:
                return outcome(HANDLED, "Read and acknowledged; idempotent=False keeps no record of its handling")
            retention = timedelta(seconds=self.settings.inbox_retention)
            if first is not None and self.now - first > retention:
                return outcome(UNKNOWN, "Acknowledged; its record may have been pruned after INBOX_RETENTION")
            return outcome(MISSING, "Acknowledged, but there is no record that it was handled")
        if found.state == WAITING and group in self.paused:
            return outcome(PAUSED, f"Waits, because the listener was paused by {self.paused[group]}")
        return found

    def _outcomes_on_bus(self) -> Iterable[Outcome]:
        """Yield what Redis says of the event for each group of its stream, of any service."""
        for group in groups(self.client, self.stream):
            found = entries.place(self.client, self.stream, group.name, self.stream_id)
            if found is None:
                continue
            state, text = UNKNOWN, "Read and acknowledged"
            if found.consumer:
                state, text = IN_HAND, f"Read by {found.consumer}{self._in_hand(group.name)}"
            elif not found.is_read:
                events = [
                    event for each in registry if each.group(self.service_name) == group.name for event in each.events
                ]
                state, text = WAITING, self._waits(found.last_delivered_id, events)
            yield Outcome(group=group.name, listener="", state=state, text=text, process=found.consumer)

    def _in_hand(self, group: str) -> str:
        for heartbeat, sign in heartbeats.of_listener(self.heartbeats, group):
            if sign.event_id == self.key:
                seconds = sign.doing_for + heartbeat.age
                return f", which is {sign.doing} for {duration(seconds)}"
        return ", not handled yet"

    def _waits(self, after: str, events: list[str]) -> str:
        if id_key(after) >= id_key(self.stream_id):
            return "Not read yet"
        if not events:
            return "Not read yet by this group of another service"
        count, is_exact = entries.count_before(self.client, self.stream, after, self.stream_id, events)
        return f"Not read yet; {'' if is_exact else 'at least '}{count} events are before it"


def _time(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _clock(time: datetime) -> str:
    return f"{time.astimezone():%H:%M:%S}"
