"""The tables: what was processed, what failed, what waits to be published."""

from collections.abc import Iterable
from datetime import datetime
from typing import ClassVar

from django.conf import settings as django_settings
from django.db import connections, models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .exceptions import TransactionEnded
from .ids import uuid7
from .indexes import NotNullIndex
from .messages import MAX_NAME_LENGTH, EventMessage, decode, load_fields

KEY_LENGTH = 80


def as_stored(time: datetime) -> datetime:
    """Return an aware time as the database has it: a naive one where USE_TZ is off."""
    return time if django_settings.USE_TZ else timezone.make_naive(time)


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

    def claim_due(self, consumer_group: str, now: datetime, lease_until: datetime) -> "FailedEvent | None":
        """Take the retry that is due longest, counting its attempt before it is made."""
        features = transaction.get_connection(self.db).features
        with transaction.atomic(using=self.db):
            failed = (
                self.due(now)
                .filter(consumer_group=consumer_group)
                .select_for_update(skip_locked=features.has_select_for_update_skip_locked)
                .order_by("next_attempt_at")
                .first()
            )
            if failed is None:
                return None
            taken = self.filter(pk=failed.pk, attempts=failed.attempts, next_attempt_at=failed.next_attempt_at)
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

    def retry_now(self) -> None:
        """Make the event due at once, with all its attempts before it."""
        FailedEvent.objects.using(self._state.db).filter(pk=self.pk).retry_now()

    def discard(self) -> None:
        """Give the event up: for its consumer group it counts as processed from now on."""
        with transaction.atomic(using=self._state.db):
            # The row first, as a retry does: neither waits for the other's lock, nor is a success overwritten.
            if FailedEvent.objects.using(self._state.db).filter(pk=self.pk).delete()[0]:
                ProcessedEvent.objects.using(self._state.db).update_or_create(
                    event_id=self.event_id,
                    consumer_group=self.consumer_group,
                    defaults={"event_name": self.event_name, "discarded": True, "processed_at": timezone.now()},
                )


class OutboxEventQuerySet(models.QuerySet["OutboxEvent"]):
    def published(self, since: datetime, until: datetime) -> "OutboxEventQuerySet":
        """Return what was published from `since` on, and before `until`."""
        return self.filter(due_at=None, published_at__gte=since, published_at__lt=until)

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


def has_outbox(alias: str) -> bool:
    """Whether the outbox's table is in this database; where several are configured, it need not be in all."""
    if connections[alias].vendor == "unknown":  # DATABASES = {"default": {}, ...}
        return False
    table = OutboxEvent._meta.db_table
    return router.allow_migrate_model(alias, OutboxEvent) and table in connections[alias].introspection.table_names()
