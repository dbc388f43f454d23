"""The list action "Discard": a reason and a confirmation, then doing it."""

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.database.errors import one_line
from lightbus_django.models import FailedEvent, FailedEventQuerySet

from . import bulk
from .selected import Selected


class DiscardConfirmation:
    """One use of the action, in one admin site."""

    def __init__(self, site: AdminSite, request: HttpRequest, selected: FailedEventQuerySet) -> None:
        """Prepare it; the selected events may be ordered, annotated, or from a replica."""
        self.site = site
        self.request = request
        self.selected = Selected(request, selected)

    def respond(self) -> HttpResponse | None:
        """Ask for a reason; if it is given, discard."""
        if "confirmed" in self.request.POST:
            try:
                discard(self.request, self.selected.as_shown())
            except DatabaseError as error:
                messages.error(self.request, one_line(error))
            return None
        last = self.selected.last()
        if last is None:
            messages.warning(self.request, _("They are no failed events any more."))
            return None
        count = self.selected.events.count()
        context = {
            **self.site.each_context(self.request),
            "opts": FailedEvent._meta,
            "title": ngettext("Discard %s failed event?", "Discard %s failed events?", count) % f"{count:,}",
            "fields": [
                *((ACTION_CHECKBOX_NAME, key) for key in self.selected.keys),
                ("action", "discard"),
                ("select_across", "1" if self.selected.is_all else "0"),
                ("last", str(last)),
                ("confirmed", "1"),
            ],
            "back_url": self.request.get_full_path(),
            "limit": f"{bulk.LIMIT:,}" if count > bulk.LIMIT else "",
        }
        self.request.current_app = self.site.name
        return TemplateResponse(self.request, "admin/lightbus_django/failures_discard.html", context)


def discard(request: HttpRequest, events: FailedEventQuerySet) -> None:
    """Discard events for the reason that a request gives, and tell the user how many."""
    count = bulk.discard(events, request.user, request.POST.get("reason", "").strip())
    text = ngettext("%s event discarded.", "%s events discarded.", count)
    messages.success(request, text % f"{count:,}")
