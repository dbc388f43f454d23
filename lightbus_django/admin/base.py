"""The base of the pages: read-only, and fast on large tables."""

from collections.abc import Callable
from copy import copy
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db import router
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from lightbus_django.events.ids import event_key
from lightbus_django.operating.event_ids import uuid_span

from .display import breakable
from .links import event_url, may_view_events

COUNT_LIMIT = 10_000
"""Maximum number of rows that a page counts and paginates."""

CHUNK = 500
"""Number of rows that an action changes at a time."""


class LimitedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator of at most COUNT_LIMIT rows.

    To find rows may take a scan of the table. So it reads the keys of all of them once, and then the rows of a page.
    """

    @cached_property
    def count(self) -> int:
        return min(len(self._keys), COUNT_LIMIT)

    @property
    def is_limited(self) -> bool:
        """Whether there are more rows than `count`."""
        return len(self._keys) > COUNT_LIMIT

    @property
    def limit(self) -> str:
        return f"{COUNT_LIMIT:,}"

    def rows(self, first: int, after: int) -> QuerySet[Model]:
        """Return the rows from the position `first` until before `after`."""
        return self._rows.filter(pk__in=self._keys[first:after])

    def page(self, number: int | str) -> Page:  # type: ignore[type-arg]
        number = self.validate_number(number)
        first = (number - 1) * self.per_page
        return Page(self.rows(first, min(first + self.per_page, self.count)), number, self)

    @cached_property
    def _keys(self) -> list[Any]:
        return list(self._rows.values_list("pk", flat=True)[: COUNT_LIMIT + 1])

    @property
    def _rows(self) -> QuerySet[Model]:
        return self.object_list  # type: ignore[return-value]


class LimitedChangeList(ChangeList):
    """A list that says "more than" where it has counted COUNT_LIMIT rows and there are more."""

    paginator: LimitedPaginator

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.multi_page or (self.show_all and self.can_show_all):
            self.result_list = self.paginator.rows(0, self.paginator.count)

    def as_shown(self) -> "LimitedChangeList":
        """Return a copy for templates that show the number of rows and don't calculate with it."""
        shown = copy(self)
        shown.result_count = _("more than %s") % self.paginator.limit  # type: ignore[assignment]
        return shown


def shorten(event_id: str) -> str:
    """Shorten an event id for a list: its beginning is the time, its end is random."""
    return event_id if len(event_id) <= 16 else f"{event_id[:8]}…{event_id[-6:]}"


class EventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The base class of the three pages."""

    actions_selection_counter = True
    id_field = "event_id"
    name_fields: tuple[str, ...] = ("event_id", "event_name")
    list_per_page = 100
    ordering = ("-id",)
    paginator = LimitedPaginator
    list_display_links = ("name",)
    search_fields = ("event_id",)
    search_help_text = _("Enter an event id, or its first characters.")
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        css = {"all": ["lightbus_django/admin.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LimitedChangeList

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
        return (self._latest(queryset.filter(self.search_condition(term))) if term else queryset), False

    def _latest(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Leave out all but the COUNT_LIMIT latest ids, because sorting all that begin with a short text is slow."""
        ids = rows.order_by(f"-{self.id_field}").values_list(self.id_field, flat=True)
        bound = next(iter(ids[COUNT_LIMIT : COUNT_LIMIT + 1]), None)
        return rows if bound is None else rows.filter(**{f"{self.id_field}__gte": bound})

    def search_condition(self, term: str) -> Q:
        key = event_key(term.lower() if uuid_span(term) else term)
        if key.startswith("sha256:"):
            return Q(event_id=key)
        return Q(event_id__gte=key, event_id__lte=f"{key}zzzzzzzz", event_id__startswith=key)

    def get_list_display(self, request: HttpRequest) -> Any:
        """Return the columns; ids link to the Event page for those who may see it."""
        columns = super().get_list_display(request)
        if may_view_events(self.admin_site, request):
            return columns
        return ["short_id" if column == "event_link" else column for column in columns]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        """Render the page of one row, with the address of its event for the object tools."""
        event = kwargs.get("obj")
        if event is not None and may_view_events(self.admin_site, request):
            context["event_page_url"] = event_url(self.admin_site, self.id_of(event))
        return super().render_change_form(request, context, *args, **kwargs)

    def id_of(self, event: Any) -> str:
        """Return the id of a row's event."""
        return str(event.event_id)

    @admin.display(description=_("event id"), ordering="id")
    def short_id(self, event: Any) -> str:
        return shorten(self.id_of(event))

    @admin.display(description=_("event id"), ordering="id")
    def event_link(self, event: Any) -> str:
        event_id = self.id_of(event)
        url = event_url(self.admin_site, event_id)
        return format_html('<a href="{}" title="{}">{}</a>', url, event_id, shorten(event_id))

    @admin.display(description=_("event"))
    def name(self, event: Any) -> str:
        return breakable(event.event_name)

    @admin.display(description=_("consumer group"))
    def group(self, event: Any) -> str:
        return breakable(event.consumer_group)

    def act(
        self, request: HttpRequest, queryset: QuerySet[Any], action: Callable[[Any], int], flag: int, message: str
    ) -> int:
        """Apply an action to the selected events in chunks, and record it in the admin's history.

        If more than COUNT_LIMIT events are selected, or more than the page said, show an error and change nothing.

        Args:
            queryset: the selected events; may be ordered, annotated, or from a replica.
            action: takes a queryset of some events on the primary database; returns how many it changed.
            flag: action flag of the history's entries.
            message: message of the history's entries.

        Returns the number of changed events.
        """
        using = router.db_for_write(self.model)
        keys = list(queryset.using(using).order_by("pk").values_list("pk", flat=True)[: COUNT_LIMIT + 1])
        if refusal := _refusal(request, len(keys)):
            self.message_user(request, refusal, messages.ERROR)
            keys = []
        count = 0
        for first in range(0, len(keys), CHUNK):
            events: QuerySet[Any] = self.model._default_manager.using(using).filter(pk__in=keys[first : first + CHUNK])
            # Other columns may be large.
            named = events.only(*self.name_fields)
            LogEntry.objects.log_actions(request.user.pk, named, flag, message)  # type: ignore[arg-type]
            count += action(events)
        return count


def _refusal(request: HttpRequest, count: int) -> str:
    """Return why an action is not applied to so many selected events; empty if it is."""
    if count > COUNT_LIMIT:
        return _("More than %d events are selected; nothing was changed. Select fewer with a filter.") % COUNT_LIMIT
    said = request.POST.get("result_count", "")
    if request.POST.get("select_across") == "1" and said.isdecimal() and count > int(said):
        now_and_before = {"now": count, "before": int(said)}
        return _("Meanwhile, %(now)d events are selected and not %(before)d; nothing was changed.") % now_and_before
    return ""
