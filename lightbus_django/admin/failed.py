from datetime import UTC, datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lightbus_django.events.times import as_aware
from lightbus_django.models import FailedEvent, FailedEventQuerySet

from . import frames
from .base import EventAdmin
from .discard_confirmation import DiscardConfirmation
from .display import breakable, first_line, relative_time, state_word
from .edit_page import EditPage, may_edit
from .failures_page import FailuresPage
from .filters import EventFilter, GroupFilter, LatestValuesFilter
from .links import edit_url
from .retry_confirmation import RetryConfirmation

_EDITED = _(
    "The content above is this listener's copy, with the edited payload. In the stream and for other listeners the "
    "event is as it was fired."
)


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
    list_display = ("event_link", "name_and_group", "state_and_attempts", "exception_type", "error_line", "failed")
    list_display_links = ("name_and_group",)
    list_filter = (
        StateFilter,
        ("consumer_group", GroupFilter),
        ("event_name", EventFilter),
        ("exception", LatestValuesFilter),
        ("place", LatestValuesFilter),
        "failed_at",
    )
    fieldsets = (
        (None, {"fields": ("error", "past_attempts", "state", "attempts", "failed_at", "next_attempt_at")}),
        (_("Event"), {"fields": ("event_id", "event_name", "consumer_group", "stream", "stream_id", "content")}),
        (_("Traceback"), {"fields": ("exception", "place", "folded_traceback")}),
    )
    sortable_by = ("event_link", "short_id", "failed")

    # --- Columns ------------------------------------------------------------------------------

    @admin.display(description=_("event and consumer group"))
    def name_and_group(self, event: FailedEvent) -> str:
        return format_html('{} <div class="lightbus-quiet">{}</div>', self.name(event), self.group(event))

    @admin.display(description=_("state"))
    def state(self, event: FailedEvent) -> str:
        if event.next_attempt_at is None:
            return state_word(_("Dead letter"), must_act=True)
        if event.is_in_hand(datetime.now(UTC)):
            return state_word(_("Being retried"))
        if as_aware(event.next_attempt_at) <= timezone.now():
            return state_word(_("Retry is due"))
        return format_html("{} {}", state_word(_("Retrying")), relative_time(event.next_attempt_at))

    @admin.display(description=_("state"))
    def state_and_attempts(self, event: FailedEvent) -> str:
        if not event.attempts:  # it was told to retry now
            return self.state(event)
        after = ngettext("after %d attempt", "after %d attempts", event.attempts) % event.attempts
        return format_html('{} <div class="lightbus-quiet">{}</div>', self.state(event), after)

    @admin.display(description=_("exception"))
    def exception_type(self, event: FailedEvent) -> str:
        name = _short_type(event)
        return format_html('<span title="{}">{}</span>', event.exception, breakable(name)) if name else "-"

    @admin.display(description=_("error"))
    def error_line(self, event: FailedEvent) -> str:
        """Return the first line of the error, without its type if that has a column of its own."""
        name = _short_type(event)
        return first_line(event.error.removeprefix(f"{name}:") if name else event.error)

    @admin.display(description=_("failed"), ordering="failed_at")
    def failed(self, event: FailedEvent) -> str:
        return relative_time(event.failed_at)

    # --- The page of one event ----------------------------------------------------------------

    @admin.display(description=_("history"))
    def past_attempts(self, event: FailedEvent) -> str:
        """Return the failed attempts and the edits as a table; without a history, when the last one failed."""
        attempts = [
            {
                **attempt,
                "at": relative_time(datetime.fromisoformat(attempt["at"])),
                "is_edit": "before" in attempt,
            }
            for attempt in event.history or []
        ]
        context = {"attempts": attempts, "last": relative_time(event.failed_at)}
        return render_to_string("admin/lightbus_django/history.html", context)

    @admin.display(description=_("traceback"))
    def folded_traceback(self, event: FailedEvent) -> str:
        parts = frames.split(event.traceback)
        return render_to_string("admin/lightbus_django/traceback.html", {"parts": parts})

    @admin.display(description=_("content"))
    def content(self, event: FailedEvent) -> str:
        """Return the fields of the stream entry, one per line; bytes that are not UTF-8 are escaped."""
        return "\n".join(f"{name} = {value}" for name, value in event.content().items())

    @admin.display(description=_("content as fired"))
    def content_as_fired(self, event: FailedEvent) -> str:
        return self.content(FailedEvent(fields=event.original_fields or "[]"))

    def get_fieldsets(self, request: HttpRequest, obj: FailedEvent | None = None) -> Any:
        """Return the fieldsets; of an event whose payload was edited, also the content that was fired."""
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or not obj.is_edited:
            return fieldsets
        shown = {"fields": ("edited_by", "edited_at", "content_as_fired"), "description": _EDITED}
        return (*fieldsets[:-1], (_("Edited payload"), shown), *fieldsets[-1:])

    def get_readonly_fields(self, request: HttpRequest, obj: FailedEvent | None = None) -> Any:
        return (*super().get_readonly_fields(request, obj), "content_as_fired")

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        event = kwargs.get("obj")
        if event is not None and may_edit(self.admin_site, request):
            context["edit_url"] = edit_url(self.admin_site, event._state.db, event.pk)
        return super().render_change_form(request, context, *args, **kwargs)

    # --- Pages, rows and permissions ----------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        page, edit = FailuresPage(self.admin_site), EditPage(self.admin_site)
        own = [
            path("failures/", view(page.show), name="lightbus_django_failures"),
            path("failures/discard/", view(page.discard), name="lightbus_django_discard_failures"),
            path("failures/edit/<str:using>/<int:key>/", view(edit.show), name="lightbus_django_edit_failed_event"),
        ]
        return own + super().get_urls()

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedEvent]:
        events: QuerySet[FailedEvent] = super().get_queryset(request)
        on_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("changelist")
        return events.defer("fields", "traceback", "history", "original_fields") if on_list else events

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.retry_failedevent"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.discard_failedevent"))

    # --- Actions ------------------------------------------------------------------------------

    @admin.action(description=_("Retry now"), permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: FailedEventQuerySet) -> HttpResponse | None:
        """Show what a retry would do; once that is confirmed, retry, and show what comes of it."""
        return RetryConfirmation(self.admin_site, request, queryset).respond()

    @admin.action(description=_("Discard"), permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: FailedEventQuerySet) -> HttpResponse | None:
        """Ask for a reason; once it is given, discard."""
        return DiscardConfirmation(self.admin_site, request, queryset).respond()


def _short_type(event: FailedEvent) -> str:
    return event.exception.rpartition(".")[2]
