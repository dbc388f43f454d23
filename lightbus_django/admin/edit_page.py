"""The page where the payload of a failed event is edited, for one listener, and retried."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import Error as DatabaseError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import InvalidPayload, LightbusError, UnreadableEvent
from lightbus_django.firing.databases import has_tables
from lightbus_django.models import FailedEvent
from lightbus_django.operating import editing, failures
from lightbus_django.operating.editing import EventChanged

from . import bulk
from .edit_log import log_edit
from .links import event_url, failed_event_url, failures_url, may_view, may_view_events


def may_edit(site: AdminSite, request: HttpRequest) -> bool:
    """Whether the user may edit payloads of failed events, which retries them."""
    return may_view(site, request, FailedEvent) and request.user.has_perm("lightbus_django.edit_failedevent")


class PayloadForm(forms.Form):
    payload = forms.CharField(
        label=gettext_lazy("Payload"),
        strip=False,
        widget=forms.Textarea({"rows": 20, "spellcheck": "false", "class": "lightbus-payload", "autofocus": True}),
    )
    version = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, event: FailedEvent, using: str, data: Any = None) -> None:
        """Prepare the form.

        Args:
            event: the failed event.
            data: what was submitted, if anything.

        Raises:
            UnreadableEvent: its payload can't be edited.
        """
        version = editing.version_of(event)
        self.current = editing.payload_text(event)
        initial = {"payload": self.current, "version": version}
        self.event = event
        self.using = using
        self.is_outdated = data is not None and data.get("version") != version
        """Whether the event has changed since the page was shown."""
        if self.is_outdated:
            data = data.copy()
            data["version"] = version  # so that what is shown now can be submitted
        super().__init__(data, initial=initial, auto_id="lightbus-%s", use_required_attribute=False)

    def clean_payload(self) -> FailedEvent:
        """Return the failed event with this payload, if a retry could succeed; see `editing.with_payload`."""
        try:
            edited = editing.with_payload(self.event, editing.parse_payload(self.cleaned_data["payload"]))
        except (InvalidPayload, UnreadableEvent) as error:
            raise ValidationError(str(error)) from error
        if reasons := list(failures.obstacles(edited, self.using)):
            raise ValidationError(reasons)
        return edited


class EditPage:
    """The view of the page, in one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def show(self, request: HttpRequest, using: str, key: int) -> HttpResponse:
        """Show the payload in a form; a POST saves it and makes the event due."""
        if not may_edit(self.site, request):
            raise PermissionDenied
        if not has_tables(using):
            raise Http404
        event = FailedEvent.objects.using(using).filter(pk=key).first()
        if event is None:
            messages.warning(request, _("This event is no failed event any more: it was handled or discarded."))
            if request.method == "POST":  # so that the text isn't lost
                return self._render(request, {"lost": request.POST.get("payload", "")}, status=409)
            return redirect(failures_url(self.site))
        try:
            form = PayloadForm(event, using, request.POST if request.method == "POST" else None)
        except UnreadableEvent as error:
            content = "\n".join(f"{name} = {value}" for name, value in event.content().items())
            return self._render(
                request, {**self._facts(request, event, using), "problem": str(error), "content": content}
            )
        if request.method == "POST" and not form.is_outdated and form.is_valid():
            try:
                self._save(request, event, form.cleaned_data["payload"].fields, using)
                return redirect(failures_url(self.site))
            except EventChanged:
                text = _(
                    "Nothing was saved: the event is being retried at this moment, or has just changed. Try again."
                )
                messages.error(request, text)
            except (LightbusError, DatabaseError) as error:
                messages.error(request, one_line(error))
        return self._render(request, {**self._facts(request, event, using), "form": form})

    def _save(self, request: HttpRequest, event: FailedEvent, fields: str, using: str) -> None:
        name = request.user.get_username()
        if fields == event.fields:  # nothing was edited
            bulk.retry(FailedEvent.objects.using(using).filter(pk=event.pk), request.user).report(request)
            return
        editing.edit_and_retry(event, fields, using, name)
        log_edit(event, fields, request.user)
        messages.success(request, _("The payload is edited, and the event is due for a retry."))

    def _facts(self, request: HttpRequest, event: FailedEvent, using: str) -> dict[str, Any]:
        back = failed_event_url(self.site, using, event.pk)
        if not back and may_view_events(self.site, request):
            back = event_url(self.site, event.event_id)
        return {
            "event": event,
            "error": event.error.partition("\n")[0][:300],
            "obstacles": list(failures.obstacles(event, using)),
            "warnings": list(failures.warnings(event, using)),
            "back_url": back or failures_url(self.site),
        }

    def _render(self, request: HttpRequest, context: dict[str, Any], status: int = 200) -> HttpResponse:
        request.current_app = self.site.name
        context = {
            **self.site.each_context(request),
            "opts": FailedEvent._meta,
            "title": _("Edit the payload and retry"),
            "back_url": failures_url(self.site),
            **context,
        }
        return render(request, "admin/lightbus_django/failures_edit.html", context, status=status)
