"""The Failures page: failed events by their cause, to retry or discard whole groups."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.models import FailedEvent, FailedEventQuerySet
from lightbus_django.operating import failures
from lightbus_django.operating.failures import FailureGroup

from . import bulk
from .display import relative_time
from .links import discard_group_url, failed_event_url, failed_list_url, failures_url, may_view


class Cause(NamedTuple):
    """What the failed events of a group have in common."""

    database: str
    consumer_group: str
    exception: str
    place: str

    @classmethod
    def of(cls, data: QueryDict) -> "Cause":
        """Return the cause that a request names; raises Http404."""
        cause = cls(*(data.get(name, "") for name in cls._fields))
        if cause.database not in databases_with_tables():
            raise Http404
        return cause

    def events(self) -> FailedEventQuerySet:
        filters = {name: value for name, value in self._asdict().items() if name != "database"}
        return FailedEvent.objects.using(self.database).filter(**filters)


class FailuresPage:
    """The views of the Failures page, in one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def show(self, request: HttpRequest) -> HttpResponse:
        """Show the groups; a POST retries events of one first."""
        if not may_view(self.site, request, FailedEvent):
            raise PermissionDenied
        if request.method == "POST":
            self._require(request, "retry_failedevent")
            self._attempt(request, self._retry)
            return redirect(failures_url(self.site))
        groups, problems = self._groups()
        context = {
            "title": _("Failures"),
            "groups": groups,
            "problems": problems,
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
        if request.method == "POST":
            self._attempt(request, self._discard)
            return redirect(failures_url(self.site))
        cause = Cause.of(request.GET)
        count = cause.events().count()
        if not count:
            messages.warning(request, _("This group has no failed events any more."))
            return redirect(failures_url(self.site))
        context = {
            "title": ngettext("Discard %s failed event?", "Discard %s failed events?", count) % f"{count:,}",
            "cause": cause,
            "fields": cause._asdict().items(),
            "limit": f"{bulk.LIMIT:,}" if count > bulk.LIMIT else "",
        }
        return self._render(request, "failures_discard.html", context)

    # --- Groups -------------------------------------------------------------------------------

    def _groups(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the groups of all databases, the largest first, and which databases did not answer."""
        rows: list[dict[str, Any]] = []
        problems = []
        try:
            aliases = list(databases_with_tables())
            for alias in aliases:
                rows += self._rows(alias, failures.group_failures(FailedEvent.objects.using(alias)), len(aliases) > 1)
        except (LightbusError, DatabaseError) as error:
            problems.append(one_line(error))
        return sorted(rows, key=lambda row: -row["group"].count), problems

    def _rows(self, alias: str, groups: list[FailureGroup], has_others: bool) -> Iterator[dict[str, Any]]:
        samples = FailedEvent.objects.using(alias).defer("traceback", "history")
        found = samples.in_bulk([group.sample_id for group in groups])
        for group in groups:
            cause = Cause(alias, group.consumer_group, group.exception, group.place)
            filters = {name: value for name, value in cause._asdict().items() if name != "database"}
            sample = found.get(group.sample_id)
            yield {
                "group": group,
                "count": f"{group.count:,}",
                "dead": f"{group.dead_letters:,}",
                "first": relative_time(group.first_at),
                "last": relative_time(group.last_at),
                "cause": cause._asdict().items(),
                "database": alias if has_others else "",
                "list_url": failed_list_url(self.site, alias, **filters),
                "sample_url": failed_event_url(self.site, alias, group.sample_id),
                "discard_url": f"{discard_group_url(self.site)}?{urlencode(cause._asdict())}",
                "has_listener": sample is not None and failures.find_listener(sample, alias) is not None,
                "obstacles": [] if sample is None else list(failures.obstacles(sample, alias)),
                "warnings": [] if sample is None else list(failures.warnings(sample, alias)),
            }

    # --- Actions ------------------------------------------------------------------------------

    def _attempt(self, request: HttpRequest, action: Any) -> None:
        try:
            action(request, Cause.of(request.POST))
        except (LightbusError, DatabaseError) as error:
            messages.error(request, one_line(error))

    def _retry(self, request: HttpRequest, cause: Cause) -> None:
        events, key = cause.events(), request.POST.get("failed", "")
        if key.isdecimal():  # one first
            events = events.filter(pk=int(key))
        retried = bulk.retry(events, request.user)
        if retried.due:
            text = ngettext("%s event is due for a retry.", "%s events are due for a retry.", retried.due)
            messages.success(request, text % f"{retried.due:,}")
        for reason, refused in retried.refused.most_common(5):
            text = ngettext(
                "%(count)s event was not retried, because that can't succeed: %(reason)s.",
                "%(count)s events were not retried, because that can't succeed: %(reason)s.",
                refused,
            )
            messages.error(request, text % {"count": f"{refused:,}", "reason": reason})
        if not retried.due and not retried.refused:
            messages.warning(request, _("They are due for a retry already, or are no failed events any more."))
        elif retried.has_more:
            messages.warning(request, _("There are more: retry all again for the rest."))

    def _discard(self, request: HttpRequest, cause: Cause) -> None:
        reason = request.POST.get("reason", "").strip()
        count = bulk.discard(cause.events(), request.user, reason)
        text = ngettext("%s event discarded.", "%s events discarded.", count)
        messages.success(request, text % f"{count:,}")

    def _require(self, request: HttpRequest, codename: str) -> None:
        if not request.user.has_perm(f"lightbus_django.{codename}"):
            raise PermissionDenied

    def _render(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.site.name
        context = {**self.site.each_context(request), "opts": FailedEvent._meta, **context}
        return render(request, f"admin/lightbus_django/{template}", context)
