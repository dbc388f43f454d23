"""The events that were selected in the list for an action that asks for a confirmation first."""

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import router
from django.db.models import Max
from django.http import HttpRequest

from lightbus_django.models import FailedEvent, FailedEventQuerySet


class Selected:
    """The selected events, on the database that is written to."""

    def __init__(self, request: HttpRequest, events: FailedEventQuerySet) -> None:
        """Take the selected events, which may be ordered, annotated, or from a replica."""
        self.using = router.db_for_write(FailedEvent)
        self.events = events.using(self.using).order_by()
        self.is_all = request.POST.get("select_across") == "1"
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        self.keys = chosen[:1] if self.is_all else chosen
        """What the form repeats. With "all across the pages", Django asks for one of them only."""
        self._last = request.POST.get("last", "")

    def last(self) -> int | None:
        """Return the largest primary key, None if there are no events."""
        last: int | None = self.events.aggregate(last=Max("pk"))["last"]
        return last

    def as_shown(self) -> FailedEventQuerySet:
        """Return the events of a confirmed form, but none that has failed since the page was shown."""
        return self.up_to(int(self._last)) if self._last.isdecimal() else self.events

    def up_to(self, last: int) -> FailedEventQuerySet:
        """Return the events up to a primary key."""
        return self.events.filter(pk__lte=last)
