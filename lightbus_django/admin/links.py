"""Addresses of the pages in the admin site that they are registered with, and who may see them."""

from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.db import router
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse

from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent


def may_view(site: AdminSite, request: HttpRequest, *models: type[Model]) -> bool:
    """Whether the user may view the rows of these models. Nobody may if the site doesn't have the model."""
    return all(site.is_registered(each) and site._registry[each].has_view_permission(request) for each in models)


def may_view_events(site: AdminSite, request: HttpRequest) -> bool:
    """Whether the user may see the story of an event, which is told from all its records."""
    return may_view(site, request, ProcessedEvent, FailedEvent, OutboxEvent)


def bus_url(site: AdminSite) -> str:
    return _reverse(site, "consumergroup_changelist")


def event_url(site: AdminSite, event_id: str) -> str:
    return _reverse(site, "event", quote(event_id))


def failures_url(site: AdminSite) -> str:
    return _reverse(site, "failures")


def discard_group_url(site: AdminSite) -> str:
    return _reverse(site, "discard_failures")


def edit_url(site: AdminSite, using: str, key: int) -> str:
    return _reverse(site, "edit_failed_event", using, key)


def failed_event_url(site: AdminSite, using: str, key: int) -> str:
    """Return the address of a failed event; empty if the admin doesn't show this database."""
    return _reverse(site, "failedevent_change", key) if _has_failed_events(site, using) else ""


def failed_list_url(site: AdminSite, using: str, **filters: str) -> str:
    """Return the address of the filtered list of failed events; empty if the admin doesn't show this database."""
    if not _has_failed_events(site, using):
        return ""
    return f"{_reverse(site, 'failedevent_changelist')}?{urlencode(filters)}"


def outbox_url(site: AdminSite, using: str, **filters: str) -> str:
    """Return the address of the filtered list of the outbox; empty if the admin doesn't show this database."""
    if not (site.is_registered(OutboxEvent) and using == router.db_for_read(OutboxEvent)):
        return ""
    return f"{_reverse(site, 'outboxevent_changelist')}?{urlencode(filters)}"


def _has_failed_events(site: AdminSite, using: str) -> bool:
    return site.is_registered(FailedEvent) and using == router.db_for_read(FailedEvent)


def _reverse(site: AdminSite, name: str, *args: object) -> str:
    return reverse(f"admin:lightbus_django_{name}", args=args, current_app=site.name)
