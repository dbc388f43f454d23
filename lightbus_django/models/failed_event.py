"""Failed events: retried until they succeed, become dead letters, or are discarded."""

from datetime import datetime
from typing import ClassVar

from django.db import models, router
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.events.codec import decode, load_fields
from lightbus_django.events.message import EventMessage
from lightbus_django.events.names import MAX_NAME_LENGTH, MAX_STREAM_ID_LENGTH
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import TransactionEnded

from .failed_event_queryset import FailedEventQuerySet
from .processed_event import KEY_LENGTH
from .retry_request import RetryRequest


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
