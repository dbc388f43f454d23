"""Everything periodic but the renewal of leases: relay, due retries, trimming, pruning, consumers long gone."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import Error as DatabaseError
from django.db import connections, router
from django.utils import timezone

from . import streams
from .conf import Settings
from .consumer import Consumer
from .database import close_broken, nobody_to_blame
from .exceptions import GroupMissing, LightbusError
from .listeners import Registry, registry
from .messages import is_name, stream_key
from .models import FailedEvent, OutboxEvent
from .pruning import Cutoffs, prune
from .relay import relay
from .transport import Transport

logger = logging.getLogger("lightbus_django")

AFTER_FAILURE = 5.0
"""Seconds until a job that failed runs again."""

TRIM_SIZE = 10_000
"""How many entries are trimmed at a time; it takes Redis some milliseconds."""

SAMPLE = 1000
"""Latest rows of the outbox that tell to which streams this service fires."""


@dataclass
class _Job:
    run: Callable[[], bool]
    interval: float
    at_once: bool = False  # again at once while there is something to do
    due_at: float = 0.0


class Housekeeping:
    """What one thread of a worker does beside its consumers."""

    def __init__(self, consumers: Sequence[Consumer], *, settings: Settings, transport: Transport) -> None:
        self.consumers = consumers
        self.settings = settings
        self.transport = transport
        self._jobs = [
            _Job(self.relay, 1.0, at_once=True),
            _Job(self.flag_due_retries, 1.0),
            _Job(self.trim, 60.0, at_once=True),
            _Job(self.prune, 3600.0, at_once=True),
            _Job(self.tidy_consumers, 3600.0),
            _Job(self.report_stale_groups, 6 * 3600.0),
        ]
        self._has_outbox: dict[str, bool] = {}
        self._pruning: Iterator[tuple[str, int]] | None = None
        self._pruned: Counter[str] = Counter()

    def step(self, now: float | None = None) -> bool:
        """Run what is due at `now`, seconds on the monotonic clock; return whether there was something to do.

        A job that fails does not keep the others from running.
        """
        if now is None:
            now = time.monotonic()
        busy = False
        for job in self._jobs:
            if now < job.due_at:
                continue
            job.due_at = now + job.interval
            try:
                if job.run():
                    busy = True
                    job.due_at = now if job.at_once else job.due_at
            except (LightbusError, DatabaseError) as error:
                job.due_at = now + max(job.interval, AFTER_FAILURE)
                logger.warning("%s: %s", job.run.__name__, error)
        return busy

    # --- What is left or due ------------------------------------------------------------------

    def relay(self) -> bool:
        """Publish what was left in the outboxes."""
        count = 0
        for alias in self._outboxes():
            try:
                count += relay(alias, timezone.now(), self.transport, self.settings.stream_use)
            except DatabaseError as error:
                close_broken()
                logger.warning("relay: database %r: %s", alias, error)
        if count:
            logger.info("relay: %d events had been left in the outbox", count)
        return bool(count)

    def _outboxes(self) -> list[str]:
        """Return the aliases of the databases that have an outbox, as far as they answer."""
        for alias in connections:
            if alias not in self._has_outbox:
                try:
                    self._has_outbox[alias] = has_outbox(alias)
                except DatabaseError as error:
                    close_broken()
                    logger.warning("relay: database %r: %s", alias, error)
        return [alias for alias, has in self._has_outbox.items() if has]

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; each makes them in its own thread."""
        groups: dict[str, dict[str, Consumer]] = {}
        for consumer in self.consumers:
            groups.setdefault(consumer.inbox.using, {})[consumer.group] = consumer
        flagged = False
        for alias, consumers in groups.items():
            due = FailedEvent.objects.using(alias).due(timezone.now()).filter(consumer_group__in=consumers)
            with nobody_to_blame(alias):
                names = set(due.values_list("consumer_group", flat=True).distinct())
            for name in names:
                consumers[name].retries_due.set()
                flagged = True
        return flagged

    # --- What is no longer needed -------------------------------------------------------------

    def trim(self) -> bool:
        """Trim our streams of what every group has finished with, beyond what is to be kept anyway."""
        keep_since = timezone.now() - timedelta(seconds=self.settings.stream_retention)
        count = 0
        for stream in our_streams(self._outboxes(), self.settings):
            count += streams.trim(
                self.transport,
                stream,
                groups=[consumer.group for consumer in self.consumers if stream in consumer.streams],
                keep_since=keep_since,
                keep_length=self.settings.stream_min_length,
                limit=TRIM_SIZE,
            )
        if count:
            logger.debug("trimmed %d entries", count)
        return bool(count)

    def prune(self) -> bool:
        """Delete some old rows; return whether there may be more."""
        if self._pruning is None:
            cutoffs = cutoffs_at(timezone.now(), self.settings, self.transport)
            self._pruning = (step for alias in self._outboxes() for step in prune(alias, cutoffs))
            self._pruned.clear()
        try:
            what, count = next(self._pruning, ("", 0))
        except BaseException:
            self._pruning = None
            raise
        if what:
            self._pruned[what] += count
            return True
        self._pruning = None
        if total := +self._pruned:
            logger.info("pruned %s", ", ".join(f"{count} {what}" for what, count in total.items()))
        return False

    def tidy_consumers(self) -> bool:
        """Delete consumers of our groups that have nothing pending and were idle for CONSUMER_TTL."""
        for consumer in self.consumers:
            for stream in consumer.streams:
                try:
                    count = streams.tidy_consumers(
                        self.transport, stream, consumer.group, idle=self.settings.consumer_ttl
                    )
                except GroupMissing:
                    continue  # its consumer is about to create it
                if count:
                    logger.info("%s: deleted %d consumers that are long gone", consumer.group, count)
        return False

    def report_stale_groups(self) -> bool:
        """Warn of groups that nobody reads, and that keep events from being trimmed."""
        for stream in our_streams(self._outboxes(), self.settings):
            for group in stale_groups(self.transport, stream, self.settings.group_stale_after):
                logger.warning(
                    "nobody has read the group %s of %s for %.1f days; for its sake %s events are kept. If its "
                    "listener is gone for good: manage.py lightbus_retire %s",
                    group.name,
                    stream,
                    group.unread_since(timezone.now()) / 86400,
                    "?" if group.lag is None else group.lag + group.pending,
                    group.name,
                )
        return False


