from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from lightbus_django.models import FailedEvent, ProcessedEvent

from .base import EventAdmin, LatestValuesFilter


@admin.register(ProcessedEvent)
class ProcessedEventAdmin(EventAdmin):
    list_display = ("short_id", "event_name", "consumer_group", "processed_at", "succeeded", "discarded")
    list_filter = (
        ("consumer_group", LatestValuesFilter),
        ("event_name", LatestValuesFilter),
        "processed_at",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProcessedEvent]:
        failed = FailedEvent.objects.filter(event_id=OuterRef("event_id"), consumer_group=OuterRef("consumer_group"))
        processed: QuerySet[ProcessedEvent] = super().get_queryset(request)
        return processed.annotate(failed=Exists(failed))

    @admin.display(boolean=True, description=_("succeeded"))
    def succeeded(self, event: Any) -> bool | None:
        return None if event.discarded else not event.failed
