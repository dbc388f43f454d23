"""The periodic jobs in one database: relaying, due retries, pruning. They never wait for another database."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from django.utils import timezone

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.connections import release_connections
from lightbus_django.database.errors import transient_errors
from lightbus_django.firing.databases import has_outbox
from lightbus_django.firing.relay import Relay
from lightbus_django.listening.consumer import Consumer
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent

from .jobs import Job, Jobs
from .orphaned_groups import find_orphaned_groups
from .pruning import cutoffs_at, prune

logger = logging.getLogger("lightbus_django")

DETECT_INTERVAL = 300.0
"""Seconds between two checks of a database without our tables. Once found, the tables are not checked again."""

RELAY_LOG_INTERVAL = 5.0
"""Minimum seconds between two log lines about relayed events."""


class DatabaseJobs:
    """The jobs of one database."""

    def __init__(
        self,
        alias: str,
        consumers: Sequence[Consumer],
        *,
        service_name: str,
        settings: Settings,
        client: RedisClient,
    ) -> None:
        """Create the jobs of the database `alias`; `consumers` are those with their inbox there."""
        self.alias = alias
        self.service_name = service_name
        self.settings = settings
        self.client = client
        self.has_outbox: bool | None = None
        """Whether the outbox's table exists; None before `detect_outbox` has succeeded."""
        self.fired_events: frozenset[str] = frozenset()
        """Names of events that were fired lately, as of the last `sample_fired_events`."""
        self.jobs = Jobs(
            f"database {alias!r}",
            [
                Job(f"detection of the outbox in {alias!r}", self.detect_outbox, DETECT_INTERVAL),
                # Events that arrive one by one are relayed together, once a second.
                Job(f"relay of {alias!r}", self.relay, 1.0, has_more=lambda: self._relay.is_behind),
                Job(f"retries of {alias!r}", self.flag_due_retries, 1.0),
                Job(f"pauses of {alias!r}", self.apply_pauses, 2.0),
                Job(f"fired events of {alias!r}", self.sample_fired_events, 60.0),
                Job(f"pruning of {alias!r}", self.prune, 3600.0, has_more=lambda: True),
                Job(f"check for orphaned groups in {alias!r}", self.warn_of_orphaned_groups, 6 * 3600.0),
            ],
            client,
        )
        self._consumers = consumers
        self._relay = Relay(alias, client, settings)
        self._relayed = 0
        self._log_relayed_at = 0.0
        self._pruning: Iterator[tuple[str, int]] | None = None
        self._pruned: Counter[str] = Counter()

    def detect_outbox(self) -> bool:
        """Check whether the outbox's table exists, unless it was found before."""
        if not self.has_outbox:
            with transient_errors(self.alias):
                self.has_outbox = has_outbox(self.alias)
            if not self.has_outbox:
                release_connections(idle=True)
        return False

    def relay(self) -> bool:
        """Mark published rows of the outbox, and publish some of those that are due; return whether any were."""
        if not self.has_outbox:
            return False
        with transient_errors(self.alias):
            count = self._relay.step(timezone.now())
        self._relayed += count
        if self._relayed and time.monotonic() >= self._log_relayed_at:
            logger.info("relay: published %d events left in the outbox of %r", self._relayed, self.alias)
            self._relayed, self._log_relayed_at = 0, time.monotonic() + RELAY_LOG_INTERVAL
        return bool(count)

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; return whether there are any. Each retries in its own thread."""
        if not self._consumers:
            return False
        with transient_errors(self.alias):
            consumers = {consumer.inbox.keys.stored_group: consumer for consumer in self._consumers}
            groups = FailedEvent.objects.using(self.alias).groups_due(consumers, timezone.now())
        for group in groups:
            consumers[group].retries_due.set()
        return bool(groups)

    def apply_pauses(self) -> bool:
        """Let the consumers rest whose groups are paused, and the others go on."""
        if not self._consumers:
            return False
        with transient_errors(self.alias):
            paused = ConsumerGroup.objects.using(self.alias).paused()
        for consumer in self._consumers:
            if consumer.group in paused:
                consumer.pause.begin(paused[consumer.group])
            else:
                consumer.pause.end()
        return False

    def sample_fired_events(self) -> bool:
        """Update `fired_events` from the latest rows of the outbox."""
        if self.has_outbox:
            with transient_errors(self.alias):
                self.fired_events = frozenset(OutboxEvent.objects.using(self.alias).latest_names())
        return False

    def prune(self) -> bool:
        """Delete some old rows; return whether there may be more."""
        if not self.has_outbox:
            return False
        if self._pruning is None:
            self._pruning = prune(self.alias, cutoffs_at(datetime.now(UTC), self.settings, self.client))
            self._pruned.clear()
        pruning, self._pruning = self._pruning, None
        with transient_errors(self.alias):
            for what, count in pruning:
                self._pruned[what] += count
                self._pruning = pruning
                return True
        if total := +self._pruned:
            deleted = ", ".join(f"{count} {what}" for what, count in total.items())
            logger.info("pruned %s from database %r", deleted, self.alias)
        return False

    def warn_of_orphaned_groups(self) -> bool:
        """Warn of groups of this service that have failed events to retry but no listener."""
        if not self.has_outbox:
            return False
        with transient_errors(self.alias):
            for group in find_orphaned_groups(self.alias, self.service_name):
                if group.retrying and group.is_ours:
                    logger.warning(
                        "%s: %d failed events in database %r are not retried, because this service has no listener for "
                        "the group. To turn them into dead letters, run: manage.py lightbus_retire %s",
                        group.name,
                        group.retrying,
                        self.alias,
                        group.name,
                    )
        return False
