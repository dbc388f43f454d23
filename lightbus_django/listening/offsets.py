"""A listener's streams, and its group's offset in each: up to which entry the group is done with everything."""

import logging
import threading
from collections import defaultdict
from contextlib import suppress
from datetime import datetime

from django.db import connections

from lightbus_django.bus.consumer_group import GroupConsumer
from lightbus_django.bus.group_reads import Entry
from lightbus_django.bus.stream_ids import id_key
from lightbus_django.bus.streams import last_id, last_id_and_time
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import BusError, DatabaseUnavailable, GroupMissing
from lightbus_django.signals import announce, events_lost

from .activity import SAVING_OFFSETS
from .group_records import GroupRecords, Start
from .inbox import Inbox
from .listener import Listener

logger = logging.getLogger("lightbus_django")

LAST_TIMEOUT = 2.0
"""Seconds that a stop waits for the database to save the offsets."""


class Offsets:
    """The offsets of one listener's group. They are saved in the database, in case Redis forgets the group."""

    def __init__(
        self, group_consumer: GroupConsumer, listener: Listener, stream_use: str, inbox: Inbox, service_name: str
    ) -> None:
        self.group_consumer = group_consumer
        self.group = group_consumer.group
        self.listener = listener
        self.inbox = inbox
        self.lost = 0
        """How many events were trimmed before they were handled, as far as this process knows."""
        self._events: defaultdict[str, list[str]] = defaultdict(list)
        for event in listener.events:
            self._events[stream_key(event, stream_use)].append(event)
        self.records = GroupRecords(listener, self.group, service_name, self._events)
        self._offsets: dict[str, str] = {}
        self._ends: dict[str, tuple[str, datetime]] = {}
        self._lost_unread: dict[str, int] = {}

    @property
    def streams(self) -> list[str]:
        return list(self._events)

    def events_of(self, stream: str) -> list[str]:
        """Return the events in a stream that the listener wants."""
        return self._events[stream]

    def join(self) -> None:
        """Become a consumer of the group in each stream; create the group where it is missing.

        Raises:
            BusError
            DatabaseUnavailable: only the database knows where a missing group has to start.
        """
        missing = []
        for stream in self.group_consumer.reachable(self._events):
            try:
                self.group_consumer.mark_alive([stream])  # needs no memory, so a full Redis does not matter
                self._check(stream)
            except GroupMissing:
                # If the database does not answer now, "new" still means: from this first attempt on.
                self._ends.setdefault(stream, last_id_and_time(self.group_consumer.client, stream))
                missing.append(stream)
        self.inbox.activity.start(SAVING_OFFSETS)
        try:
            self._load(is_needed=bool(missing) or self.listener.idempotent)
            for stream in missing:
                self._create_group(stream)
            self.save()
        finally:
            self.inbox.activity.end()

    def update(self) -> None:
        """Ask Redis for the offsets, report losses, and save the offsets now and then."""
        for stream in self.group_consumer.reachable(self._events):
            self._check(stream)
        self.save()

    def save(self) -> None:
        """Save the offsets in the database, unless that was done a short time ago."""
        self.inbox.activity.start(SAVING_OFFSETS)
        try:
            self.records.save(self._offsets)
        finally:
            self.inbox.activity.end()

    def save_last(self) -> None:
        """Save the offsets as the process ends. If that fails, those that were saved before must do.

        A database that does not answer does not keep the process from ending.
        """
        with suppress(BusError):
            for stream in self.group_consumer.reachable(self._offsets):
                self._check(stream)
        if self.records.is_behind(self._offsets):
            thread = threading.Thread(target=self._save_at_once, name=f"last offsets of {self.group}", daemon=True)
            thread.start()
            thread.join(LAST_TIMEOUT)

    def report_lost(self, entry: Entry) -> None:
        """Count and report an event that this consumer was given and that is gone from its stream."""
        self.lost += 1
        logger.error(
            "%s: lost %s of %s: it was trimmed before it was handled", self.group, entry.stream_id, entry.stream
        )
        self._announce_lost(entry.stream, 1, entry.stream_id)

    def _check(self, stream: str) -> None:
        """Ask Redis for the offset of the group, and report the events that were trimmed before it read them.

        If all that came after the offset of the last look is still there, nothing was, whatever Redis counts.
        """
        progress = self.group_consumer.progress(stream)
        before = self._offsets.get(stream, progress.position)
        self._offsets[stream], lost = progress.position, progress.lost
        if lost is None:
            return
        more = lost - self._lost_unread.get(stream, 0)
        if more > 0 and id_key(progress.start) > id_key(before):
            self.lost += more
            logger.error("%s: lost %d events of %s: they were trimmed unread", self.group, more, stream)
            self._announce_lost(stream, more)
        self._lost_unread[stream] = lost

    def _announce_lost(self, stream: str, count: int, stream_id: str = "") -> None:
        announce(
            events_lost,
            self.listener.handler,
            listener_name=self.listener.listener_name,
            consumer_group=self.group,
            stream=stream,
            count=count,
            stream_id=stream_id,
        )

    def _load(self, *, is_needed: bool) -> None:
        try:
            self.records.load()
        except DatabaseUnavailable:
            if is_needed:
                raise

    def _save_at_once(self) -> None:
        try:
            self.records.save(self._offsets, at_once=True)
        finally:
            connections.close_all()

    def _create_group(self, stream: str) -> None:
        start_id = self._start_id(stream)
        if self.group_consumer.join(stream, start_id):
            logger.info("%s: created a new consumer group on %s, which starts after %s", self.group, stream, start_id)
        self._check(stream)

    def _start_id(self, stream: str) -> str:
        """Return where a group that is missing has to start.

        A new group starts where its listener says. One that Redis has forgotten goes on at the last known offset; if
        that is not known, or is of another stream with the same name, it goes back to its start.
        """
        offset = self._offsets.get(stream)
        is_from_redis = offset is not None
        if offset is None:
            # If the inbox knows what the group has handled, to start over is safe, and leaves nothing out.
            has_handled = self.inbox.has_handled(self._events[stream])
            offset = None if has_handled else self.records.saved.get(stream)
            if offset is None and not has_handled:
                return self.records.save_start(stream, Start.of(self.listener, *self._ends[stream])).id
        start = self.records.starts.get(stream, Start()).id or "0"
        last = id_key(last_id(self.group_consumer.client, stream))
        if offset is not None and id_key(offset) <= last:
            place = offset
        elif self.listener.start != "new" or id_key(start) <= last:
            place = start
        else:
            place = "0"  # another stream with the same name
        if is_from_redis or place != start or offset is None:
            logger.warning("%s: the group is missing from %s; creating it again after %s", self.group, stream, place)
        return place
