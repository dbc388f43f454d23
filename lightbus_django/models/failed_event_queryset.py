"""Queries of failed events: which are due, claimed or requested; and their discard."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db import connections, models, router, transaction
from django.utils import timezone

from lightbus_django.database.bulk_insert import inserting
from lightbus_django.database.text import storable

from .processed_event import ProcessedEvent
from .retry_request import RetryRequest

if TYPE_CHECKING:
    from .failed_event import FailedEvent


class FailedEventQuerySet(models.QuerySet["FailedEvent"]):
    def due(self, now: datetime) -> "FailedEventQuerySet":
        """Return the events whose next attempt is due."""
        return self.unclaimed(now).filter(next_attempt_at__lte=now)

    def unclaimed(self, now: datetime) -> "FailedEventQuerySet":
        """Return the events that no process is retrying."""
        return self.filter(models.Q(claimed_until=None) | models.Q(claimed_until__lte=now))

    def groups_due(self, consumer_groups: Iterable[str], now: datetime) -> set[str]:
        """Return which of these consumer groups have retries due. The cost doesn't grow with the number of retries."""
        due = self.due(now)
        return (
            {group for group in consumer_groups if due.filter(consumer_group=group).exists()} if due.exists() else set()
        )

    def retry_now(self) -> int:
        """Make the events due now, with all their attempts ahead of them; return how many.

        It leaves out events that a process is retrying.
        """
        now = timezone.now()
        return self.unclaimed(now).update(attempts=0, next_attempt_at=now)

    def request_retry(self, request: RetryRequest) -> int:
        """Make the events due now, and part of a request, which counts them; return how many.

        This is one transaction. It leaves out events that a process is retrying.
        """
        using, now = self._write_alias, timezone.now()
        features = transaction.get_connection(using).features
        requests = RetryRequest.objects.using(using).filter(pk=request.pk)
        with transaction.atomic(using=using):
            requests.update(total=models.F("total"))  # the lock of SQLite is only certain if a write comes first
            rows = self.using(using).unclaimed(now).order_by("pk")
            locked = rows.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
            events = self._rows(using, list(locked.values_list("pk", flat=True)))
            events.leave_requests()
            count = events.update(
                attempts=0,
                next_attempt_at=now,
                retry_request=request.pk,
                failed_before_retry=models.F("failed_at"),
            )
            requests.update(total=models.F("total") + count)
        return count

    def leave_requests(self) -> None:
        """Let the requests of these events count them as gone, before they are deleted or join another request.

        The rows must be locked by the current transaction.
        """
        has_failed = models.Count("pk", filter=~models.Q(failed_at=models.F("failed_before_retry")))
        leaving = self.exclude(retry_request=None).order_by("retry_request").values_list("retry_request")
        for key, count, failed in leaving.annotate(count=models.Count("pk"), failed=has_failed):
            RetryRequest.objects.using(self._write_alias).filter(pk=key).update(
                failed_again=models.F("failed_again") + failed, withdrawn=models.F("withdrawn") + count - failed
            )

    def discard(self, by: str = "", reason: str = "") -> int:
        """Delete the events and count them as processed by their consumer groups; return how many.

        This is one transaction. It waits for retries that are running.

        Args:
            by: who discards them.
            reason: why.
        """
        using = self._write_alias
        events = self.using(using).order_by("pk")
        try:
            with transaction.atomic(using=using):
                # Lock the rows first, as a retry does. Otherwise the two may deadlock, or a success be overwritten.
                # SQLite has a single lock, which is only certain if the transaction begins with a write.
                if transaction.get_connection(using).features.has_select_for_update:
                    keys = list(events.select_for_update().values_list("pk", flat=True))
                    events = self._rows(using, keys)
                _insert_discarded(events, by[:150], reason[:255])
                events.leave_requests()
                # If there are receivers of delete signals, Django loads the rows: leave out the large columns.
                return events.order_by().only("event_id", "consumer_group", "event_name").delete()[0]
        except EmptyResultSet:
            return 0

    def claim_due(self, consumer_group: str, now: datetime, lease_until: datetime) -> "FailedEvent | None":
        """Claim the retry that has been due longest, and count its attempt; return None if none is due.

        Args:
            lease_until: no other process makes this retry before then.
        """
        using = self._write_alias
        features = transaction.get_connection(using).features
        with transaction.atomic(using=using):
            failed = (
                self.using(using)
                .due(now)
                .filter(consumer_group=consumer_group)
                .select_for_update(skip_locked=features.has_select_for_update_skip_locked)
                .order_by("next_attempt_at")
                .first()
            )
            if failed is None:
                return None
            unchanged = self.using(using).filter(
                pk=failed.pk, attempts=failed.attempts, next_attempt_at=failed.next_attempt_at
            )
            # Workers of earlier versions look at next_attempt_at only.
            claim = {"next_attempt_at": lease_until, "claimed_until": lease_until}
            if not unchanged.update(attempts=failed.attempts + 1, **claim):
                return None  # the database can't lock rows, and another process was faster
        failed.attempts += 1
        return failed

    def _rows(self, using: str, keys: list[int]) -> "FailedEventQuerySet":
        return FailedEventQuerySet(self.model, using=using).filter(pk__in=keys)

    @property
    def _write_alias(self) -> str:
        alias: str = self._db or router.db_for_write(self.model, **self._hints)  # type: ignore[attr-defined]
        return alias


def _insert_discarded(events: "models.QuerySet[FailedEvent]", by: str, reason: str) -> None:
    """Insert or update the idempotency keys of failed events without loading the events; raises EmptyResultSet."""
    connection: Any = connections[events.db]
    keys = ProcessedEvent._meta
    now = timezone.now()
    by = storable(by, keys.get_field("discarded_by"), events.db)
    reason = storable(reason, keys.get_field("discard_reason"), events.db)
    rows = events.order_by("event_id", "consumer_group").values_list(
        "event_id",
        "consumer_group",
        "event_name",
        "stream_id",
        models.Value(True),
        models.Value(now, models.DateTimeField()),
        models.Value(by),
        models.Value(reason),
    )
    select, parameters = rows.query.get_compiler(events.db).as_sql()
    is_mysql = connection.vendor == "mysql"
    conflict = "DUPLICATE KEY UPDATE" if is_mysql else "CONFLICT (event_id, consumer_group) DO UPDATE SET"
    with inserting(ProcessedEvent, events.db), connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {connection.ops.quote_name(keys.db_table)}"
            f" (event_id, consumer_group, event_name, stream_id, discarded, processed_at, discarded_by, discard_reason)"
            f" {select} ON {conflict} discarded = %s, processed_at = %s, discarded_by = %s, discard_reason = %s",
            [*parameters, True, connection.ops.adapt_datetimefield_value(now), by, reason],
        )
