"""The inbox: an idempotency key for each event that a consumer group has processed."""

from typing import ClassVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.database.text import storable
from lightbus_django.events.names import MAX_NAME_LENGTH, MAX_STREAM_ID_LENGTH

KEY_LENGTH = 80


class ProcessedEvent(models.Model):
    """An idempotency key: the effects of this event in this consumer group, or its failure, are committed.

    Rows of earlier versions don't say which process handled the event, from which entry, and in which attempt.

    There are only two indexes. Rows are inserted and deleted in the order of `id`, so old rows are found along it. The
    unique constraint starts with the event id, which is ordered by time too, and is what people search for.
    """

    id = models.BigAutoField(primary_key=True)
    event_id = models.CharField(_("event id"), max_length=KEY_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    processed_at = models.DateTimeField(_("processed at"), default=timezone.now)
    discarded = models.BooleanField(_("discarded"), default=False)
    process_name = models.CharField(_("process"), max_length=MAX_NAME_LENGTH, db_default="", blank=True)
    stream_id = models.CharField(_("stream id"), max_length=MAX_STREAM_ID_LENGTH, db_default="", blank=True)
    attempts = models.PositiveIntegerField(_("attempts"), null=True, blank=True)
    discarded_by = models.CharField(_("discarded by"), max_length=150, db_default="", blank=True)
    discard_reason = models.CharField(_("reason"), max_length=255, db_default="", blank=True)
    edited_by = models.CharField(
        _("payload edited by"),
        max_length=150,
        db_default="",
        blank=True,
        help_text=_("Who edited the payload that this listener gets. Empty: it is as it was fired."),
    )

    class Meta:
        verbose_name = _("processed event")
        verbose_name_plural = _("processed events")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["event_id", "consumer_group"], name="lightbus_processed_once"),
        ]

    def __str__(self) -> str:
        return f"{self.event_name} {self.event_id}"


def stored_group(consumer_group: str, using: str) -> str:
    """Return the name of a consumer group as the database `using` stores it."""
    return storable(consumer_group, ProcessedEvent._meta.get_field("consumer_group"), using)
