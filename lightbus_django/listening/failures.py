"""Failed events: records failures, and claims retries that are due."""

import logging
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import QuerySet
from django.utils import timezone

from lightbus_django.conf import Settings
from lightbus_django.database.bulk_insert import insert_unless_there
from lightbus_django.database.connections import fetch
from lightbus_django.database.text import storable
from lightbus_django.events.codec import dump_fields
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import TransactionEnded, UnreadableEvent
from lightbus_django.models import FailedEvent, stored_group

from .delivery import Delivery
from .tally import Tally
from .tracebacks import describe, format_traceback, locate, qualified_type, short_place

logger = logging.getLogger("lightbus_django")

_COLUMNS = tuple(
    "event_id consumer_group event_name stream stream_id fields error traceback attempts exception place".split()
)
_TIMES = ("failed_at", "first_failed_at", "next_attempt_at")
_KEPT = "id retry_request failed_before_retry original_fields edited_at edited_by".split()
"""Columns that a row keeps if it has to be inserted again."""

MAX_CONTENT = 7 * 1024 * 1024
"""Characters of an entry that are kept. mysqlclient may send twice as many, and MariaDB takes 16 MiB by default."""

MAX_ERROR = 10_000
MAX_TRACEBACK = 100_000
"""Characters of an error's text and traceback that are kept."""

MAX_HISTORY = 20
"""Attempts and edits that are kept of a failed event: the first and the last ones."""

MAX_IN_HISTORY = 300
"""Characters of an error's text that are kept of each attempt."""


