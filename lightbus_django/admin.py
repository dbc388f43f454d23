"""Admin pages: read-only, and quick whatever the size of the tables."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.core.paginator import Paginator
from django.db.models import Exists, Model, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .ids import event_key
from .messages import load_fields
from .models import FailedEvent, OutboxEvent, ProcessedEvent

COUNT_LIMIT = 10_000
"""Rows that a page counts, and that can be paged through."""

SAMPLE = 1_000
"""Latest rows from which the choices of a filter are taken."""


class LimitedPaginator(Paginator):  # type: ignore[type-arg]
    """Does not count millions of rows to say how many pages there are."""

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Model] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[:COUNT_LIMIT].count()


class LatestValuesFilter(admin.FieldListFilter):
    """Offers the values of the latest rows, for a DISTINCT over all of them takes long."""

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.parameter = field_path
        super().__init__(field, request, params, model, model_admin, field_path)
        latest = model.objects.order_by("-pk").values_list(field_path, flat=True)[:SAMPLE]
        self.chosen = request.GET.get(field_path)
        self.values = sorted({*latest, *([self.chosen] if self.chosen else [])})

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]

    def has_output(self) -> bool:
        return len(self.values) > 1 or self.chosen is not None

    def choices(self, changelist: Any) -> Any:
        yield {
            "selected": not self.chosen,
            "query_string": changelist.get_query_string(remove=[self.parameter]),
            "display": _("All"),
        }
        for value in self.values:
            yield {
                "selected": value == self.chosen,
                "query_string": changelist.get_query_string({self.parameter: value}),
                "display": value,
            }


def shorten(event_id: str) -> str:
    """Return an id as it fits into a list: its beginning tells the time, its end tells it from others."""
    return event_id if len(event_id) <= 16 else f"{event_id[:8]}…{event_id[-6:]}"


class EventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """What the three pages share."""

    actions_selection_counter = True
    list_per_page = 100
    ordering = ("-id",)
    paginator = LimitedPaginator
    search_fields = ("event_id",)
    search_help_text = _("The whole id of an event")
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        css = {"all": ["lightbus_django/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        return (queryset.filter(self.search_condition(term)) if term else queryset), False

    def search_condition(self, term: str) -> Q:
        return Q(event_id=event_key(term))

    @admin.display(description=_("event id"), ordering="id")
    def short_id(self, event: Any) -> str:
        return shorten(event.event_id)


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
        return event.error.partition("\n")[0][:60]

    @admin.display(description=_("content"))
    def content(self, event: FailedEvent) -> str:
        """The entry's fields, one a line; bytes that are no text stand as escapes."""
        fields = load_fields(event.fields).items()
        return "\n".join(
            f"{name.decode(errors='backslashreplace')} = {value.decode(errors='backslashreplace')}"
            for name, value in fields
        )

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedEvent]:
        events: QuerySet[FailedEvent] = super().get_queryset(request)
        on_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("changelist")
        return events.defer("fields", "traceback") if on_list else events

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.retry_failedevent"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.discard_failedevent"))

    def note(self, request: HttpRequest, events: QuerySet[FailedEvent], flag: int, message: str) -> None:
        """Write into the admin's history who did it."""
        LogEntry.objects.log_actions(request.user.pk, events, flag, message)  # type: ignore[arg-type]

    @admin.action(description=_("Retry now"), permissions=["retry"])
    def retry(self, request: HttpRequest, queryset: QuerySet[FailedEvent]) -> None:
        # By key, for the queryset of the page may be ordered or annotated.
        events = FailedEvent.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
        self.note(request, events, CHANGE, "Retry now")
        count = events.retry_now()
        self.message_user(
            request,
            ngettext("%d event is due for a retry.", "%d events are due for a retry.", count) % count,
            messages.SUCCESS,
        )

    @admin.action(description=_("Discard"), permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[FailedEvent]) -> None:
        self.note(request, queryset, DELETION, "Discard")
        count = 0
        for event in queryset.iterator():
            event.discard()
            count += 1
        self.message_user(
            request, ngettext("%d event discarded.", "%d events discarded.", count) % count, messages.SUCCESS
        )


class PublishedFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("waiting", _("Waiting")), ("published", _("Published"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[OutboxEvent]) -> QuerySet[OutboxEvent]:
        if self.value() is None:
            return queryset
        return queryset.filter(due_at__isnull=self.value() == "published")


@admin.register(OutboxEvent)
class OutboxEventAdmin(EventAdmin):
    list_display = ("short_id", "event_name", "created_at", "published_at", "error")
    list_filter = (PublishedFilter, ("event_name", LatestValuesFilter), "created_at")
    search_fields = ("id",)

    def search_condition(self, term: str) -> Q:
        try:
            return Q(pk=UUID(term))
        except ValueError:
            return Q(pk__in=[])

    @admin.display(description=_("event id"), ordering="id")
    def short_id(self, event: Any) -> str:
        return shorten(str(event.id))
