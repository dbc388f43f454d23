"""Everything periodic but the renewal of leases: relay, due retries, tidy-up of consumers."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.db import Error as DatabaseError
from django.db import connections, router
from django.utils import timezone

from .conf import Settings
from .consumer import Consumer
from .database import close_broken
from .exceptions import BusError, GroupMissing
from .models import FailedEvent, OutboxEvent
from .outbox import relay
from .transport import Transport

logger = logging.getLogger("lightbus_django")


AFTER_FAILURE = 5.0
"""Seconds until a job that failed runs again."""


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
            _Job(self.tidy_consumers, 3600.0),
        ]
        self._has_outbox: dict[str, bool] = {}

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
            except (BusError, DatabaseError) as error:
                job.due_at = now + max(job.interval, AFTER_FAILURE)
                logger.warning("%s: %s", job.run.__name__, error)
        return busy

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
            try:
                names = set(due.values_list("consumer_group", flat=True).distinct())
            except DatabaseError:
                close_broken()
                raise
            for name in names:
                consumers[name].retries_due.set()
                flagged = True
        return flagged

    def tidy_consumers(self) -> bool:
        """Delete consumers of our groups that have nothing pending and were idle for CONSUMER_TTL."""
        for consumer in self.consumers:
            for stream in consumer.streams:
                try:
                    count = self.transport.tidy_consumers(stream, consumer.group, idle=self.settings.consumer_ttl)
                except GroupMissing:
                    continue  # its consumer is about to create it
                if count:
                    logger.info("%s: deleted %d consumers that are long gone", consumer.group, count)
        return False


def has_outbox(alias: str) -> bool:
    """Whether the outbox's table is in this database; where several are configured, it need not be in all."""
    table = OutboxEvent._meta.db_table
    return router.allow_migrate_model(alias, OutboxEvent) and table in connections[alias].introspection.table_names()
