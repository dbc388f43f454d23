"""Failed events: recording failures, and claiming retries that are due."""

import logging
import random
from datetime import datetime, timedelta

from django.db import connections
from django.utils import timezone

from lightbus_django.conf import Settings
from lightbus_django.database.bulk_insert import insert_unless_there
from lightbus_django.database.connections import fetch
from lightbus_django.database.text import storable
from lightbus_django.events.codec import dump_fields
from lightbus_django.exceptions import TransactionEnded, UnreadableEvent
from lightbus_django.models import FailedEvent, stored_group

from .delivery import Delivery
from .tracebacks import describe, format_traceback, locate

logger = logging.getLogger("lightbus_django")

_COLUMNS = (
    "event_id",
    "consumer_group",
    "event_name",
    "stream",
    "stream_id",
    "fields",
    "error",
    "traceback",
    "attempts",
)


MAX_CONTENT = 7 * 1024 * 1024
"""Characters of an entry that are kept. MySQL's driver may send twice as many, and MariaDB takes 16 MiB by default."""

MAX_ERROR = 10_000
MAX_TRACEBACK = 100_000
"""Characters of an error's text and traceback that are kept."""


class Failures:
    """The failed events of one consumer group. Its methods raise Django's database errors."""

    def __init__(self, group: str, using: str, settings: Settings) -> None:
        self.group = group
        self.settings = settings
        self._using = using
        self.rows = FailedEvent.objects.using(using)

    def record(self, delivery: Delivery, error: BaseException) -> None:
        """Write down that `delivery` failed, unless that is written already."""
        entry = delivery.entry
        failed = FailedEvent(
            event_id=delivery.key,
            consumer_group=stored_group(self.group, self._using),
            event_name=self._storable(delivery.event_name, "event_name"),
            stream=self._storable(entry.stream, "stream"),
            stream_id=entry.stream_id,
            fields=dump_fields(entry.fields),
            attempts=entry.deliveries,
        )
        if (size := len(failed.fields)) > self._room(size):
            failed.fields = dump_fields({})
            error = UnreadableEvent(f"{locate(error)}; and its content takes {size} characters, too many to keep")
        self._describe(failed, error)
        self._insert(failed)
        self._say(failed, error)

    def _room(self, size: int) -> int:
        """Return how many characters of content the database takes."""
        connection = connections[self._using]
        if connection.vendor == "mysql" and size > MAX_TRACEBACK:
            (packet,) = fetch(connection, "SELECT @@max_allowed_packet")
            return min(MAX_CONTENT, int(packet) // 2 - 4 * MAX_TRACEBACK)
        return MAX_CONTENT

    def _insert(self, failed: FailedEvent) -> None:
        """Insert a row unless the event has one. Not by bulk_create(), which ignores any other conflict too."""
        adapt = connections[self._using].ops.adapt_datetimefield_value
        times = adapt(failed.failed_at), failed.next_attempt_at and adapt(failed.next_attempt_at)
        columns = _COLUMNS if failed.pk is None else ("id", *_COLUMNS)
        row = (*(getattr(failed, name) for name in columns), *times)
        insert_unless_there(FailedEvent, self._using, (*columns, "failed_at", "next_attempt_at"), row)

    def claim_due(self, now: datetime) -> FailedEvent | None:
        """Take the retry that is due longest; it is this process's for the acknowledgement timeout."""
        return self.rows.claim_due(stored_group(self.group, self._using), now, self._lease(now))

    def renew(self, failed: FailedEvent, now: datetime) -> bool:
        """Claim the same attempt for longer; return whether it is still this process's."""
        return bool(self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(next_attempt_at=self._lease(now)))

    def _lease(self, now: datetime) -> datetime:
        return now + timedelta(seconds=max(self.settings.acknowledgement_timeout, self.settings.retry_backoff))

    def record_again(self, failed: FailedEvent, error: BaseException) -> None:
        """Write down that an attempt failed that was claimed before."""
        self._describe(failed, error)
        if isinstance(error, TransactionEnded):  # the row may have gone with the handler's commit
            self._insert(failed)
        # By its count of attempts the row shows whether it is still this process's.
        self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(
            error=failed.error,
            traceback=failed.traceback,
            failed_at=timezone.now(),
            next_attempt_at=failed.next_attempt_at,
        )
        self._say(failed, error)

    def give_back(self, failed: FailedEvent, delay: timedelta) -> None:
        """Undo a claim: the attempt was not made, and is due after `delay`."""
        self.rows.filter(pk=failed.pk, attempts=failed.attempts).update(
            attempts=failed.attempts - 1, next_attempt_at=timezone.now() + delay
        )

    def _describe(self, failed: FailedEvent, error: BaseException) -> None:
        failed.error = self._storable(describe(error), "error", MAX_ERROR)
        failed.traceback = self._storable(format_traceback(error), "traceback", MAX_TRACEBACK)
        failed.next_attempt_at = None
        is_final = isinstance(error, (UnreadableEvent, TransactionEnded))
        if failed.attempts < self.settings.max_attempts and not is_final:
            delay = min(self.settings.retry_backoff * 2 ** (failed.attempts - 1), self.settings.retry_backoff_max)
            # Jitter, so that events that failed together are not all retried together.
            failed.next_attempt_at = timezone.now() + timedelta(seconds=delay * random.uniform(0.5, 1))

    def _storable(self, text: str, name: str, length: int = MAX_ERROR) -> str:
        text = storable(_shorten(text, length), FailedEvent._meta.get_field(name), self._using)
        return _shorten(text, length)  # for escapes are longer than what they stand for

    def _say(self, failed: FailedEvent, error: BaseException) -> None:
        logger.log(
            logging.WARNING if failed.next_attempt_at else logging.ERROR,
            "%s: %s %s failed, attempt %d: %s; %s",
            self.group,
            failed.event_name,
            failed.event_id,
            failed.attempts,
            locate(error),
            f"next attempt at {_local(failed.next_attempt_at)}" if failed.next_attempt_at else "it is a dead letter",
        )


def _shorten(text: str, length: int) -> str:
    """Leave out the middle of a text that is too long."""
    if len(text) <= length:
        return text
    half = length // 2 - 20
    return f"{text[:half]}\n[{len(text) - 2 * half} characters]\n{text[-half:]}"


def _local(time: datetime) -> str:
    """Return the time of day in the zone that is the log's as well."""
    return f"{time.astimezone():%H:%M:%S}"
