"""The Bus page, and the pages that belong to no single table."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect, render
from django.urls import URLPattern, path
from django.utils.translation import gettext as _

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.models import ConsumerGroup
from lightbus_django.operating.pausing import pause, resume
from lightbus_django.operating.status import read_status

from .bus_page import bus_context
from .catalogue_page import CataloguePage
from .event_page import EventPage
from .links import bus_url, may_view_events


@admin.register(ConsumerGroup)
class BusAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """In place of a list of consumer groups, shows what they do: the Bus page."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        event_page = EventPage(self.admin_site)
        own = [
            path("pause/", view(self.pause_view), name="lightbus_django_pause"),
            path("catalogue/", view(CataloguePage(self.admin_site).show), name="lightbus_django_catalogue"),
            path("event/", view(event_page.search), name="lightbus_django_find_event"),
            path("event/<path:event_id>/", view(event_page.show), name="lightbus_django_event"),
        ]
        return own + super().get_urls()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the Bus page; with `?fragment=1` only the part that changes."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        sees_events, plots_of = may_view_events(self.admin_site, request), request.GET.get("listener", "")
        context = {
            **self.admin_site.each_context(request),
            **bus_context(read_status(), self.admin_site, may_view_events=sees_events, plots_of=plots_of),
            "title": _("Bus"),
            "opts": self.opts,
            "may_pause": self.may_pause(request),
            "may_view_events": sees_events,
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        template = "bus_fragment.html" if "fragment" in request.GET else "bus.html"
        return render(request, f"admin/lightbus_django/{template}", context)

    def may_pause(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("lightbus_django.change_consumergroup"))

    def pause_view(self, request: HttpRequest) -> HttpResponse:
        """Pause or resume the listener of a consumer group."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.may_pause(request):
            raise PermissionDenied
        group = request.POST.get("group", "")
        try:
            if request.POST.get("action") == "resume":
                has_changed = resume(group)
                done, already = _("The listener %s goes on within seconds."), _("The listener %s is not paused.")
            else:
                has_changed = pause(group, request.user.get_username())
                done, already = _("The listener %s rests within seconds."), _("The listener %s is paused already.")
            level = messages.SUCCESS if has_changed else messages.WARNING
            self.message_user(request, (done if has_changed else already) % group, level)
        except (LightbusError, DatabaseError) as error:
            self.message_user(request, one_line(error), messages.ERROR)
        return redirect(bus_url(self.admin_site))
