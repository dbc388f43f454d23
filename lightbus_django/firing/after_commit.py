"""Publishes the events of a transaction after its commit."""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from weakref import ref

from django.db import Error as DatabaseError
from django.utils import timezone

from lightbus_django.bus.client import RedisClient, get_client
from lightbus_django.conf import get_settings
from lightbus_django.database.rollback_detector import RollbackDetector
from lightbus_django.exceptions import BusError, BusUnavailable, BusUnsupported, NodeDown
from lightbus_django.models import Claim, OutboxEvent

from .publisher import GRACE, publish_and_confirm
from .rows import PIPELINE_BYTES, EncodedRow, in_pipelines, read_rows

logger = logging.getLogger("lightbus_django")

MARGIN = GRACE / 2
"""Rows that are due within this time are claimed before they are published."""


class CommitHook:
    """The commit hook for the events of one call. Django drops it if the savepoint around the call is rolled back."""

    def __init__(self, transaction_events: "TransactionEvents", rows: list[EncodedRow]) -> None:
        self.transaction_events = transaction_events
        self.rows = rows
        self.is_done = False

    def publish(self) -> None:
        if not self.is_done:
            self.transaction_events.publish(self)


class TransactionEvents:
    """The events of one transaction. After the commit, the first hook that runs publishes all of them."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        # While Redis is down, only a relay will publish the rows. It may do so as soon as Redis is back.
        self.due_at = timezone.now() + (timedelta() if _client().is_down else GRACE)
        self.hooks: list[ref[CommitHook]] = []
        """Weak references: a hook that Django has dropped is gone, and its events with it."""
        self.size = 0
        self.claims: list[Claim] = []
        self.in_transaction = connection.in_atomic_block
        self.detector = RollbackDetector.of(connection)
        self.observation = self.detector.observe()

    @classmethod
    def of(cls, connection: Any) -> "TransactionEvents":
        """Return the events of the open transaction, found by their hooks, or a new object."""
        if connection.in_atomic_block:
            for _, callback, _ in reversed(connection.run_on_commit):
                hook = getattr(callback, "__self__", None)
                if isinstance(hook, CommitHook):
                    return hook.transaction_events
        return cls(connection)

    def add(self, rows: Iterable[EncodedRow]) -> None:
        """Add the rows of one call, with a hook of their own."""
        self.detector.check()
        hook = CommitHook(self, [self._without_fields_beyond_limit(row) for row in rows])
        self.hooks.append(ref(hook))
        self.connection.on_commit(hook.publish, robust=True)

    def _without_fields_beyond_limit(self, row: EncodedRow) -> EncodedRow:
        """Drop the fields if the transaction has too many to keep in memory. They are read before publishing."""
        self.size += row.size
        return row._replace(fields={}) if self.size > PIPELINE_BYTES else row

    def publish(self, hook: CommitHook) -> None:
        """Publish the events of `hook` and, after a commit, those of all other hooks.

        If the transaction is still open, a test runs its hooks, with `captureOnCommitCallbacks` for instance. Then only
        the events of `hook` are published.
        """
        queued = {id(getattr(callback, "__self__", None)) for _, callback, _ in self.connection.run_on_commit}
        is_open = id(hook) in queued
        if is_open:
            self.detector.check()
            hooks = [hook]
        else:
            alive = (reference() for reference in self.hooks)
            hooks = [each for each in alive if each and not each.is_done and id(each) not in queued]
        for each in hooks:
            each.is_done = True
        in_doubt = self.observation.in_doubt or not (is_open or self.observation.is_committed)
        self._publish([row for each in hooks for row in each.rows], in_doubt=in_doubt)

    def _publish(self, rows: Sequence[EncodedRow], *, in_doubt: bool) -> None:
        settings, client, left = get_settings(), _client(), len(rows)
        if not client.take_turn():
            logger.debug("outbox: %d events wait for the relay: Redis at %s is down", left, client)
            return
        try:
            if client.is_down:
                client.send([(b"PING",)])  # raises unless Redis answers
            problems: list[BusUnavailable] = []
            for chunk in in_pipelines(rows, attrgetter("size")):
                ours = self._with_fields(self._ours(chunk, timezone.now(), in_doubt=in_doubt))
                unreachable = publish_and_confirm(ours, self.connection.alias, client, settings)
                left -= len(chunk) - len(unreachable)
                problems += unreachable
            for problem in problems:
                if not isinstance(problem, NodeDown):
                    raise problem
            if problems:
                logger.debug("outbox: %d events wait for the relay: %s", left, problems[0])
        except (BusError, DatabaseError) as error:
            level = logging.ERROR if isinstance(error, BusUnsupported) else logging.WARNING
            logger.log(level, "outbox: %d events wait for the relay: %s", left, error)

    def _with_fields(self, rows: Sequence[EncodedRow]) -> Sequence[EncodedRow]:
        """Return the rows with their fields. Fields that were dropped are read; rows that are gone are left out."""
        missing = [row.id for row in rows if not row.fields]
        if not missing:
            return rows
        events = OutboxEvent.objects.using(self.connection.alias).filter(pk__in=missing)
        found = {row.id: row for row in read_rows(events)}
        return [found.get(row.id, row) for row in rows if row.fields or row.id in found]

    def _ours(self, rows: Sequence[EncodedRow], now: datetime, *, in_doubt: bool) -> Sequence[EncodedRow]:
        """Return the rows that exist and that no relay has taken.

        Rows don't exist if they were rolled back although the hook runs. A relay may have taken them if the transaction
        took so long that they are due.
        """
        is_late = now > self.due_at - MARGIN
        if not is_late and not (in_doubt and self.in_transaction):
            return rows
        outbox = OutboxEvent.objects.using(self.connection.alias)
        events = outbox.filter(pk__in=[row.id for row in rows])
        if is_late:
            claim = Claim(now + GRACE)
            events.claim(now, claim)
            self.claims.append(claim)
            # Any other claim may be a relay's, and a relay publishes more events than the one it claims.
            if outbox.claimed_by_others(now, self.claims).exists():
                events.release(claim)
            events = events.claimed_by(claim)
        ours = set(events.values_list("pk", flat=True))
        return [row for row in rows if row.id in ours]


def _client() -> RedisClient:
    settings = get_settings()
    return get_client(settings.url, settings.redis_timeout)
