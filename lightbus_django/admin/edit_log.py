"""Edits of payloads in the admin's history: they are all that tells of an edit once the failed event is gone."""

from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import router

from lightbus_django.database.text import storable
from lightbus_django.events.ids import event_key
from lightbus_django.models import FailedEvent
from lightbus_django.operating.editing import describe_edit

from .display import relative_time

SHOWN = 20
"""Maximum number of edits that are found, the latest."""


def log_edit(event: FailedEvent, fields: str, user: Any) -> None:
    """Record that a user edited a failed event, whose fields are `fields` from now on."""
    before, after = describe_edit(event.fields, fields)
    text = f"{_start(event.consumer_group)} Before: {before} After: {after}"
    column, alias = LogEntry._meta.get_field("change_message"), router.db_for_write(LogEntry)
    LogEntry.objects.log_actions(user.pk, [event], CHANGE, storable(text, column, alias))


def logged_edits(event_name: str, event_id: str, consumer_group: str) -> list[dict[str, str]]:
    """Return who edited the payload that a consumer group got, when, and what was changed; the first edit first."""
    event = FailedEvent(event_name=event_name, event_id=event_key(event_id))
    entries = LogEntry.objects.filter(
        content_type=ContentType.objects.get_for_model(FailedEvent),
        action_flag=CHANGE,
        object_repr=str(event)[: LogEntry._meta.get_field("object_repr").max_length],
        change_message__startswith=_start(consumer_group),
    )
    latest = entries.select_related("user").order_by("-pk")[:SHOWN]
    return [
        {
            "by": entry.user.get_username(),
            "at": relative_time(entry.action_time),
            "text": entry.change_message.removeprefix(_start(consumer_group)).strip(),
        }
        for entry in reversed(latest)
    ]


def _start(consumer_group: str) -> str:
    return f"Edit the payload for {consumer_group} and retry."
