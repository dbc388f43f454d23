"""The Failures page: failed events by their cause, to retry or discard whole groups, and what came of that."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.firing.databases import databases_with_tables, has_tables
from lightbus_django.models import FailedEvent, FailedEventQuerySet
from lightbus_django.operating import failures
from lightbus_django.operating.failures import FailureGroup
from lightbus_django.operating.retrying import RetryOutcome, latest_outcomes

from . import bulk
from .discard_confirmation import discard
from .display import relative_time
from .failures_filter import FailureFilter
from .links import discard_group_url, failed_event_url, failed_list_url, failures_url, may_view

OUTCOMES = 5
"""Number of retries of which the page shows what came of them."""


class Cause(NamedTuple):
    """What the failed events of a group have in common. The names are those of a request's parameters."""

    database: str
    group: str
    type: str
    place: str

    @classmethod
    def of(cls, data: QueryDict) -> "Cause":
        """Return the cause that a request names; raises Http404."""
        cause = cls(*(data.get(name, "") for name in cls._fields))
        if not has_tables(cause.database):
            raise Http404
        return cause

    @property
    def columns(self) -> dict[str, str]:
        return {"consumer_group": self.group, "exception": self.type, "place": self.place}


class FailuresPage:
    """The views of the Failures page, in one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def show(self, request: HttpRequest) -> HttpResponse:
        """Show the groups, or with `?fragment=1` only what came of retries; a POST retries events of a group first."""
        if not may_view(self.site, request, FailedEvent):
            raise PermissionDenied
        chosen = FailureFilter(request.GET)
        if request.method == "POST":
            self._require(request, "retry_failedevent")
            self._attempt(request, chosen, self._retry)
            return redirect(self._back(chosen))
        problems: list[str] = []
        if "fragment" in request.GET:
            context = {"outcomes": self._outcomes(problems), "problems": problems, "is_refreshed": True}
            return self._render(request, "failures_outcomes.html", context)
        groups = self._groups(chosen, problems)
        context = {
            "title": _("Failures"),
            "filter": chosen,
            "is_filtered": chosen.is_valid() and chosen.is_active,
            "groups": groups,
            "outcomes": self._outcomes(problems),
            "problems": list(dict.fromkeys(problems)),
            "max_groups": failures.MAX_GROUPS,
            "is_full": len(groups) >= failures.MAX_GROUPS,
            "may_retry": request.user.has_perm("lightbus_django.retry_failedevent"),
            "may_discard": request.user.has_perm("lightbus_django.discard_failedevent"),
        }
        return self._render(request, "failures.html", context)

    def discard(self, request: HttpRequest) -> HttpResponse:
        """Ask for a reason and a confirmation; a POST discards the events of a group."""
        if not may_view(self.site, request, FailedEvent):
            raise PermissionDenied
        self._require(request, "discard_failedevent")
        chosen = FailureFilter(request.GET)
        if request.method == "POST":
            self._attempt(request, chosen, discard)
            return redirect(self._back(chosen))
        cause, events = self._events(request.GET, chosen)
        count = events.count()
        if not count:
            messages.warning(request, _("This group has no failed events any more."))
            return redirect(self._back(chosen))
        names = "listener", "event", "exception", "since", "until"
        context = {
            "title": ngettext("Discard %s failed event?", "Discard %s failed events?", count) % f"{count:,}",
            "cause": cause,
            "fields": [*cause._asdict().items(), ("last", request.GET.get("last", ""))],
            "filters": [(chosen[name].label, chosen.data[name]) for name in names if chosen.data.get(name)],
            "back_url": self._back(chosen),
            "limit": f"{bulk.LIMIT:,}" if count > bulk.LIMIT else "",
        }
        return self._render(request, "failures_discard.html", context)

    def _back(self, chosen: FailureFilter) -> str:
        return f"{failures_url(self.site)}?{chosen.query}".rstrip("?")

    # --- Groups and outcomes ------------------------------------------------------------------

    def _events(self, data: QueryDict, chosen: FailureFilter) -> tuple[Cause, FailedEventQuerySet]:
        """Return the cause that a request names, and its events as they were shown: filtered, and none that are newer.

        Raises:
            Http404: there is no such database.
            BadRequest: a filter is not valid. To act on all instead would be wrong.
        """
        cause, last = Cause.of(data), data.get("last", "")
        if not chosen.is_valid():
            raise BadRequest(chosen.errors.as_text())
        events = chosen.events(cause.database).filter(**cause.columns)
        return cause, events.filter(pk__lte=int(last)) if last.isdecimal() else events

    def _groups(self, chosen: FailureFilter, problems: list[str]) -> list[dict[str, Any]]:
        """Return the groups of all databases, the largest first; and add the databases that did not answer."""
        rows: list[dict[str, Any]] = []
        try:
            aliases = list(databases_with_tables())
            chosen.add_choices(aliases)
            for alias in aliases if chosen.is_valid() else []:
                groups = failures.group_failures(chosen.events(alias))
                rows += self._rows(alias, groups, chosen, has_others=len(aliases) > 1)
        except (LightbusError, DatabaseError) as error:
            problems.append(one_line(error))
        return sorted(rows, key=lambda row: -row["group"].count)

    def _rows(
        self, alias: str, groups: list[FailureGroup], chosen: FailureFilter, *, has_others: bool
    ) -> Iterator[dict[str, Any]]:
        samples = FailedEvent.objects.using(alias).defer("traceback", "history", "original_fields")
        found = samples.in_bulk([group.sample_id for group in groups])
        filters = chosen.list_parameters()
        for group in groups:
            cause = Cause(alias, group.consumer_group, group.exception, group.place)
            fields = [*cause._asdict().items(), ("last", str(group.sample_id))]
            query = "&".join(filter(None, (chosen.query, urlencode(fields))))
            sample = found.get(group.sample_id)
            yield {
                "group": group,
                "count": f"{group.count:,}",
                "dead": f"{group.dead_letters:,}",
                "first": relative_time(group.first_at),
                "last": relative_time(group.last_at),
                "fields": fields,
                "database": alias if has_others else "",
                "list_url": failed_list_url(self.site, alias, **filters, **cause.columns),
                "sample_url": failed_event_url(self.site, alias, group.sample_id),
                "discard_url": f"{discard_group_url(self.site)}?{query}",
                "has_listener": sample is not None and failures.find_listener(sample, alias) is not None,
                "obstacles": [] if sample is None else list(failures.obstacles(sample, alias)),
                "warnings": [] if sample is None else list(failures.warnings(sample, alias)),
            }

    def _outcomes(self, problems: list[str]) -> dict[str, Any]:
        """Return what came of the latest retries; and add the databases that did not answer."""
        found: list[RetryOutcome] = []
        try:
            for alias in databases_with_tables():
                found += latest_outcomes(alias, OUTCOMES)
        except (LightbusError, DatabaseError) as error:
            problems.append(one_line(error))
        latest = sorted(found, key=lambda outcome: outcome.at, reverse=True)[:OUTCOMES]
        return {
            "rows": [(outcome, relative_time(outcome.at)) for outcome in latest],
            "is_settled": all(outcome.is_settled for outcome in latest),
        }

    # --- Actions ------------------------------------------------------------------------------

    def _attempt(
        self, request: HttpRequest, chosen: FailureFilter, action: Callable[[HttpRequest, FailedEventQuerySet], None]
    ) -> None:
        try:
            action(request, self._events(request.POST, chosen)[1])
        except (LightbusError, DatabaseError) as error:
            messages.error(request, one_line(error))

    def _retry(self, request: HttpRequest, events: FailedEventQuerySet) -> None:
        key = request.POST.get("failed", "")
        if key.isdecimal():  # one first
            events = events.filter(pk=int(key))
        bulk.retry(events, request.user).report(request)

    def _require(self, request: HttpRequest, codename: str) -> None:
        if not request.user.has_perm(f"lightbus_django.{codename}"):
            raise PermissionDenied

    def _render(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.site.name
        context = {**self.site.each_context(request), "opts": FailedEvent._meta, **context}
        return render(request, f"admin/lightbus_django/{template}", context)
