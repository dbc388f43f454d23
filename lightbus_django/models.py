"""The tables: what was processed, what failed, what waits to be published, and how far consumer groups are."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

from django.core.exceptions import EmptyResultSet
from django.db import connections, models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .database.bulk_insert import inserting
from .database.connections import named_by_listeners
from .database.indexes import NotNullIndex
from .database.text import storable
from .events.codec import decode, load_fields
from .events.ids import uuid7
from .events.message import EventMessage
from .events.names import MAX_NAME_LENGTH
from .exceptions import TransactionEnded

KEY_LENGTH = 80


class ProcessedEvent(models.Model):
    """An idempotency key: this consumer group has this event's effects, or its failure, in the database.

    No index but two: rows come and go in the order of `id`, so age is found along it, and the unique
    constraint starts with the event id, which comes in order too and is what people search for.
    """

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(_("event id"), max_length=KEY_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    processed_at = models.DateTimeField(_("processed at"), default=timezone.now)
    discarded = models.BooleanField(_("discarded"), default=False)

    class Meta:
        verbose_name = _("processed event")
        verbose_name_plural = _("processed events")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["event_id", "consumer_group"], name="lightbus_processed_once"),
        ]

    def __str__(self) -> str:
        return f"{self.event_name} {self.event_id}"


def stored_group(consumer_group: str, using: str) -> str:
    """Return the name of a consumer group as the tables of a database have it."""
    return storable(consumer_group, ProcessedEvent._meta.get_field("consumer_group"), using)


class FailedEventQuerySet(models.QuerySet["FailedEvent"]):
    def due(self, now: datetime) -> "FailedEventQuerySet":
        return self.filter(next_attempt_at__lte=now)

    def groups_due(self, consumer_groups: Iterable[str], now: datetime) -> set[str]:
        """Return those of some groups that have retries due. It takes no longer when many are."""
        due = self.due(now)
        return (
            {group for group in consumer_groups if due.filter(consumer_group=group).exists()} if due.exists() else set()
        )

    def retry_now(self) -> int:
        """Make the events due at once, with all their attempts before them; return how many."""
        return self.update(attempts=0, next_attempt_at=timezone.now())

    def discard(self) -> int:
        """Give the events up: for their consumer groups they count as processed from now on; return how many.

        In one transaction, which waits for retries that are being made.
        """
        using = self._db or router.db_for_write(self.model, **self._hints)  # type: ignore[attr-defined]
        events = self.using(using).order_by("pk")
        try:
            with transaction.atomic(using=using):
                # The rows first, as a retry does: neither waits for the other's lock, nor is a success overwritten.
                # SQLite has one lock, which a transaction gets for sure only if it begins with a write.
                if transaction.get_connection(using).features.has_select_for_update:
                    keys = list(events.select_for_update().values_list("pk", flat=True))
                    events = FailedEvent.objects.using(using).filter(pk__in=keys)
                _insert_discarded(events)
                # Receivers of signals, if there are any, would load what is large.
                return events.order_by().only("event_id", "consumer_group", "event_name").delete()[0]
        except EmptyResultSet:
            return 0

    def claim_due(self, consumer_group: str, now: datetime, lease_until: datetime) -> "FailedEvent | None":
        """Take the retry that is due longest, counting its attempt before it is made."""
        using = self._db or router.db_for_write(self.model, **self._hints)  # type: ignore[attr-defined]
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
            taken = self.using(using).filter(
                pk=failed.pk, attempts=failed.attempts, next_attempt_at=failed.next_attempt_at
            )
            if not taken.update(attempts=failed.attempts + 1, next_attempt_at=lease_until):
                return None  # where nothing can be locked, another process was faster
        failed.attempts += 1
        return failed


class FailedEvent(models.Model):
    """A handling that raised. With a next attempt it is *retrying*, without one it is a *dead letter*."""

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(_("event id"), max_length=KEY_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    stream = models.CharField(_("stream"), max_length=MAX_NAME_LENGTH + 20)
    stream_id = models.CharField(_("stream id"), max_length=41)
    fields = models.TextField(_("content"), help_text=_("The entry as it stood in the stream."))
    error = models.TextField(_("error"))
    traceback = models.TextField(_("traceback"), blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), default=1)
    failed_at = models.DateTimeField(_("failed at"), default=timezone.now)
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True, blank=True)

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
        ]
        permissions: ClassVar = [
            ("retry_failedevent", "Can retry failed events"),
            ("discard_failedevent", "Can discard failed events"),
        ]

    def __str__(self) -> str:
        return f"{self.event_name} {self.event_id}"

    @property
    def is_dead_letter(self) -> bool:
        return self.next_attempt_at is None

    @property
    def may_have_effects(self) -> bool:
        """Whether an attempt that failed may have left effects, for its handler ended the transaction itself."""
        return self.error.startswith(TransactionEnded.__name__)

    def message(self) -> EventMessage:
        """Return the event as it is given to its handler; raises UnreadableEvent."""
        return decode(load_fields(self.fields), self.stream_id, attempt=self.attempts)

    def retry_now(self, using: str | None = None) -> None:
        """Make the event due at once, with all its attempts before it; `using` is as in `save`."""
        using = using or router.db_for_write(FailedEvent, instance=self)
        FailedEvent.objects.using(using).filter(pk=self.pk).retry_now()

    def discard(self, using: str | None = None) -> None:
        """Give the event up: for its consumer group it counts as processed from now on; `using` is as in `save`."""
        using = using or router.db_for_write(FailedEvent, instance=self)
        FailedEvent.objects.using(using).filter(pk=self.pk).discard()


def _insert_discarded(events: "models.QuerySet[FailedEvent]") -> None:
    """Insert or update the keys of failed events, without loading these; raises EmptyResultSet."""
    connection: Any = connections[events.db]
    keys = ProcessedEvent._meta
    now = timezone.now()
    rows = events.order_by("event_id", "consumer_group").values_list(
        "event_id", "consumer_group", "event_name", models.Value(True), models.Value(now, models.DateTimeField())
    )
    select, parameters = rows.query.get_compiler(events.db).as_sql()
    is_mysql = connection.vendor == "mysql"
    conflict = "DUPLICATE KEY UPDATE" if is_mysql else "CONFLICT (event_id, consumer_group) DO UPDATE SET"
    with inserting(ProcessedEvent, events.db), connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {connection.ops.quote_name(keys.db_table)}"
            f" (event_id, consumer_group, event_name, discarded, processed_at) {select}"
            f" ON {conflict} discarded = %s, processed_at = %s",
            [*parameters, True, connection.ops.adapt_datetimefield_value(now)],
        )


class OutboxEventQuerySet(models.QuerySet["OutboxEvent"]):
    def published(self, since: datetime, until: datetime) -> "OutboxEventQuerySet":
        """Return what was published from `since` on, and before `until`."""
        return self.filter(due_at=None, published_at__gte=since, published_at__lt=until)

    def refused(self) -> "OutboxEventQuerySet":
        """Return what Redis did not take, oldest first."""
        return self.exclude(due_at=None).exclude(error="").order_by("pk")

    def claim(self, now: datetime, until: datetime) -> int:
        """Keep relays away from waiting rows for a while, unless somebody else does; return from how many."""
        free = models.Q(claimed_until=None) | models.Q(claimed_until__lte=now)
        return self.filter(free, due_at__isnull=False).update(claimed_until=until)

    def claimed(self, now: datetime) -> "OutboxEventQuerySet":
        """Return the waiting rows that somebody is publishing, or the first of them."""
        return self.filter(claimed_until__gt=now, due_at__isnull=False)

    def release(self, until: datetime) -> int:
        """End a claim before its time; return how many rows it still held."""
        return self.filter(claimed_until=until).update(claimed_until=None)

    def publish_again(self) -> int:
        """Let the relay publish again, under their ids, those that are published; return how many."""
        return self.filter(due_at=None).update(due_at=timezone.now())


class OutboxEvent(models.Model):
    """An event of a committed transaction. It is waiting to be published until `due_at` is null.

    The id is the event's own, and in time order: rows are found by age along it. They are relayed in the order of
    `due_at`, which all events of a transaction share, and id. No query but those of the relay may depend on the index:
    its part of the rows that wait is small, however many are published.
    """

    id = models.UUIDField(_("event id"), primary_key=True, default=uuid7, editable=False)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    version = models.PositiveIntegerField(_("version"), default=1)
    payload = models.TextField(_("payload"))
    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    due_at = models.DateTimeField(
        _("due at"), null=True, blank=True, help_text=_("From then on any relay may publish it; empty once published.")
    )
    claimed_until = models.DateTimeField(
        _("claimed until"), null=True, blank=True, help_text=_("Until then somebody is publishing it.")
    )
    published_at = models.DateTimeField(_("published at"), null=True, blank=True)
    error = models.TextField(_("error"), blank=True)

    objects = OutboxEventQuerySet.as_manager()

    class Meta:
        verbose_name = _("outbox event")
        verbose_name_plural = _("outbox events")
        indexes: ClassVar = [
            NotNullIndex(fields=["due_at", "id"], name="lightbus_outbox_waiting"),
            NotNullIndex(fields=["claimed_until"], name="lightbus_outbox_claimed"),
        ]
        permissions: ClassVar = [("republish_outboxevent", "Can publish outbox events again")]

    def __str__(self) -> str:
        return f"{self.event_name} {self.id}"


class ConsumerGroup(models.Model):
    """A consumer group in one stream: where it started, and how far it was when it was last seen.

    Redis knows it better, until it loses its data.
    """

    key = models.CharField(primary_key=True, max_length=KEY_LENGTH, editable=False)
    """Stream and group, as `event_key` makes a key of them: some databases ignore case, and Redis does not."""
    service_name = models.CharField(_("service"), max_length=MAX_NAME_LENGTH)
    listener_name = models.CharField(_("listener"), max_length=MAX_NAME_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    stream = models.CharField(_("stream"), max_length=MAX_NAME_LENGTH + 20)
    event_names = models.TextField(_("events"), help_text=_("Those that the listener gets of this stream, one a line."))
    began_at = models.DateTimeField(_("began at"), default=timezone.now)
    start_id = models.CharField(
        _("started behind"), max_length=41, blank=True, help_text=_("A stream id; empty if it is unknown.")
    )
    starts_at = models.DateTimeField(
        _("starts at"),
        null=True,
        blank=True,
        help_text=_("Events that were first published before then are not for it. Empty: all are."),
    )
    position = models.CharField(
        _("position"), max_length=41, help_text=_("The stream id up to which everything was acknowledged.")
    )
    seen_at = models.DateTimeField(_("last seen at"), default=timezone.now)

    class Meta:
        verbose_name = _("consumer group")
        verbose_name_plural = _("consumer groups")

    def __str__(self) -> str:
        return f"{self.consumer_group} of {self.stream}"


def is_written(alias: str) -> bool:
    """Whether events may be staged in this database: the router writes there, or a listener names it with `using`."""
    if not router.allow_migrate_model(alias, OutboxEvent):
        return False
    is_routed = router.db_for_write(OutboxEvent, instance=_row_in(alias)) == alias
    return is_routed or named_by_listeners[alias] > 0


@lru_cache
def _row_in(alias: str) -> OutboxEvent:
    row = OutboxEvent()
    row._state.db = alias
    return row


def has_outbox(alias: str) -> bool:
    """Whether the outbox's table is in this database, and written there: not that of a replica, for instance."""
    if connections[alias].vendor == "unknown":  # DATABASES = {"default": {}, ...}
        return False
    return is_written(alias) and OutboxEvent._meta.db_table in connections[alias].introspection.table_names()
