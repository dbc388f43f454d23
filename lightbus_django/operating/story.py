"""One event's story, from records: where it was fired, who has handled it, and who has not and why."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from django.db import router

from lightbus_django.bus import heartbeats
from lightbus_django.bus.backlog import count_unread
from lightbus_django.bus.stream_ids import id_key, previous_id
from lightbus_django.database.errors import one_line
from lightbus_django.events.times import as_aware, fired_at, is_ahead, stream_time
from lightbus_django.exceptions import BusError, DatabaseUnavailable
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, ProcessedEvent, stored_group

from . import outcomes
from .durations import duration
from .event_records import EventRecords
from .origin import clock, describe_origin, exact
from .outcomes import Outcome, Story


def tell(event_id: str, now: datetime | None = None) -> Story | None:
    """Return the story of an event; None if no record mentions it.

    A server that does not answer is named in the story, with what is known from the others.

    Args:
        event_id: a complete event id.
        now: the current time; aware.
    """
    records = EventRecords(event_id.strip(), datetime.now(UTC) if now is None else now)
    records.read()
    if not records.name:
        return None
    outbox = records.outbox
    found = list(_Outcomes(records).all())
    return Story(
        id=records.id,
        name=records.name,
        payload=records.message.payload if records.message else None,
        fired_at=fired_at(records.id) or (as_aware(outbox.created_at) if outbox else None),
        published_at=records.published_at,
        stream=records.stream,
        stream_id=records.stream_id,
        origin=describe_origin(records),
        outbox_database=records.outbox_database,
        is_published=bool(records.stream_id) or (outbox is not None and outbox.due_at is None),
        outcomes=found,
        problems=records.problems,
    )


class _Outcomes:
    """What became of the event for each consumer group."""

    def __init__(self, records: EventRecords) -> None:
        self.records = records
        self.listeners = {listener.group(records.service_name): listener for listener in registry}

    def all(self) -> Iterator[Outcome]:
        """Yield the outcomes: for each listener that wants it, then for other groups that know of it."""
        records = self.records
        told = set()
        for group, listener in sorted(self.listeners.items(), key=lambda item: item[1].listener_name):
            if records.name in listener.events:
                using = listener.using or router.db_for_write(ProcessedEvent)
                stored = stored_group(group, using)
                told |= {group, stored}
                outcome = self._recorded(using, stored, listener) or self._not_recorded(group, using, listener)
                yield msgspec.structs.replace(outcome, group=group, listener=listener.listener_name, database=using)
        for alias, group in sorted({*records.processed, *records.failed}):
            if group not in told and (found := self._recorded(alias, group, None)) is not None:
                told.add(group)
                yield found
        told |= self.listeners.keys()  # the others of this service don't want it
        yield from (self._on_bus(group) for group in records.placements if group not in told)

    # --- What the listener's database says ----------------------------------------------------

    def _recorded(self, alias: str, group: str, listener: Listener | None) -> Outcome | None:
        """Return what a group's database says of the event; None if it says nothing."""
        failed, processed = self.records.failed.get((alias, group)), self.records.processed.get((alias, group))
        if failed is not None:
            return self._failed(failed, alias, listener)
        return None if processed is None else self._processed(processed, alias)

    def _failed(self, failed: FailedEvent, alias: str, listener: Listener | None) -> Outcome:
        error, group = failed.error.partition("\n")[0][:200], failed.consumer_group
        common: dict[str, Any] = {"group": group, "listener": "", "database": alias, "attempts": failed.attempts}
        common |= {"at": as_aware(failed.failed_at), "failed_id": failed.pk, "edited_by": failed.edited_by}
        edited = f". This listener gets a payload that {failed.edited_by} edited" if failed.is_edited else ""
        if failed.next_attempt_at is None:
            text = f"Dead letter since {exact(as_aware(failed.failed_at))}, in attempt {failed.attempts}: {error}"
            return Outcome(state=outcomes.DEAD_LETTER, text=text + edited, **common)
        due = as_aware(failed.next_attempt_at)
        attempt = f"the next one is at {clock(due)}" if due > self.records.now else f"the next one is due: {clock(due)}"
        if failed.is_in_hand(self.records.now):
            attempt = "the last one is being made at this moment"
        elif group in self.records.paused:
            attempt += f", but the listener was paused by {self.records.paused[group]}"
        elif listener is None:
            attempt += ", but this service has no listener for the group"
        count = f"{failed.attempts} of {self.records.settings.max_attempts} attempts made"
        return Outcome(state=outcomes.RETRYING, text=f"{count}, {attempt}. Last error: {error}{edited}", **common)

    def _processed(self, row: ProcessedEvent, alias: str) -> Outcome:
        at = as_aware(row.processed_at)
        common: dict[str, Any] = {"group": row.consumer_group, "listener": "", "database": alias, "at": at}
        common |= {"process": row.process_name, "attempts": row.attempts, "edited_by": row.edited_by}
        if row.discarded:
            by = f" by {row.discarded_by}" if row.discarded_by else ""
            reason = f": {row.discard_reason}" if row.discard_reason else ""
            return Outcome(state=outcomes.DISCARDED, text=f"Discarded{by} at {exact(at)}{reason}", **common)
        process = f" by {row.process_name}" if row.process_name else ""
        after = ""
        if row.stream_id and not is_ahead(row.stream_id, self.records.now):
            delay = max(timedelta(), at - stream_time(row.stream_id))
            after = f", {duration(delay.total_seconds())} after it was published"
        attempt = f", in attempt {row.attempts}" if (row.attempts or 1) > 1 else ""
        edited = f", with a payload that {row.edited_by} edited" if row.edited_by else ""
        text = f"Handled{process} at {exact(at)}{after}{attempt}{edited}"
        return Outcome(state=outcomes.HANDLED, text=text, **common)

    # --- What Redis says ----------------------------------------------------------------------

    def _not_recorded(self, group: str, using: str, listener: Listener) -> Outcome:
        """Return what is known of the event if the listener's database says nothing."""
        records = self.records

        def outcome(state: str, text: str) -> Outcome:
            return Outcome(group=group, listener=listener.listener_name, state=state, text=text)

        if not records.stream_id:
            if records.outbox is not None and records.outbox.due_at is not None and not records.outbox.published_at:
                return outcome(outcomes.WAITING, "Waits to be published")
            return outcome(outcomes.UNKNOWN, "No record, and the event is not in its stream")
        row, first = records.groups.get((records.stream, group)), records.published_at
        if row and row.starts_at and first and first < as_aware(row.starts_at):
            text = f"Published before the listener's start at {exact(as_aware(row.starts_at))}"
            return outcome(outcomes.NOT_WANTED, text)
        if group not in records.placements:
            if records.is_in_stream is None:
                return outcome(outcomes.UNKNOWN, "Redis could not be asked")
            if row is not None:
                return outcome(outcomes.WAITING, "Redis has lost the consumer group; lightbus_listen creates it again")
            return outcome(
                outcomes.WAITING, "No process has run this listener yet, so its consumer group does not exist"
            )
        found = self._on_bus(group)
        if found.state == outcomes.WAITING and group in records.paused:
            return outcome(outcomes.PAUSED, f"Waits, because the listener was paused by {records.paused[group]}")
        if found.state != outcomes.UNKNOWN:
            return found
        if not listener.idempotent:
            text = "Read and acknowledged; idempotent=False keeps no record of its handling"
            return outcome(outcomes.HANDLED, text)
        try:
            records.read_inbox(using)  # it may have been handled since then
        except DatabaseUnavailable as error:
            return outcome(outcomes.UNKNOWN, one_line(error))
        if (recorded := self._recorded(using, stored_group(group, using), listener)) is not None:
            return recorded
        retention = timedelta(seconds=records.settings.inbox_retention)
        if first is not None and records.now - first > retention:
            text = "Acknowledged; its record may have been pruned after INBOX_RETENTION"
            return outcome(outcomes.UNKNOWN, text)
        if row is not None and not row.start_id and first is not None and first < as_aware(row.began_at):
            return outcome(outcomes.UNKNOWN, "Acknowledged, or older than the listener, whose start is not recorded")
        return outcome(outcomes.MISSING, "Acknowledged, but there is no record that it was handled")

    def _on_bus(self, group_name: str) -> Outcome:
        """Return what Redis says of the event for a group of its stream, of any service."""
        group, found = self.records.placements[group_name]
        state, text = outcomes.UNKNOWN, "Read and acknowledged"
        if not self.records.is_in_stream and (found.consumer or not found.is_read):
            state, text = outcomes.MISSING, "Not handled, and no longer in the stream: it was trimmed or lost"
        elif found.consumer:
            state, text = outcomes.IN_HAND, f"Read by {found.consumer}{self._in_hand(group_name)}"
        elif not found.is_read:
            state, text = outcomes.WAITING, self._waits(group_name, group.last_delivered_id)
        return Outcome(group=group_name, listener="", state=state, text=text, process=found.consumer)

    def _in_hand(self, group: str) -> str:
        for heartbeat, sign in heartbeats.of_listener(self.records.heartbeats, group):
            if sign.event_id == self.records.key:
                return f", which is {sign.doing} for {duration(sign.doing_for + heartbeat.age)}"
        return ", not handled yet"

    def _waits(self, group: str, after: str) -> str:
        if group not in self.listeners:
            return "Not read yet by this group, which has no listener in this service"
        until = previous_id(self.records.stream_id)
        if id_key(after) >= id_key(until):
            return "Not read yet; it is next"
        try:
            ahead = count_unread(
                self.records.client, self.records.stream, after, self.listeners[group].events, last=until
            )
        except BusError:
            return "Not read yet"
        return f"Not read yet; {'' if ahead.is_complete else 'at least '}{ahead.wanted} events are before it"
