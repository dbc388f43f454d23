"""The list action "Retry now": what it would do, then, once confirmed, doing it."""

from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lightbus_django.database.errors import one_line
from lightbus_django.models import FailedEvent, FailedEventQuerySet

from . import bulk
from .edit_page import may_edit
from .links import edit_url, failures_url
from .selected import Selected


class RetryConfirmation:
    """One use of the action, in one admin site."""

    def __init__(self, site: AdminSite, request: HttpRequest, selected: FailedEventQuerySet) -> None:
        """Prepare it.

        Args:
            selected: the selected events; may be ordered, annotated, or from a replica.
        """
        self.site = site
        self.request = request
        self.selected = Selected(request, selected)

    def respond(self) -> HttpResponse | None:
        """Show what a retry would do; if that was confirmed, retry, and go to the page that shows what comes of it."""
        if "confirmed" in self.request.POST:
            try:
                bulk.retry(self.selected.as_shown(), self.request.user).report(self.request)
            except DatabaseError as error:
                messages.error(self.request, one_line(error))
            return redirect(failures_url(self.site))
        last = self.selected.last()
        if last is None:
            messages.warning(self.request, _("They are no failed events any more."))
            return None
        return self._show(bulk.preview(self.selected.up_to(last)), last)

    def _edit_url(self, key: int | None) -> str:
        """Return the address of the page where the payload is edited; empty if that is not for this user or event."""
        if key is None or not may_edit(self.site, self.request):
            return ""
        return edit_url(self.site, self.selected.using, key)

    def _show(self, preview: bulk.Preview, last: int) -> HttpResponse:
        count = f"{preview.retried:,}"
        title = ngettext("Retry %s failed event?", "Retry %s failed events?", preview.retried) % count
        if not preview.retried:
            title = _("There is nothing to retry")
        context: dict[str, Any] = {
            **self.site.each_context(self.request),
            "opts": FailedEvent._meta,
            "title": title,
            "preview": preview,
            "count": count,
            "due": f"{preview.due:,}",
            "limit": f"{bulk.LIMIT:,}",
            "refused": [
                (number, f"{number:,}", text, self._edit_url(preview.samples.get(text)))
                for text, number in preview.refused.most_common(bulk.REASONS)
            ],
            "warnings": [(f"{number:,}", text) for text, number in preview.warnings.most_common(bulk.REASONS)],
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "selected": self.selected.keys,
            "select_across": "1" if self.selected.is_all else "0",
            "last": last,
            "back_url": self.request.get_full_path(),
        }
        self.request.current_app = self.site.name
        return TemplateResponse(self.request, "admin/lightbus_django/failures_retry.html", context)
