"""Failed events: retried until they succeed, become dead letters, or are discarded."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

from django.core.exceptions import EmptyResultSet
from django.db import connections, models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.database.bulk_insert import inserting
from lightbus_django.database.text import storable
from lightbus_django.events.codec import decode, load_fields
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import MAX_NAME_LENGTH, MAX_STREAM_ID_LENGTH
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import TransactionEnded

from .processed_event import KEY_LENGTH, ProcessedEvent
from .retry_request import RetryRequest


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
            events = FailedEvent.objects.using(using).filter(pk__in=list(locked.values_list("pk", flat=True)))
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
                    events = FailedEvent.objects.using(using).filter(pk__in=keys)
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

    @property
    def _write_alias(self) -> str:
        alias: str = self._db or router.db_for_write(self.model, **self._hints)  # type: ignore[attr-defined]
        return alias


class FailedEvent(models.Model):
    """An event whose handling raised. It is *retrying* if it has a next attempt, else a *dead letter*."""

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(_("event id"), max_length=KEY_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    stream = models.CharField(_("stream"), max_length=MAX_NAME_LENGTH + 20)
    stream_id = models.CharField(_("stream id"), max_length=MAX_STREAM_ID_LENGTH)
    fields = models.TextField(
        _("content"), help_text=_("The entry as it was in the stream, unless its payload was edited.")
    )
    error = models.TextField(_("error"))
    traceback = models.TextField(_("traceback"), blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=1)
    failed_at = models.DateTimeField(_("failed at"), default=timezone.now)
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True, blank=True)
    exception = models.CharField(
        _("exception"),
        max_length=200,
        db_default="",
        blank=True,
        help_text=_("The qualified type of the last error."),
    )
    place = models.CharField(
        _("place"),
        max_length=255,
        db_default="",
        blank=True,
        help_text=_("Where the project's own code raised it, or called the code that did."),
    )
    first_failed_at = models.DateTimeField(_("first failed at"), null=True, blank=True)
    history = models.JSONField(
        _("history"),
        null=True,
        blank=True,
        help_text=_("The failed attempts: when, which process, how long, error. Edits: when, who, before and after."),
    )
    retry_request = models.ForeignKey(
        RetryRequest,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        db_constraint=False,
        related_name="failed_events",
        verbose_name=_("retry request"),
        help_text=_("The last request to retry it."),
    )
    failed_before_retry = models.DateTimeField(
        _("failed before the retry"),
        null=True,
        blank=True,
        help_text=_("What 'failed at' was at the time of the request. If they differ, it has failed again."),
    )
    original_fields = models.TextField(  # noqa: DJ001 - MySQL has no default for text columns
        _("content as fired"),
        null=True,
        blank=True,
        help_text=_("The entry as it was in the stream, if it was edited."),
    )
    edited_at = models.DateTimeField(_("edited at"), null=True, blank=True)
    claimed_until = models.DateTimeField(
        _("claimed until"),
        null=True,
        blank=True,
        help_text=_("Until then, the process that is retrying it has it to itself."),
    )
    edited_by = models.CharField(_("edited by"), max_length=150, db_default="", blank=True)

    objects = FailedEventQuerySet.as_manager()

    class Meta:
        verbose_name = _("failed event")
        verbose_name_plural = _("failed events")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["event_id", "consumer_group"], name="lightbus_failed_once"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["next_attempt_at"], name="lightbus_failed_due"),
            models.Index(fields=["consumer_group", "next_attempt_at"], name="lightbus_failed_group_due"),
            models.Index(fields=["exception", "place"], name="lightbus_failed_exception"),
            models.Index(fields=["place"], name="lightbus_failed_place"),
        ]
        permissions: ClassVar = [
            ("retry_failedevent", "Can retry failed events"),
            ("discard_failedevent", "Can discard failed events"),
            ("edit_failedevent", "Can edit the payload of failed events and retry them"),
        ]

    def __str__(self) -> str:
        return f"{self.event_name} {self.event_id}"

    @property
    def is_dead_letter(self) -> bool:
        return self.next_attempt_at is None

    def is_in_hand(self, now: datetime) -> bool:
        """Whether a process is retrying it; `now` is aware."""
        return self.claimed_until is not None and as_aware(self.claimed_until) > now

    @property
    def is_edited(self) -> bool:
        """Whether this listener gets another payload than the one that was fired."""
        return self.original_fields is not None

    @property
    def may_have_effects(self) -> bool:
        """Whether the failed attempt may have left effects, because its handler ended the transaction."""
        return self.error.startswith(TransactionEnded.__name__)

    def message(self) -> EventMessage:
        """Return the event as its handler gets it; raises UnreadableEvent."""
        return decode(load_fields(self.fields), self.stream_id, attempt=self.attempts)

    def retry_now(self, using: str | None = None) -> None:
        """Make the event due now, with all its attempts ahead of it; `using` is as for `save`."""
        self._row(using).retry_now()

    def discard(self, using: str | None = None, *, by: str = "", reason: str = "") -> None:
        """Delete the event and count it as processed by its consumer group.

        `using` is as for `save`, the rest as for `FailedEventQuerySet.discard`.
        """
        self._row(using).discard(by, reason)

    def content(self) -> dict[str, str]:
        """Return the fields of the entry as text; bytes that are not UTF-8 are escaped."""
        return {
            name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
            for name, value in load_fields(self.fields).items()
        }

    def _row(self, using: str | None) -> FailedEventQuerySet:
        using = using or router.db_for_write(FailedEvent, instance=self)
        return FailedEvent.objects.using(using).filter(pk=self.pk)


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
