"""Where consumer groups started, and how far they were."""

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.events.names import MAX_NAME_LENGTH, MAX_STREAM_ID_LENGTH

from .processed_event import KEY_LENGTH


class ConsumerGroupQuerySet(models.QuerySet["ConsumerGroup"]):
    def paused(self) -> dict[str, str]:
        """Return the names of the groups that are paused, and who asked for it."""
        return dict(self.filter(paused_at__isnull=False).values_list("consumer_group", "paused_by"))

    def pause(self, by: str) -> int:
        """Pause the groups that are not paused yet; return the number of rows."""
        return self.filter(paused_at=None).update(paused_at=timezone.now(), paused_by=by)

    def resume(self) -> int:
        """End the pauses; return the number of rows."""
        return self.filter(paused_at__isnull=False).update(paused_at=None, paused_by="")


class ConsumerGroup(models.Model):
    """A consumer group of one stream: where it started, and its position when it was last seen.

    Redis has the current position. This row is for when Redis loses its data.
    """

    key = models.CharField(primary_key=True, max_length=KEY_LENGTH, editable=False)
    """Stream and group, made into a key by `event_key`. Some databases ignore case in names; Redis does not."""
    service_name = models.CharField(_("service"), max_length=MAX_NAME_LENGTH)
    listener_name = models.CharField(_("listener"), max_length=MAX_NAME_LENGTH)
    consumer_group = models.CharField(_("consumer group"), max_length=MAX_NAME_LENGTH + 1)
    stream = models.CharField(_("stream"), max_length=MAX_NAME_LENGTH + 20)
    event_names = models.TextField(
        _("events"), help_text=_("The events that the listener gets from this stream, one per line.")
    )
    began_at = models.DateTimeField(_("began at"), default=timezone.now)
    start_id = models.CharField(
        _("started after"), max_length=MAX_STREAM_ID_LENGTH, blank=True, help_text=_("A stream id. Empty if unknown.")
    )
    starts_at = models.DateTimeField(
        _("starts at"),
        null=True,
        blank=True,
        help_text=_("The listener skips events first published before this time. Empty: it skips none."),
    )
    position = models.CharField(
        _("position"),
        max_length=MAX_STREAM_ID_LENGTH,
        help_text=_("All entries up to this stream id are acknowledged."),
    )
    seen_at = models.DateTimeField(_("last seen at"), default=timezone.now)
    paused_at = models.DateTimeField(
        _("paused at"), null=True, blank=True, help_text=_("Since this time, the listener rests in all processes.")
    )
    paused_by = models.CharField(_("paused by"), max_length=150, db_default="", blank=True)

    objects = ConsumerGroupQuerySet.as_manager()

    class Meta:
        verbose_name = _("consumer group")
        verbose_name_plural = _("bus")  # the admin's page shows what the groups do

    def __str__(self) -> str:
        return f"{self.consumer_group} of {self.stream}"
