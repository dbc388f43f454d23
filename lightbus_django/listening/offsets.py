"""Where a consumer group stands, for it to come back there should Redis forget it."""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

from django.db import connections

from lightbus_django.bus import first_publications as republished
from lightbus_django.bus.consumer_group import GroupConsumer, id_key
from lightbus_django.bus.streams import Group, groups, last_id, last_id_and_time
from lightbus_django.events.names import stream_key
from lightbus_django.events.times import SKEW, event_bytes, first_id, has_time
from lightbus_django.exceptions import BusError, BusForbidden, DatabaseUnavailable, GroupMissing

from .activity import REMEMBERING
from .delivery import Delivery
from .group_records import GroupRecords, Start
from .inbox import Inbox
from .listener import Listener

logger = logging.getLogger("lightbus_django")


LAST_TIMEOUT = 2.0
"""Seconds that a stop waits for the position of a group to be written down."""


class Offsets:
    """The streams of one listener, and how far its group is in each of them."""

    def __init__(
        self, group_consumer: GroupConsumer, listener: Listener, stream_use: str, inbox: Inbox, service_name: str
    ) -> None:
        self.group_consumer = group_consumer
        self.listener = listener
        self.inbox = inbox
        self.lost = 0
        """How many events were trimmed before they were handled, as far as this process knows."""
        self._events: defaultdict[str, list[str]] = defaultdict(list)
        self._other_use = "per_event" if stream_use == "per_api" else "per_api"
        for event in listener.events:
            self._events[stream_key(event, stream_use)].append(event)
        self.records = GroupRecords(listener, group_consumer.group, service_name, self._events)
        self._positions: dict[str, str] = {}
        self._ends: dict[str, tuple[str, datetime]] = {}
        self._unread_lost: dict[str, int] = {}

    @property
    def streams(self) -> list[str]:
        return list(self._events)

    def join(self) -> None:
        """Become a consumer of the group in each stream; make it where it is not there."""
        missing = []
        for stream in self._events:
            try:
                self.group_consumer.mark_alive([stream])  # works on a Redis that is full, too
                self.look(stream)
            except GroupMissing:
                # What is new is so from the first try on; the database may not answer yet.
                self._ends.setdefault(stream, last_id_and_time(self.group_consumer.client, stream))
                missing.append(stream)
        self.inbox.activity.start(REMEMBERING)
        try:
            self.records.load()
        except DatabaseUnavailable:
            if missing or self.listener.idempotent:
                raise
        for stream in missing:
            start_id = self._start_id(stream)
            if self.group_consumer.join(stream, start_id):
                logger.info(
                    "%s: new consumer group of %s, which begins after %s", self.group_consumer.group, stream, start_id
                )
            self.look(stream)
        self.remember()

    def look(self, stream: str) -> None:
        """Remember where the group stands, and say what it lost before it was given it."""
        self._positions[stream], lost = self.group_consumer.progress(stream)
        if lost is None:
            return
        if (more := lost - self._unread_lost.get(stream, 0)) > 0:
            self.lost += more
            logger.error("%s: lost %d events of %s: they were trimmed unread", self.group_consumer.group, more, stream)
        self._unread_lost[stream] = lost

    def remember(self) -> None:
        """Write down where the group stands, now and then."""
        self.inbox.activity.start(REMEMBERING)
        try:
            self.records.save(self._positions)
        finally:
            self.inbox.activity.end()

    def remember_last(self) -> None:
        """Write down where the group stands, as this process ends; should that fail, it was written down before.

        A database that does not answer doesn't keep the process from ending.
        """
        with suppress(BusError):
            for stream in self._positions:
                self.look(stream)
        if self.records.has_news(self._positions):
            thread = threading.Thread(
                target=self._save_last, name=f"last position of {self.group_consumer.group}", daemon=True
            )
            thread.start()
            thread.join(LAST_TIMEOUT)

    def _save_last(self) -> None:
        try:
            self.records.save(self._positions, at_once=True)
        finally:
            connections.close_all()

    def older(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Return those that are not for this group: published again, and for the first time before it started."""
        starts = {stream: start.at for stream, start in self.records.starts.items() if start.at}
        # An event is published after the call that fired it, whose time is in its id.
        ends = {stream: first_id(at + SKEW) for stream, at in starts.items()}
        asked: defaultdict[str, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            stream, message = delivery.entry.stream, delivery.message
            if stream in ends and message and message.id < ends[stream] and has_time(message.id):
                asked[stream].append(delivery)
        found = []
        for stream, those in asked.items():
            ids = [event_bytes(delivery.message.id) for delivery in those if delivery.message]
            times = republished.look_up(self.group_consumer.client, stream, ids)
            older = [delivery for delivery, time in zip(those, times, strict=True) if time and time < starts[stream]]
            if older:
                text = "%s: passed over %d events of %s that were published again: they are older than its start"
                logger.info(text, self.group_consumer.group, len(older), stream)
            found += older
        return found

    def report_stranded(self) -> None:
        """Warn of events that wait for the group where it would read with the other STREAM_USE."""
        for stream in {stream_key(event, self._other_use) for event in self.listener.events}:
            try:
                found = groups(self.group_consumer.client, stream)
            except BusForbidden:
                continue  # where this process may not look, it has not read either
            for group in found:
                if group.name == self.group_consumer.group:
                    self._warn_of(group)

    def _warn_of(self, group: Group) -> None:
        unread = group.lag
        if unread is None and group.last_delivered_id == last_id(self.group_consumer.client, group.stream):
            unread = 0
        if group.pending or unread != 0:
            logger.warning(
                "%s: %s unread and %d pending events in %s, which is not read with this STREAM_USE. Run "
                "lightbus_listen with STREAM_USE %r until they are handled, or give them up: manage.py lightbus_retire "
                "%s --stream '%s'",
                group.name,
                "some" if unread is None else unread,
                group.pending,
                group.stream,
                self._other_use,
                group.name,
                group.stream,
            )

    def _start_id(self, stream: str) -> str:
        """Return where a group that is not there has to begin."""
        was_at = self._positions.get(stream)
        is_seen = was_at is not None
        if was_at is None:
            # It may have had events behind the position that was written down last; the inbox knows which.
            has_handled = self.inbox.has_handled(self._events[stream])
            was_at = None if has_handled else self.records.known.get(stream)
            if was_at is None and not has_handled:
                return self.records.begin(stream, Start.of(self.listener, *self._ends[stream])).id
        start = self.records.starts.get(stream, Start()).id or "0"
        last = id_key(last_id(self.group_consumer.client, stream))
        if was_at is not None and id_key(was_at) <= last:
            place = was_at
        elif self.listener.start != "new" or id_key(start) <= last:
            place = start
        else:
            place = "0"  # another stream under the same name
        if is_seen or place != start or was_at is None:
            logger.warning("%s: the group was gone from %s; made anew at %s", self.group_consumer.group, stream, place)
        return place
