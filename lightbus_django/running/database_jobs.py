"""What is done periodically in one database: the relay, due retries, pruning. No other database is waited for."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Self

from django.utils import timezone

from lightbus_django.bus.client import RedisClient
from lightbus_django.conf import Settings
from lightbus_django.database.connections import release_connections
from lightbus_django.database.errors import transient_errors
from lightbus_django.events.names import is_name
from lightbus_django.firing.databases import has_outbox
from lightbus_django.firing.relay import Relay
from lightbus_django.listening.consumer import Consumer
from lightbus_django.models import FailedEvent, OutboxEvent

from .abandoned import find_abandoned
from .jobs import Job, Jobs
from .pruning import cutoffs_at, prune

logger = logging.getLogger("lightbus_django")

LOOK_INTERVAL = 300.0
"""Seconds between two looks at a database without our tables; one that has them is not looked at again."""

SAY_INTERVAL = 5.0
"""Seconds between two lines in the log about what was relayed."""

SAMPLE = 1000
"""Latest rows of the outbox that tell to which streams this service fires."""


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
        """Make the jobs of the database `alias`; `consumers` are those that have their inboxes there."""
        self.alias = alias
        self.service_name = service_name
        self.settings = settings
        self.client = client
        self.has_outbox: bool | None = None
        """Whether the outbox's table is there; None until `look` has had an answer."""
        self.fired_lately: frozenset[str] = frozenset()
        """Names of events in the outbox, as far as `learn_streams` knows."""
        self.jobs = Jobs(
            f"database {alias!r}",
            [
                Job(f"looking for the outbox in {alias!r}", self.look, LOOK_INTERVAL),
                # What comes in one by one is collected for a second.
                Job(f"relay of {alias!r}", self.relay, 1.0, at_once=lambda: self._relay.is_behind),
                Job(f"retries of {alias!r}", self.flag_due_retries, 1.0),
                Job(f"streams of {alias!r}", self.learn_streams, 60.0),
                Job(f"pruning of {alias!r}", self.prune, 3600.0, at_once=lambda: True),
                Job(f"retries nobody makes in {alias!r}", self.report_abandoned_retries, 6 * 3600.0),
            ],
            client,
        )
        self._consumers = consumers
        self._relay = Relay(alias, client, settings)
        self._relayed = 0
        self._say_relayed_at = 0.0
        self._pruning: Iterator[tuple[str, int]] | None = None
        self._pruned: Counter[str] = Counter()

    def look(self) -> bool:
        """Look for the outbox, unless it was found."""
        if not self.has_outbox:
            with transient_errors(self.alias):
                self.has_outbox = has_outbox(self.alias)
            if not self.has_outbox:
                release_connections(idle=True)
        return False

    def known(self) -> Self:
        """Return this, after it has looked once."""
        if self.has_outbox is None:
            self.look()
        return self

    def relay(self) -> bool:
        """Mark what is published, and publish what was left in the outbox."""
        if not self.has_outbox:
            return False
        with transient_errors(self.alias):
            count = self._relay.step(timezone.now())
        self._relayed += count
        if self._relayed and time.monotonic() >= self._say_relayed_at:
            logger.info("relay: %d events that had been left in the outbox of %r", self._relayed, self.alias)
            self._relayed, self._say_relayed_at = 0, time.monotonic() + SAY_INTERVAL
        return bool(count)

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; each makes them in its own thread."""
        if not self._consumers:
            return False
        with transient_errors(self.alias):
            consumers = {consumer.inbox.keys.stored_group: consumer for consumer in self._consumers}
            groups = FailedEvent.objects.using(self.alias).groups_due(consumers, timezone.now())
        for group in groups:
            consumers[group].retries_due.set()
        return bool(groups)

    def report_abandoned_retries(self) -> bool:
        """Warn of retries that nobody makes: of groups of this service that have no listener any more."""
        if not self.has_outbox:
            return False
        with transient_errors(self.alias):
            for found in find_abandoned(self.alias, self.service_name):
                if found.retrying and found.is_ours:
                    logger.warning(
                        "%s: %d failed events in the database %r are not retried: no listener of this service has this "
                        "group any more. To make them dead letters: manage.py lightbus_retire %s",
                        found.group,
                        found.retrying,
                        self.alias,
                        found.group,
                    )
        return False

    def learn_streams(self) -> bool:
        """Learn to which streams this service fired lately."""
        if self.has_outbox:
            latest = OutboxEvent.objects.using(self.alias).order_by("-pk")
            with transient_errors(self.alias):
                self.fired_lately = frozenset(filter(is_name, latest.values_list("event_name", flat=True)[:SAMPLE]))
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
            logger.info("pruned %s of %r", ", ".join(f"{count} {what}" for what, count in total.items()), self.alias)
        return False
