"""The filters of the Failures page, which its address has, so that people can share it."""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from lightbus_django.conf import format_name, get_settings
from lightbus_django.events.times import as_stored
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, FailedEventQuerySet, stored_group
from lightbus_django.operating import failures

from .filters import SAMPLE

CHOICES = 200
"""Maximum number of exceptions and groups that are read from the records."""


class FailureFilter(forms.Form):
    """Which failed events the page shows and acts on. An empty field selects all."""

    listener = forms.CharField(label=_("Listener"), required=False, widget=forms.Select)
    event = forms.CharField(label=_("Event"), required=False, widget=forms.Select)
    exception = forms.CharField(label=_("Exception"), required=False, widget=forms.Select, strip=False)
    since = forms.DateField(
        label=_("Failed from"), required=False, widget=forms.DateInput({"type": "date"}, "%Y-%m-%d")
    )
    until = forms.DateField(label=_("until"), required=False, widget=forms.DateInput({"type": "date"}, "%Y-%m-%d"))

    def __init__(self, data: QueryDict) -> None:
        super().__init__(data, auto_id="lightbus-filter-%s", use_required_attribute=False)

    def clean_since(self) -> datetime | None:
        return _midnight(self.cleaned_data["since"])

    def clean_until(self) -> datetime | None:
        """Return the end of the day."""
        return _midnight(self.cleaned_data["until"], days=1)

    @property
    def is_active(self) -> bool:
        """Whether the form selects less than all events. It must be valid."""
        return any(self.cleaned_data.values())

    @property
    def query(self) -> str:
        """The filters as the query of an address; empty without a filter."""
        query = QueryDict(mutable=True)
        query.update({name: self.data[name] for name in self.fields if self.data.get(name)})
        return query.urlencode()

    def events(self, using: str) -> FailedEventQuerySet:
        """Return the selected failed events of a database. The form must be valid."""
        values = self.cleaned_data
        return failures.select(
            using,
            listener=values["listener"] or None,
            event_name=values["event"] or None,
            exception=values["exception"] or None,
            since=values["since"],
            until=values["until"],
        )

    def list_parameters(self) -> dict[str, str]:
        """Return the parameters with which the list of failed events shows the same; those of a group are added."""
        found = {"event_name": self.cleaned_data["event"]}
        found |= {"failed_at__gte": self.cleaned_data["since"], "failed_at__lt": self.cleaned_data["until"]}
        return {name: str(value) for name, value in found.items() if value}

    def add_choices(self, aliases: Iterable[str]) -> None:
        """Let people choose from what the registry and the failed events of these databases have."""
        names = {listener.listener_name for listener in registry}
        events = {event for listener in registry for event in listener.events}
        exceptions: set[str] = set()
        for alias in aliases:
            service_name = format_name(get_settings().service_name)
            known = {stored_group(listener.group(service_name), alias) for listener in registry}
            rows = FailedEvent.objects.using(alias)
            names |= set(_distinct(rows, "consumer_group")) - known
            exceptions |= set(_distinct(rows, "exception"))
            events |= set(rows.order_by("-pk").values_list("event_name", flat=True)[:SAMPLE])
        for field, found in (("listener", names), ("event", events), ("exception", exceptions)):
            chosen = self.data.get(field, "")
            choices: list[Any] = [("", gettext("All")), *((name, name) for name in sorted({*found, chosen} - {""}))]
            self.fields[field].widget.choices = choices


def _distinct(rows: FailedEventQuerySet, name: str) -> list[str]:
    """Return the values of a column that is the first of an index, one look-up for each; DISTINCT would read all."""
    values, found = rows.order_by(name).values_list(name, flat=True), list[str]()
    while len(found) < CHOICES and (each := (values.filter(**{f"{name}__gt": found[-1]}) if found else values)[:1]):
        found += each
    return found


def _midnight(day: date | None, days: int = 0) -> datetime | None:
    """Return the beginning of a day in the current time zone, or some days later, as the database stores it."""
    if day is None:
        return None
    if not 1970 <= day.year < 9999:
        raise ValidationError(_("Enter a year from 1970 on."))
    return as_stored(timezone.make_aware(datetime.combine(day + timedelta(days=days), time())))
