import json
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lightbus_django.models import OutboxEvent, OutboxEventQuerySet

from .base import EventAdmin, LatestValuesFilter, shorten


class PublishedFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("waiting", _("Waiting")), ("published", _("Published"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> OutboxEventQuerySet:
        events: OutboxEventQuerySet = queryset
        if self.value() is None:
            return events
        return events.published() if self.value() == "published" else events.unpublished()


@admin.register(OutboxEvent)
class OutboxEventAdmin(EventAdmin):
    actions = ("publish_again",)
    list_display = ("short_id", "event_name", "created_at", "published_at", "error")
    list_filter = (PublishedFilter, ("event_name", LatestValuesFilter), "created_at")
    name_fields = ("event_name",)
    search_fields = ("id",)
    fields = ("id", "event_name", "version", "content", "created_at", "due_at", "published_at", "error")

    def search_condition(self, term: str) -> Q:
        try:
            return Q(pk=UUID(term))
        except ValueError:
            return Q(pk__in=[])

    @admin.display(description=_("event id"), ordering="id")
    def short_id(self, event: Any) -> str:
        return shorten(str(event.id))

    @admin.display(description=_("payload"))
    def content(self, event: OutboxEvent) -> str:
        """Return the payload as JSON, without the escapes that the database needs."""
        try:
            return json.dumps(json.loads(event.payload), ensure_ascii=False)
        except ValueError:
            return event.payload

    def has_republish_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.republish_outboxevent"))

    @admin.action(description=_("Publish again"), permissions=["republish"])
    def publish_again(self, request: HttpRequest, queryset: QuerySet[OutboxEvent]) -> None:
        count = self.act(request, queryset, OutboxEventQuerySet.publish_again, CHANGE, "Publish again")
        if not count:
            text = _("The selected events are still waiting; lightbus_listen will publish them.")
            self.message_user(request, text, messages.WARNING)
            return
        self.message_user(
            request,
            ngettext("%d event will be published again.", "%d events will be published again.", count) % count,
            messages.SUCCESS,
        )
