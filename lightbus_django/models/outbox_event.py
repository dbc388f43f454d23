"""The outbox: events of committed transactions, from the commit until they are published and pruned."""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, NamedTuple, NewType
from uuid import UUID

from django.db import models
from django.db.models.expressions import Combinable
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from lightbus_django.database.indexes import NotNullIndex
from lightbus_django.database.text import storable
from lightbus_django.events.ids import uuid7
from lightbus_django.events.names import MAX_NAME_LENGTH, MAX_STREAM_ID_LENGTH, is_name

LATEST = 1000
"""Number of the latest rows whose event names are taken for those that the service fires."""

_FIRST = UUID(int=0)

Claim = NewType("Claim", datetime)
"""The time at which a claim ends. To the microsecond, it also identifies the claim."""


class QueuePosition(NamedTuple):
    """A position in the queue of due events. They are published in this order."""

    due_at: datetime
    id: UUID = _FIRST


class OutboxEventQuerySet(models.QuerySet["OutboxEvent"]):
    """Events by state, and the methods that change their state.

    An event is *unpublished* or *published*. An unpublished one is

    - *waiting* until `due_at`: the process that committed it publishes it;
    - *due* from then on: any relay may publish it;
    - *claimed* until `claimed_until`: one process is publishing it, and no other may;
    - *refused* while it has an error: it could not be published, and waits until it is due again.

    Its publication may be confirmed in Redis before it is marked here. A published event has no `due_at`. Published
    again, it is due, and keeps the time of its first publication.
    """

    def unpublished(self) -> "OutboxEventQuerySet":
        return self.filter(due_at__isnull=False)

    def waiting(self, until: datetime) -> "OutboxEventQuerySet":
        """Return the events that are not due by this time."""
        return self.filter(due_at__gt=until)

    def due(self, now: datetime) -> "OutboxEventQuerySet":
        """Return the events that are due, in the order of the queue."""
        return self.filter(due_at__lte=now).order_by("due_at", "pk")

    def at(self, position: QueuePosition) -> "OutboxEventQuerySet":
        """Return the event at this position of the queue, if it is still there."""
        return self.filter(due_at=position.due_at, pk=position.id)

    def starting_at(self, position: QueuePosition) -> "tuple[OutboxEventQuerySet, OutboxEventQuerySet]":
        """Return the events from this position of the queue on, as two querysets to be read one after the other.

        Not every database finds the position in its index if one condition says both.
        """
        return (
            self.filter(due_at=position.due_at, pk__gte=position.id),
            self.filter(due_at__gt=position.due_at),
        )

    def claimed(self, now: datetime) -> "OutboxEventQuerySet":
        """Return the events that a process is publishing. A relay claims only the first of its events."""
        return self.filter(claimed_until__gt=now, due_at__isnull=False)

    def claimed_by(self, claim: Claim) -> "OutboxEventQuerySet":
        """Return the events that this claim holds."""
        return self.filter(claimed_until=claim)

    def claimed_by_others(self, now: datetime, own: Sequence[Claim]) -> "OutboxEventQuerySet":
        """Return the events that a process is publishing, other than those of its `own` claims."""
        return self.claimed(now).exclude(claimed_until__in=own)

    def latest_names(self) -> set[str]:
        """Return the names of the LATEST events."""
        return set(filter(is_name, self.order_by("-pk").values_list("event_name", flat=True)[:LATEST]))

    def refused(self) -> "OutboxEventQuerySet":
        """Return the events that could not be published, oldest first."""
        return self.exclude(due_at=None).exclude(error="").order_by("pk")

    def published(self, since: datetime | None = None, until: datetime | None = None) -> "OutboxEventQuerySet":
        """Return the events that were first published at `since` or later, and before `until`."""
        events = self.filter(due_at=None)
        if since is not None:
            events = events.filter(published_at__gte=since)
        return events if until is None else events.filter(published_at__lt=until)

    def claim(self, now: datetime, claim: Claim) -> int:
        """Claim the unpublished events that no other process has claimed; return how many."""
        free = models.Q(claimed_until=None) | models.Q(claimed_until__lte=now)
        return self.filter(free, due_at__isnull=False).update(claimed_until=claim)

    def release(self, claim: Claim) -> int:
        """End a claim early; return how many events it still held."""
        return self.claimed_by(claim).update(claimed_until=None)

    def mark_published(self, published_at: Combinable, stream_id: Combinable) -> int:
        """Mark the events as published at these times with these stream ids; return how many."""
        # First, because MySQL evaluates the expression with the columns that are already assigned.
        return self.update(published_at=published_at, stream_id=stream_id, due_at=None, claimed_until=None, error="")

    def put_off(self, until: datetime, error: str) -> int:
        """Mark the events as refused, and due again at `until`; return how many."""
        text = storable(error, self.model._meta.get_field("error"), self.db)
        return self.update(due_at=until, claimed_until=None, error=text)

    def postpone(self, until: datetime) -> int:
        """Let unpublished events be due at `until`, because the node of their streams is down; return how many."""
        return self.unpublished().update(due_at=until, claimed_until=None)

    def publish_again(self) -> int:
        """Make published events due, so that a relay publishes them again under their ids; return how many."""
        return self.filter(due_at=None).update(due_at=timezone.now())


class OutboxEvent(models.Model):
    """An event of a committed transaction; OutboxEventQuerySet lists its states.

    The id is the event's own, and ordered by time, so old rows are found along it. Due events are published in the
    order of `due_at`, which all events of a transaction share, and id. Only the relay's queries may depend on that
    index: it covers few rows, however many are published.
    """

    id = models.UUIDField(_("event id"), primary_key=True, default=uuid7, editable=False)
    event_name = models.CharField(_("event"), max_length=MAX_NAME_LENGTH)
    version = models.PositiveIntegerField(_("version"), default=1)
    payload = models.TextField(_("payload"))
    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    due_at = models.DateTimeField(
        _("due at"),
        null=True,
        blank=True,
        help_text=_("From this time on, any relay may publish the event. Empty once it is published."),
    )
    claimed_until = models.DateTimeField(
        _("claimed until"), null=True, blank=True, help_text=_("Until this time, one process is publishing the event.")
    )
    published_at = models.DateTimeField(_("published at"), null=True, blank=True)
    stream_id = models.CharField(
        _("stream id"),
        max_length=MAX_STREAM_ID_LENGTH,
        db_default="",
        blank=True,
        help_text=_("Of the last publication. Empty if it is not known, or not published."),
    )
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
