"""What is done periodically in one database: the relay, due retries, pruning. No other database is waited for."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Self

from django.utils import timezone

from .conf import Settings
from .database import transient_errors
from .jobs import Job, Jobs
from .messages import is_name
from .models import FailedEvent, OutboxEvent, has_outbox
from .pooling import release_connections
from .pruning import cutoffs_at, prune
from .relay import relay
from .transport import Transport

logger = logging.getLogger("lightbus_django")

LOOK_INTERVAL = 300.0
"""Seconds between two looks at a database without our tables; one that has them is not looked at again."""

SAMPLE = 1000
"""Latest rows of the outbox that tell to which streams this service fires."""


class Maintenance:
    """The jobs of one database."""

    def __init__(
        self, alias: str, retries_due: Mapping[str, threading.Event], *, settings: Settings, transport: Transport
    ) -> None:
        """Make the jobs of the database `alias`.

        Args:
            retries_due: what to set when a consumer group that has its inbox there has retries due, by group.
        """
        self.alias = alias
        self.settings = settings
        self.transport = transport
        self.has_outbox: bool | None = None
        """Whether the outbox's table is there; None until `look` has had an answer."""
        self.fired_lately: frozenset[str] = frozenset()
        """Names of events in the outbox, as far as `learn_streams` knows."""
        self.jobs = Jobs(
            f"database {alias!r}",
            [
                Job(f"looking for the outbox in {alias!r}", self.look, LOOK_INTERVAL),
                Job(f"relay of {alias!r}", self.relay, 1.0, at_once=True),
                Job(f"retries of {alias!r}", self.flag_due_retries, 1.0),
                Job(f"streams of {alias!r}", self.learn_streams, 60.0),
                Job(f"pruning of {alias!r}", self.prune, 3600.0, at_once=True),
            ],
        )
        self._retries_due = retries_due
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
            count = relay(self.alias, timezone.now(), self.transport, self.settings)
        if count:
            logger.info("relay: %d events that had been left in the outbox of %r", count, self.alias)
        return bool(count)

    def flag_due_retries(self) -> bool:
        """Tell the consumers that have retries due; each makes them in its own thread."""
        if not self._retries_due:
            return False
        due = FailedEvent.objects.using(self.alias).due(timezone.now()).filter(consumer_group__in=self._retries_due)
        with transient_errors(self.alias):
            groups = set(due.values_list("consumer_group", flat=True).distinct())
        for group in groups:
            self._retries_due[group].set()
        return bool(groups)

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
            self._pruning = prune(self.alias, cutoffs_at(datetime.now(UTC), self.settings, self.transport))
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
