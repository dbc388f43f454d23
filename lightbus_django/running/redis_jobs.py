"""The periodic jobs in Redis: trimming streams, deleting old consumers, and warnings."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from lightbus_django.bus import streams
from lightbus_django.bus.backlog import read_backlog
from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.events.names import stream_key
from lightbus_django.exceptions import GroupMissing, NotAStream
from lightbus_django.listening.consumer import Consumer
from lightbus_django.listening.registry import registry
from lightbus_django.listening.stranded import report_stranded
from lightbus_django.signals import announce, listener_late

from . import stale_groups
from .health import Health
from .jobs import Job, Jobs, Result, for_each
from .stale_groups import StaleGroups

logger = logging.getLogger("lightbus_django")

TRIM_SIZE = 10_000
"""Entries to trim at a time, which takes Redis a few milliseconds."""

LATE_AFTER = 60.0
"""Seconds after which a listener is late whose oldest event is not handled."""


class RedisJobs:
    """The jobs of one service in Redis."""

    def __init__(
        self,
        consumers: Sequence[Consumer],
        fired_events: Callable[[], Iterable[str]],
        *,
        service_name: str,
        settings: Settings,
        client: RedisClient,
    ) -> None:
        """Create the jobs.

        Args:
            consumers: the consumers of this process.
            fired_events: returns the names of events that the service has fired lately.
        """
        self.jobs = Jobs(
            "Redis",
            [
                Job("trim", self.trim, 60.0, has_more=lambda: True),
                Job("delete old consumers", self.delete_old_consumers, 3600.0),
                Job("check for stale groups", self.check_for_stale_groups, stale_groups.INTERVAL),
                Job("look for late listeners", self.look_for_late_listeners, 60.0),
                Job("check stream ids", self.check_stream_ids, 6 * 3600.0),
            ],
            client,
        )
        self._consumers = consumers
        self._fired_events = fired_events
        self._service_name = service_name
        self._settings = settings
        self._client = client
        self._stale_groups = StaleGroups(client, stale_after=settings.group_stale_after)
        self._health: dict[str, Health] = {}

    def trim(self) -> bool:
        """Trim what every group has finished with and no setting keeps; return whether anything was trimmed."""
        keep_since = datetime.now(UTC) - timedelta(seconds=self._settings.stream_retention)

        def trim(stream: str) -> int:
            return streams.trim(
                self._client,
                stream,
                required_groups=self._groups_of(stream),
                keep_since=keep_since,
                keep_length=self._settings.stream_min_length,
                limit=TRIM_SIZE,
            )

        return any(self._for_each_stream(trim))

    def delete_old_consumers(self) -> bool:
        """Delete the consumers of our groups that have been idle for CONSUMER_TTL and have nothing pending."""

        def delete(consumer: Consumer) -> None:
            idle = self._settings.consumer_ttl
            for stream in consumer.streams:
                with suppress(GroupMissing, NotAStream):  # the consumer is about to create it, or says what is wrong
                    if count := streams.delete_idle_consumers(self._client, stream, consumer.group, idle=idle):
                        logger.info("%s: deleted %d consumers that were idle for CONSUMER_TTL", consumer.group, count)

        for_each(self._consumers, delete)
        return False

    def check_for_stale_groups(self) -> bool:
        """Warn of groups that no process reads, and of events that our groups left in other streams."""
        stream_use = self._settings.stream_use
        for_each(
            self._consumers,
            lambda consumer: report_stranded(self._client, consumer.listener, consumer.group, stream_use),
        )
        missing = self._for_each_stream(lambda stream: self._stale_groups.check(stream, self._groups_of(stream)))
        self._stale_groups.warn_of_missing(set().union(*missing))
        return False

    def look_for_late_listeners(self) -> bool:
        """Send a signal for each listener and stream whose oldest event is late, if there are receivers."""

        def look(consumer: Consumer) -> None:
            for stream in consumer.streams:
                try:
                    backlog = read_backlog(self._client, stream, consumer.group, consumer.offsets.events_of(stream))
                except NotAStream:
                    continue  # the consumer says what is wrong
                if backlog is None or backlog.oldest is None:
                    continue
                seconds = (datetime.now(UTC) - backlog.oldest).total_seconds()
                if seconds > LATE_AFTER:
                    announce(
                        listener_late,
                        consumer.listener.handler,
                        listener_name=consumer.listener.listener_name,
                        consumer_group=consumer.group,
                        stream=stream,
                        seconds=seconds,
                        waiting=backlog.waiting,
                        pending=backlog.pending,
                    )

        if listener_late.receivers:
            for_each((consumer for consumer in self._consumers if not consumer.pause.is_wanted), look)
        return False

    def check_stream_ids(self) -> bool:
        """Warn of streams with ids in the future."""

        def check(stream: str) -> None:
            if (stream_id := streams.first_ahead(self._client, stream)) is not None:
                text = (
                    "%s: stream id %s is in the future, and so are the ids after it; these events are trimmed as soon "
                    "as all groups have acknowledged them, whatever their age"
                )
                logger.warning(text, stream, stream_id)

        self._for_each_stream(check)
        return False

    def _for_each_stream(self, work: Callable[[str], Result]) -> list[Result]:
        """Call `work` with each stream; return the results. Keys that hold something else are left out, and logged."""

        def work_unless_not_a_stream(stream: str) -> list[Result]:
            health = self._health.setdefault(stream, Health(stream, self._client))
            try:
                result = work(stream)
            except NotAStream as error:
                health.failed(error)
                return []
            health.succeeded()
            return [result]

        return [result for results in for_each(self._streams(), work_unless_not_a_stream) for result in results]

    def _groups_of(self, stream: str) -> list[str]:
        """Return the groups of a stream that belong to listeners of this service."""
        return [
            listener.group(self._service_name)
            for listener in registry
            if stream in {stream_key(event, self._settings.stream_use) for event in listener.events}
        ]

    def _streams(self) -> list[str]:
        """Return the streams that this service listens to or has fired to lately."""
        events = {event for listener in registry for event in listener.events}
        events.update(self._fired_events())
        return sorted({stream_key(event, self._settings.stream_use) for event in events})