def has_outbox(alias: str) -> bool:
    """Whether the outbox's table is in this database; where several are configured, it need not be in all."""
    table = OutboxEvent._meta.db_table
    return router.allow_migrate_model(alias, OutboxEvent) and table in connections[alias].introspection.table_names()


def our_streams(outboxes: Iterable[str], settings: Settings, listeners: Registry = registry) -> list[str]:
    """Return the streams that this service listens to, and those to which its outboxes fired lately."""
    events = {event for listener in listeners for event in listener.events}
    for alias in outboxes:
        latest = OutboxEvent.objects.using(alias).order_by("-pk")
        with nobody_to_blame(alias):
            events.update(filter(is_name, latest.values_list("event_name", flat=True)[:SAMPLE]))
    return sorted({stream_key(event, settings.stream_use) for event in events})


def cutoffs_at(now: datetime, settings: Settings, transport: Transport) -> Cutoffs:
    """Return what is old at `now`, given what the streams hold that this service listens to."""
    ages = (streams.oldest(transport, stream) for stream in our_streams([], settings))
    return Cutoffs.at(now, settings, min((age for age in ages if age is not None), default=None))


def stale_groups(transport: Transport, stream: str, after: float) -> list[streams.Group]:
    """Return the groups that nobody has read for `after` seconds, and that have something left to read."""
    now = timezone.now()
    return [
        group
        for group in streams.groups(transport, stream)
        # A listener that waits for events of a quiet stream may not have asked for long.
        if group.unread_since(now) > after and (group.pending or group.lag != 0)
    ]
