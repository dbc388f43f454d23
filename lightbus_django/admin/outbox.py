import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lightbus_django.events.times import as_aware
from lightbus_django.models import OutboxEvent, OutboxEventQuerySet
from lightbus_django.operating.event_ids import uuid_span

from .base import EventAdmin
from .display import first_line, relative_time, state_word
from .filters import EventFilter


class PublishedFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("waiting", _("Waiting")), ("refused", _("Refused")), ("published", _("Published"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> OutboxEventQuerySet:
        events: OutboxEventQuerySet = queryset
        if self.value() is None:
            return events
        if self.value() == "refused":
            return events.refused()
        return events.published() if self.value() == "published" else events.unpublished()


@admin.register(OutboxEvent)
class OutboxEventAdmin(EventAdmin):
    actions = ("publish_again",)
    list_display = ("event_link", "name", "state", "created", "published", "error_line")
    list_filter = (PublishedFilter, ("event_name", EventFilter), "created_at")
    id_field = "id"
    name_fields = ("event_name",)
    search_fields = ("id",)
    fields = (
        "error",
        "state",
        "id",
        "event_name",
        "version",
        "created_at",
        "due_at",
        "published_at",
        "stream_id",
        "content",
    )
    # Sorting many rows by other columns is slow.
    sortable_by = ("event_link", "short_id")

    def search_condition(self, term: str) -> Q:
        span = uuid_span(term)
        return Q(pk__in=[]) if span is None else Q(pk__range=span)

    def id_of(self, event: OutboxEvent) -> str:
        return str(event.id)

    @admin.display(description=_("state"))
    def state(self, event: OutboxEvent) -> str:
        if event.due_at is None:
            return state_word(_("Published"))
        if event.error:
            return state_word(_("Refused"), must_act=True)
        return state_word(_("Due") if as_aware(event.due_at) <= timezone.now() else _("Waiting"))

    @admin.display(description=_("created"))
    def created(self, event: OutboxEvent) -> str:
        return relative_time(event.created_at)

    @admin.display(description=_("published"))
    def published(self, event: OutboxEvent) -> str:
        return relative_time(event.published_at)

    @admin.display(description=_("error"))
    def error_line(self, event: OutboxEvent) -> str:
        return first_line(event.error)

    @admin.display(description=_("payload"))
    def content(self, event: OutboxEvent) -> str:
        """Return the payload as JSON, without the escapes that the database needs."""
        try:
            return json.dumps(json.loads(event.payload), ensure_ascii=False)
        except ValueError:
            return event.payload

    def has_republish_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.republish_outboxevent"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxEvent]:
        events: QuerySet[OutboxEvent] = super().get_queryset(request)
        on_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("changelist")
        return events.defer("payload") if on_list else events

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
