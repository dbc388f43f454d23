from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lightbus_django.events.codec import load_fields
from lightbus_django.models import FailedEvent, FailedEventQuerySet

from .base import EventAdmin, LatestValuesFilter
from .failures_page import FailuresPage


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("retrying", _("Retrying")), ("dead", _("Dead letter"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[FailedEvent]) -> QuerySet[FailedEvent]:
        if self.value() is None:
            return queryset
        return queryset.filter(next_attempt_at__isnull=self.value() == "dead")


@admin.register(FailedEvent)
class FailedEventAdmin(EventAdmin):
    actions = ("retry", "discard")
    list_display = (
        "short_id",
        "event_name",
        "consumer_group",
        "state",
        "error_line",
        "attempts",
        "failed_at",
        "next_attempt_at",
    )
    list_filter = (
        StateFilter,
        ("consumer_group", LatestValuesFilter),
        ("event_name", LatestValuesFilter),
        ("exception", LatestValuesFilter),
        ("place", LatestValuesFilter),
        "failed_at",
    )
    fields = (
        "event_id",
        "event_name",
        "consumer_group",
        "state",
        "attempts",
        "failed_at",
        "next_attempt_at",
        "stream",
        "stream_id",
        "content",
        "error",
        "traceback",
    )

    @admin.display(description=_("state"))
    def state(self, event: FailedEvent) -> Any:
        return _("Dead letter") if event.is_dead_letter else _("Retrying")

    @admin.display(description=_("error"))
    def error_line(self, event: FailedEvent) -> str:
        return Truncator(event.error.partition("\n")[0]).chars(60)

    @admin.display(description=_("content"))
    def content(self, event: FailedEvent) -> str:
        """Return the fields of the stream entry, one per line; bytes that are not UTF-8 are escaped."""
        fields = load_fields(event.fields).items()
        return "\n".join(
            f"{name.decode(errors='backslashreplace')} = {value.decode(errors='backslashreplace')}"
            for name, value in fields
        )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        page = FailuresPage(self.admin_site)
        own = [
            path("failures/", view(page.show), name="lightbus_django_failures"),
            path("failures/discard/", view(page.discard), name="lightbus_django_discard_failures"),
        ]
        return own + super().get_urls()

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedEvent]:
        events: QuerySet[FailedEvent] = super().get_queryset(request)
        on_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("changelist")
        return events.defer("fields", "traceback") if on_list else events

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.retry_failedevent"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.discard_failedevent"))

    @admin.action(description=_("Retry now"), permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[FailedEvent]) -> None:
        count = self.act(request, queryset, FailedEventQuerySet.retry_now, CHANGE, "Retry now")
        self.message_user(
            request,
            ngettext("%d event is due for a retry.", "%d events are due for a retry.", count) % count,
            messages.SUCCESS,
        )

    @admin.action(description=_("Discard"), permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[FailedEvent]) -> None:
        count = self.act(request, queryset, FailedEventQuerySet.discard, DELETION, "Discard")
        self.message_user(
            request, ngettext("%d event discarded.", "%d events discarded.", count) % count, messages.SUCCESS
        )
