from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from lightbus_django.models import FailedEvent, ProcessedEvent

from .base import EventAdmin
from .display import breakable, relative_time, state_word
from .filters import EventFilter, GroupFilter


@admin.register(ProcessedEvent)
class ProcessedEventAdmin(EventAdmin):
    list_display = ("event_link", "name", "group", "state_and_attempt", "processed", "process")
    list_filter = (
        ("consumer_group", GroupFilter),
        ("event_name", EventFilter),
        "processed_at",
    )
    fields = (
        "event_id",
        "event_name",
        "consumer_group",
        "state",
        "processed_at",
        "process_name",
        "attempts",
        "stream_id",
        "discarded_by",
        "discard_reason",
    )
    # Sorting many rows by other columns is slow.
    sortable_by = ("event_link", "short_id")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProcessedEvent]:
        failed = FailedEvent.objects.filter(event_id=OuterRef("event_id"), consumer_group=OuterRef("consumer_group"))
        processed: QuerySet[ProcessedEvent] = super().get_queryset(request)
        return processed.annotate(failed=Exists(failed), dead=Exists(failed.filter(next_attempt_at=None)))

    @admin.display(description=_("state"))
    def state(self, event: Any) -> str:
        if event.discarded:
            return state_word(_("Discarded"))
        if event.dead:
            return state_word(_("Dead letter"), must_act=True)
        return state_word(_("Retrying") if event.failed else _("Handled"))

    @admin.display(description=_("state"))
    def state_and_attempt(self, event: Any) -> str:
        if (event.attempts or 1) == 1:
            return self.state(event)
        attempt = _("in attempt %d") % event.attempts
        return format_html('{} <div class="lightbus-quiet">{}</div>', self.state(event), attempt)

    @admin.display(description=_("process"))
    def process(self, event: ProcessedEvent) -> str:
        return breakable(event.process_name) or "-"

    @admin.display(description=_("processed"))
    def processed(self, event: ProcessedEvent) -> str:
        return relative_time(event.processed_at)
