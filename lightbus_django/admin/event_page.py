"""The Event page: one event's story, with what can be done about it."""

from collections.abc import Iterator
from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.firing.databases import databases_with_tables
from lightbus_django.models import ConsumerGroup, FailedEvent, OutboxEvent
from lightbus_django.operating import failures, outcomes
from lightbus_django.operating.editing import to_text
from lightbus_django.operating.event_ids import FOUND, FoundIds, find_ids
from lightbus_django.operating.outcomes import Outcome, Story
from lightbus_django.operating.story import tell

from . import bulk
from .display import relative_time
from .edit_log import logged_edits
from .edit_page import may_edit
from .links import edit_url, event_url, failed_event_url, may_view_events

LONG = 30
"""Lines above which a payload is collapsed."""

TO_ACT_ON = frozenset({outcomes.DEAD_LETTER, outcomes.MISSING})
"""States in which somebody has to act."""


class EventPage:
    """The views of the Event page, in one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def search(self, request: HttpRequest) -> HttpResponse:
        """Show the events whose ids begin with `q`; if there is only one, show it at once."""
        if not may_view_events(self.site, request):
            raise PermissionDenied
        text = " ".join(request.GET.get("q", "").split())
        found, error = FoundIds([], []), ""
        if text:
            try:
                found = FoundIds([text], []) if tell(text) is not None else find_ids(text)
            except (LightbusError, DatabaseError) as raised:
                error = one_line(raised)
            if len(found.ids) == 1 and not found.gaps:
                return redirect(event_url(self.site, found.ids[0]))
        rows = [(event_id, event_url(self.site, event_id)) for event_id in found.ids]
        context = {
            "title": _("Find an event"),
            "text": text,
            "rows": rows,
            "is_full": len(found.ids) == FOUND,
            "gaps": found.gaps,
            "error": error,
        }
        return self._render(request, "event_search.html", context)

    def show(self, request: HttpRequest, event_id: str) -> HttpResponse:
        """Show an event's story; a POST does something about it first. The id is quoted."""
        event_id = unquote(event_id)
        if not may_view_events(self.site, request):
            raise PermissionDenied
        if request.method == "POST":
            try:
                self._act(request, event_id)
            except (LightbusError, DatabaseError) as error:
                self._say(request, messages.ERROR, one_line(error))
            return redirect(event_url(self.site, event_id))
        story = tell(event_id)
        if story is None:
            raise Http404(_("No record mentions the event %s.") % event_id)
        rows = list(self._rows(story, can_edit=may_edit(self.site, request)))
        payload = to_text(story.payload, indent=2)
        context = {
            "title": story.name,
            "subtitle": story.id,
            "story": story,
            "fired": relative_time(story.fired_at),
            "published": relative_time(story.published_at),
            "payload": None if story.payload is None else payload,
            "is_long": payload.count("\n") > LONG or len(payload) > 100 * LONG,
            "outcomes": rows,
            "is_edited": any(row["failed"] is not None and row["failed"].is_edited for row in rows),
            "may_retry": request.user.has_perm("lightbus_django.retry_failedevent"),
            "may_discard": request.user.has_perm("lightbus_django.discard_failedevent"),
            "may_publish_again": bool(story.outbox_database)
            and story.is_published
            and request.user.has_perm("lightbus_django.republish_outboxevent"),
        }
        return self._render(request, "event.html", context)

    def _rows(self, story: Story, *, can_edit: bool) -> Iterator[dict[str, Any]]:
        failed = {alias: self._failed(alias, story.outcomes) for alias in {each.database for each in story.outcomes}}
        for outcome in story.outcomes:
            event = failed[outcome.database].get(outcome.failed_id)
            using = outcome.database
            yield {
                "outcome": outcome,
                "must_act": outcome.state in TO_ACT_ON,
                "at": relative_time(outcome.at),
                "edit_url": edit_url(self.site, using, event.pk) if event is not None and can_edit else "",
                "failed_url": "" if event is None else failed_event_url(self.site, using, event.pk),
                "failed": event,
                "edits": self._edits(story, outcome) if event is None else [],
                "obstacles": [] if event is None else list(failures.obstacles(event, using)),
                "warnings": [] if event is None else list(failures.warnings(event, using)),
            }

    def _failed(self, alias: str, found: list[Outcome]) -> dict[int | None, FailedEvent]:
        keys = [each.failed_id for each in found if each.database == alias and each.failed_id is not None]
        if not keys:
            return {}
        return {event.pk: event for event in FailedEvent.objects.using(alias).filter(pk__in=keys).defer("traceback")}

    def _edits(self, story: Story, outcome: Outcome) -> list[dict[str, str]]:
        """Return the edits of an event whose failed event, with its history, is gone."""
        return logged_edits(story.name, story.id, outcome.group) if outcome.edited_by else []

    # --- Actions ------------------------------------------------------------------------------

    def _act(self, request: HttpRequest, event_id: str) -> None:
        using = request.POST.get("database", "")
        if using not in databases_with_tables():
            raise Http404
        action = request.POST.get("action")
        if action == "publish_again":
            self._publish_again(request, using, event_id)
            return
        key = request.POST.get("failed", "")
        event = FailedEvent.objects.using(using).filter(pk=int(key)).first() if key.isdecimal() else None
        if event is None:
            self._say(request, messages.WARNING, _("This event is no failed event any more."))
        elif action == "retry":
            self._retry(request, using, event)
        elif action == "discard":
            self._discard(request, using, event)

    def _retry(self, request: HttpRequest, using: str, event: FailedEvent) -> None:
        self._require(request, "retry_failedevent")
        if found := "; ".join(failures.obstacles(event, using)):
            self._say(request, messages.ERROR, _("Not retried, because that can't succeed: %s.") % found)
            return
        if bulk.retry(FailedEvent.objects.using(using).filter(pk=event.pk), request.user).due:
            self._say(request, messages.SUCCESS, _("The event is due for a retry by %s.") % event.consumer_group)
        else:
            self._say(request, messages.WARNING, _("The event is due already, or is being retried at this moment."))

    def _discard(self, request: HttpRequest, using: str, event: FailedEvent) -> None:
        self._require(request, "discard_failedevent")
        reason = request.POST.get("reason", "").strip()
        self._log(request, event, DELETION, f"Discard: {reason}" if reason else "Discard")
        event.discard(using=using, by=request.user.get_username(), reason=reason)
        self._say(request, messages.SUCCESS, _("The event is discarded for %s.") % event.consumer_group)

    def _publish_again(self, request: HttpRequest, using: str, event_id: str) -> None:
        self._require(request, "republish_outboxevent")
        rows = OutboxEvent.objects.using(using).filter(pk=event_id)
        if rows.publish_again():
            self._log(request, rows.get(), CHANGE, "Publish again")
            self._say(request, messages.SUCCESS, _("The event will be published again."))
        else:
            self._say(request, messages.WARNING, _("The event is not published yet; lightbus_listen will publish it."))

    def _require(self, request: HttpRequest, codename: str) -> None:
        if not request.user.has_perm(f"lightbus_django.{codename}"):
            raise PermissionDenied

    def _log(self, request: HttpRequest, row: Any, flag: int, message: str) -> None:
        LogEntry.objects.log_actions(request.user.pk, [row], flag, message)  # type: ignore[arg-type]

    def _say(self, request: HttpRequest, level: int, text: str) -> None:
        messages.add_message(request, level, text)

    def _render(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.site.name
        context = {**self.site.each_context(request), "opts": ConsumerGroup._meta, **context}
        return render(request, f"admin/lightbus_django/{template}", context)
