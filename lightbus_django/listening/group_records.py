"""What the database knows of a listener's consumer group: where it started in each stream, and its last offset."""

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db import Error as DatabaseError
from django.db import router
from django.utils import timezone

from lightbus_django.database.errors import one_line, transient_errors
from lightbus_django.events.ids import event_key
from lightbus_django.events.names import MAX_NAME_LENGTH
from lightbus_django.events.times import as_aware, as_stored, is_ahead, stream_time
from lightbus_django.exceptions import DatabaseUnavailable
from lightbus_django.models import ConsumerGroup

from .listener import Listener

logger = logging.getLogger("lightbus_django")

SAVE_INTERVAL = 15.0
"""Seconds between two saves of the offsets, if they have changed."""

SEEN_INTERVAL = 60.0
"""Seconds between two saves of the offsets, if they have not changed."""

REMIND_INTERVAL = 3600.0
"""Seconds between two warnings that the rows can't be read or written."""


class Start(NamedTuple):
    """Where a group started in a stream."""

    id: str = ""
    """The stream id after which it started; empty if unknown."""

    at: datetime | None = None
    """The group gets no event that was first published before this time; None if it gets every event."""

    @classmethod
    def of(cls, listener: Listener, last_id: str, now: datetime) -> "Start":
        """Return where a new group of a listener starts.

        Args:
            last_id: the stream's last generated id.
            now: the time of Redis.
        """
        start = listener.start
        if start == "beginning":
            return cls("0")
        if isinstance(start, datetime):
            return cls(listener.start_id, as_aware(start))
        if start != "new":
            return cls(start, now if is_ahead(start, now) else stream_time(start))
        # If its clock was set back, Redis goes on from the last id.
        after_last = stream_time(last_id) + timedelta(milliseconds=1)
        return cls(last_id, now if is_ahead(last_id, now) else max(after_last, now))


class GroupRecords:
    """The rows of one listener's group, one for each stream.

    If they can't be read or written, the listener goes on, and this is tried again.
    """

    def __init__(self, listener: Listener, group: str, service_name: str, streams: Mapping[str, Sequence[str]]) -> None:
        """Make the records; nothing is read before `load`.

        Args:
            streams: the names of the events that the listener gets from each stream.
        """
        self.listener = listener
        self.group = group
        self.using = listener.using or router.db_for_write(ConsumerGroup)
        self.starts: dict[str, Start] = {}
        """Where the group started in each stream, as far as known."""
        self.saved: dict[str, str] = {}
        """The offset that the database has for each stream."""
        self.paused_by: str | None = None
        """Who has paused the listener, as of the last `load`; None if it is not paused."""
        self._streams = streams
        self._service_name = service_name
        self._rows = ConsumerGroup.objects.using(self.using)
        self._keys = {stream: event_key(f"{stream}/{group}") for stream in streams}
        self._is_loaded = False
        self._save_at = self._seen_at = self._warn_at = 0.0

    def load(self) -> None:
        """Read the rows.

        Raises:
            DatabaseUnavailable
        """
        try:
            with transient_errors(self.using):
                rows = {row.key: row for row in self._rows.filter(pk__in=self._keys.values())}
        except DatabaseError as error:  # the tables may be those of the previous version
            self._warn(error)
            return
        self._is_loaded = True
        self.paused_by = next((row.paused_by for row in rows.values() if row.paused_at is not None), None)
        for stream, key in self._keys.items():
            if (row := rows.get(key)) is not None:
                self._learn(stream, row)

    def save_start(self, stream: str, start: Start) -> Start:
        """Save where a new group will start, before it is created.

        Returns where it does start: another process may have been faster.
        """
        self.starts[stream] = start
        try:
            with transient_errors(self.using):
                self._learn(stream, self._get_or_create(stream, start.id))
        except (DatabaseUnavailable, DatabaseError) as error:
            self._warn(error)
        return self.starts[stream]

    def save(self, offsets: Mapping[str, str], now: float | None = None, *, at_once: bool = False) -> None:
        """Save the offsets of the group, unless that was done within the interval.

        Args:
            offsets: by stream, the stream id up to which the group is done with everything.
            now: the time on the monotonic clock, in seconds.
            at_once: don't wait for the end of the interval.
        """
        if now is None:
            now = time.monotonic()
        if now < self._save_at and not at_once:
            return
        self._save_at = now + SAVE_INTERVAL
        is_seen = now >= self._seen_at
        try:
            if not self._is_loaded:
                self.load()
            with transient_errors(self.using):
                for stream, offset in offsets.items():
                    if is_seen or offset != self.saved.get(stream):
                        self._save(stream, offset)
        except (DatabaseUnavailable, DatabaseError) as error:
            self._warn(error)
            return
        if is_seen:
            self._seen_at = now + SEEN_INTERVAL

    def is_behind(self, offsets: Mapping[str, str]) -> bool:
        """Whether the database lacks any of these offsets."""
        return any(offset != self.saved.get(stream) for stream, offset in offsets.items())

    def _save(self, stream: str, offset: str) -> None:
        row = self._rows.filter(pk=self._keys[stream])
        if not row.update(position=offset, seen_at=timezone.now(), **self._names(stream)):
            self._learn(stream, self._get_or_create(stream, offset))
        self.saved[stream] = offset

    def _get_or_create(self, stream: str, offset: str) -> ConsumerGroup:
        start = self.starts.get(stream, Start())
        row, _ = self._rows.get_or_create(
            pk=self._keys[stream],
            defaults={
                **self._names(stream),
                "consumer_group": self.group,
                "stream": stream,
                "start_id": start.id,
                "starts_at": None if start.at is None else as_stored(start.at),
                "position": offset,
            },
        )
        return row

    def _names(self, stream: str) -> dict[str, str]:
        return {
            "service_name": self._service_name[:MAX_NAME_LENGTH],
            "listener_name": self.listener.listener_name[:MAX_NAME_LENGTH],
            "event_names": "\n".join(self._streams[stream]),
        }

    def _learn(self, stream: str, row: ConsumerGroup) -> None:
        at = None if row.starts_at is None else as_aware(row.starts_at).astimezone(UTC)
        self.starts[stream] = Start(row.start_id, at)
        self.saved[stream] = row.position

    def _warn(self, error: Exception) -> None:
        if (now := time.monotonic()) >= self._warn_at:
            self._warn_at = now + REMIND_INTERVAL
            text = "%s: can't read or write the row of this consumer group; continuing without it, and retrying: %s"
            logger.warning(text, self.group, one_line(error))
