"""Addresses of the pages, in the admin site that they are registered with."""

from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.db import router
from django.urls import reverse

from lightbus_django.models import FailedEvent


def bus_url(site: AdminSite) -> str:
    return _reverse(site, "consumergroup_changelist")


def failed_list_url(site: AdminSite, using: str, **filters: str) -> str:
    """Return the address of the filtered list of failed events; empty if the admin doesn't show this database."""
    if FailedEvent not in site._registry or using != router.db_for_read(FailedEvent):
        return ""
    return f"{_reverse(site, 'failedevent_changelist')}?{urlencode(filters)}"


def _reverse(site: AdminSite, name: str, *args: object) -> str:
    return reverse(f"admin:lightbus_django_{name}", args=args, current_app=site.name)
