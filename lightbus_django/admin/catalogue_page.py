"""The Catalogue page: events, what is in them, who fires them and who listens, in all services on the bus."""

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from lightbus_django.database.errors import one_line
from lightbus_django.exceptions import LightbusError
from lightbus_django.models import ConsumerGroup
from lightbus_django.operating.catalogue import CatalogueEvent, read_catalogue

from .display import relative_time
from .links import may_view


class CataloguePage:
    """The view of the Catalogue page, in one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def show(self, request: HttpRequest) -> HttpResponse:
        """Show the events by name."""
        if not may_view(self.site, request, ConsumerGroup):
            raise PermissionDenied
        events: list[CatalogueEvent] = []
        problem = ""
        try:
            events = read_catalogue()
        except (LightbusError, DatabaseError) as error:
            problem = one_line(error)
        context = {
            **self.site.each_context(request),
            "title": _("Catalogue"),
            "opts": ConsumerGroup._meta,
            "rows": [(event, "" if event.last_at is None else relative_time(event.last_at)) for event in events],
            "problem": problem,
        }
        request.current_app = self.site.name
        return render(request, "admin/lightbus_django/catalogue.html", context)