class Failures:
    """The failed events of one consumer group. Its methods raise Django's database errors."""

    def __init__(self, group: str, using: str, process_name: str, settings: Settings, tally: Tally) -> None:
        self.rows = FailedEvent.objects.using(using)
        self._group = group
        self._using = using
        self._process_name = process_name
        self._settings = settings
        self._tally = tally
        self._last_call: tuple[BaseException, float] | None = None

    def note_call(self, error: BaseException, seconds: float) -> None:
        """Remember how long the call of the handler took that raised this error, for the history."""
        self._last_call = error, seconds

    def record(self, delivery: Delivery, error: BaseException) -> FailedEvent:
        """Insert a failed event, unless the event already has one; return it."""
        entry = delivery.entry
        failed = FailedEvent(
            event_id=delivery.key,
            consumer_group=stored_group(self._group, self._using),
            event_name=self._storable(delivery.event_name, "event_name"),
            stream=self._storable(entry.stream, "stream"),
            stream_id=entry.stream_id,
            fields=dump_fields(entry.fields),
            attempts=entry.deliveries,
        )
        if (size := len(failed.fields)) > self._max_content(size):
            failed.fields = dump_fields({})
            error = UnreadableEvent(f"{locate(error)}; its content of {size} characters is too large to keep")
        self._describe(failed, error)
        self._insert(failed)
        self._tally.failed()
        self._log(failed, error)
        return failed

    def _max_content(self, size: int) -> int:
        """Return how many characters of content the database takes; `size` saves MySQL a query if it is small."""
        connection = connections[self._using]
        if connection.vendor == "mysql" and size > MAX_TRACEBACK:
            (packet,) = fetch(connection, "SELECT @@max_allowed_packet")
            return min(MAX_CONTENT, int(packet) // 2 - 4 * MAX_TRACEBACK)
        return MAX_CONTENT

    def _insert(self, failed: FailedEvent) -> None:
        """Insert a row unless the event has one. bulk_create() would ignore other conflicts too."""
        connection = connections[self._using]
        names = (*(() if failed.pk is None else _KEPT), *_COLUMNS, *_TIMES, "history")
        fields: Any = list(map(FailedEvent._meta.get_field, names))
        columns = tuple(field.column for field in fields)
        row = tuple(field.get_db_prep_save(getattr(failed, field.attname), connection) for field in fields)
        insert_unless_there(FailedEvent, self._using, columns, row)

    def claim_due(self, now: datetime) -> FailedEvent | None:
        """Claim the retry that has been due longest, until the acknowledgement timeout has passed."""
        return self.rows.claim_due(stored_group(self._group, self._using), now, self._claimed_until(now))

    def extend_claim(self, failed: FailedEvent, now: datetime) -> bool:
        """Extend a claim; return False if another process has taken it over."""
        until = self._claimed_until(now)
        return bool(self._claimed(failed).update(next_attempt_at=until, claimed_until=until))

    def release(self, failed: FailedEvent, delay: timedelta) -> None:
        """Give up a claim: the attempt was not made, and is due after `delay`."""
        due_at = timezone.now() + delay
        self._claimed(failed).update(attempts=failed.attempts - 1, next_attempt_at=due_at, claimed_until=None)

    def record_retry(self, failed: FailedEvent, error: BaseException) -> None:
        """Record that a retry failed."""
        self._describe(failed, error)
        if isinstance(error, TransactionEnded):  # the handler's own commit may have deleted the row
            self._insert(failed)
        self._claimed(failed).update(
            error=failed.error,
            traceback=failed.traceback,
            exception=failed.exception,
            place=failed.place,
            history=failed.history,
            failed_at=failed.failed_at,
            next_attempt_at=failed.next_attempt_at,
            claimed_until=None,
        )
        self._tally.failed()
        self._log(failed, error)

    def unedited(self, failed: FailedEvent) -> QuerySet[FailedEvent]:
        """Return the row unless its payload was edited since it was claimed."""
        return self.rows.filter(pk=failed.pk, edited_at=failed.edited_at)

    def _claimed(self, failed: FailedEvent) -> QuerySet[FailedEvent]:
        """Return the row unless it was edited, or another process has claimed it since, which counts an attempt."""
        return self.unedited(failed).filter(attempts=failed.attempts, retry_request=failed.retry_request_id)

    def _claimed_until(self, now: datetime) -> datetime:
        return now + timedelta(seconds=max(self._settings.acknowledgement_timeout, self._settings.retry_backoff))

    def _describe(self, failed: FailedEvent, error: BaseException) -> None:
        """Set the error, the history, and the time of the next attempt."""
        failed.failed_at = timezone.now()
        failed.first_failed_at = failed.first_failed_at or failed.failed_at
        failed.exception = self._storable(qualified_type(error), "exception")
        failed.place = self._storable(short_place(error), "place")
        failed.history = self._extended(failed.history or [], failed.failed_at, error)
        failed.error = self._storable(describe(error), "error", MAX_ERROR)
        failed.traceback = self._storable(format_traceback(error), "traceback", MAX_TRACEBACK)
        failed.next_attempt_at = None
        is_final = isinstance(error, (UnreadableEvent, TransactionEnded))
        if failed.attempts < self._settings.max_attempts and not is_final:
            delay = min(self._settings.retry_backoff * 2 ** (failed.attempts - 1), self._settings.retry_backoff_max)
            # Jitter, so that events that failed together are not all retried together.
            failed.next_attempt_at = timezone.now() + timedelta(seconds=delay * random.uniform(0.5, 1))

    def _extended(self, history: list[dict[str, Any]], now: datetime, error: BaseException) -> list[dict[str, Any]]:
        """Return a history with one more attempt."""
        seconds = None
        if self._last_call and any(self._last_call[0] is each for each in (error, error.__cause__)):  # == may raise
            seconds = round(self._last_call[1], 3)
        attempt = {
            "at": as_aware(now).astimezone(UTC).isoformat(timespec="milliseconds"),
            "process": self._storable(self._process_name, "exception"),
            "seconds": seconds,
            "error": self._storable(describe(error), "error", MAX_IN_HISTORY),
        }
        return extended(history, attempt)

    def _storable(self, text: str, name: str, length: int = MAX_ERROR) -> str:
        text = storable(shorten(text, length), FailedEvent._meta.get_field(name), self._using)
        return shorten(text, length)  # escapes are longer than the characters they stand for

    def _log(self, failed: FailedEvent, error: BaseException) -> None:
        logger.log(
            logging.WARNING if failed.next_attempt_at else logging.ERROR,
            "%s: %s %s failed, attempt %d: %s; %s",
            self._group,
            failed.event_name,
            failed.event_id,
            failed.attempts,
            locate(error),
            f"next attempt at {_local(failed.next_attempt_at)}" if failed.next_attempt_at else "it is a dead letter",
            extra={"failed_event_id": failed.event_id},
        )


def extended(history: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a history with one more entry. Beyond MAX_HISTORY, the second ones are dropped."""
    return [*history[:1], *history[1:][-(MAX_HISTORY - 2) :], entry]


def shorten(text: str, length: int) -> str:
    """Replace the middle of a text that is too long."""
    if len(text) <= length:
        return text
    half = length // 2 - 20
    return f"{text[:half]}\n[{len(text) - 2 * half} characters]\n{text[-half:]}"


def _local(time: datetime) -> str:
    """Return the time of day in the server's time zone, which is that of the log."""
    return f"{time.astimezone():%H:%M:%S}"
