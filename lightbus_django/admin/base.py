"""What the pages share: they are read-only, and quick whatever the size of the tables."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.core.paginator import Paginator
from django.db import router
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from lightbus_django.events.ids import event_key

COUNT_LIMIT = 10_000
"""Rows that a page counts, and that can be paged through."""

SAMPLE = 1_000
"""Latest rows from which the choices of a filter are taken."""


CHUNK = 500
"""Rows that an action works on at a time."""


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
    name_fields: tuple[str, ...] = ("event_id", "event_name")
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

    def act(
        self, request: HttpRequest, queryset: QuerySet[Any], action: Callable[[Any], int], flag: int, message: str
    ) -> int:
        """Do what an action is asked to do with events, some at a time, and write into the admin's history who did it.

        Nothing is done, and a message says so, if there are more than the page could count and did ask about.

        Args:
            queryset: as the page has them; it may be ordered, annotated, or of a replica.
            action: takes a queryset of some of them, by key, on the database that is written; returns of how many it
                was true.
            flag: as LogEntry has it.

        Returns how many there were.
        """
        using = router.db_for_write(self.model)
        keys = list(queryset.using(using).order_by("pk").values_list("pk", flat=True)[: COUNT_LIMIT + 1])
        if len(keys) > COUNT_LIMIT:
            text = _("More than %d are selected; nothing was done. Narrow them down by a filter.") % COUNT_LIMIT
            self.message_user(request, text, messages.ERROR)
            keys = []
        count = 0
        for first in range(0, len(keys), CHUNK):
            events: QuerySet[Any] = self.model._default_manager.using(using).filter(pk__in=keys[first : first + CHUNK])
            # Of the rest some columns may be large.
            named = events.only(*self.name_fields)
            LogEntry.objects.log_actions(request.user.pk, named, flag, message)  # type: ignore[arg-type]
            count += action(events)
        return count
