"""Filters of the lists by the values of a column, which stay fast on large tables."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from lightbus_django.conf import format_name, get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, stored_group

SAMPLE = 1_000
"""Number of latest rows from which a filter takes its choices."""


class LatestValuesFilter(admin.FieldListFilter):
    """A filter by the values of the latest rows, because DISTINCT over all rows is slow.

    A value that is in the URL is a choice too, whether it is known or not.
    """

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.parameter = field_path
        super().__init__(field, request, params, model, model_admin, field_path)
        rows = model.objects.order_by("-pk")
        self.chosen = request.GET.get(field_path)
        chosen = [] if self.chosen is None else [self.chosen]
        self.values = sorted({*rows.values_list(field_path, flat=True)[:SAMPLE], *self.known_values(rows.db), *chosen})

    def known_values(self, using: str) -> Iterable[str]:
        """Return further values, which are known without looking at the rows; `using` is the rows' database."""
        return ()

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]

    def has_output(self) -> bool:
        return len(self.values) > 1 or self.chosen is not None

    def choices(self, changelist: Any) -> Any:
        yield {
            "selected": self.chosen is None,
            "query_string": changelist.get_query_string(remove=[self.parameter]),
            "display": _("All"),
        }
        for value in self.values:
            yield {
                "selected": value == self.chosen,
                "query_string": changelist.get_query_string({self.parameter: value}),
                "display": value or _("(unknown)"),
            }


class GroupFilter(LatestValuesFilter):
    """A filter by consumer group: those of this service's listeners, of the records, and of the latest rows."""

    def known_values(self, using: str) -> Iterator[str]:
        service_name = format_name(get_settings().service_name)
        for listener in registry:
            yield stored_group(listener.group(service_name), using)
        yield from ConsumerGroup.objects.using(using).values_list("consumer_group", flat=True)


class EventFilter(LatestValuesFilter):
    """A filter by event: those that this service's listeners want, and those of the records and the latest rows."""

    def known_values(self, using: str) -> Iterator[str]:
        for listener in registry:
            yield from listener.events
        for names in ConsumerGroup.objects.using(using).values_list("event_names", flat=True):
            yield from names.splitlines()
