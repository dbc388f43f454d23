"""Failed events: selected, grouped by their cause, checked before a retry, exported."""

import json
import pprint
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
from django.db import router
from django.db.models import Count, Max, Min, Q
from django.db.models.functions import Coalesce

from lightbus_django.conf import format_name, get_settings
from lightbus_django.events.codec import decode, load_fields
from lightbus_django.events.times import as_aware
from lightbus_django.exceptions import UnreadableEvent
from lightbus_django.listening.listener import Listener
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, FailedEventQuerySet, ProcessedEvent, stored_group

MAX_GROUPS = 200
"""Maximum number of groups that are returned, the largest first."""


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failed events of one consumer group with the same exception from the same place."""

    consumer_group: str
    exception: str
    place: str
    count: int
    dead_letters: int
    first_at: datetime
    last_at: datetime
    sample_id: int
    """The primary key of one of them, the latest."""
    sample_event_id: str
    sample_error: str


def select(
    using: str,
    *,
    listener: str | None = None,
    event_name: str | None = None,
    exception: str | None = None,
    place: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    dead: bool | None = None,
) -> FailedEventQuerySet:
    """Return the failed events in a database that fit all that is given.

    Args:
        using: the alias of the database.
        listener: name of a listener of this service, or of a consumer group.
        event_name: full name of the event.
        exception: type of the error, with or without its module.
        place: file and line, as in `FailedEvent.place`.
        since: they failed last at this time or later; as the database stores times.
        until: they failed last before this time; likewise.
        dead: whether they are dead letters.
    """
    events = FailedEvent.objects.using(using)
    if listener is not None:
        service_name = format_name(get_settings().service_name)
        groups = {each.group(service_name) for each in registry if each.listener_name == listener} or {listener}
        events = events.filter(consumer_group__in=[stored_group(group, using) for group in groups])
    if event_name is not None:
        events = events.filter(event_name=event_name)
    if exception is not None:
        events = events.filter(Q(exception=exception) | Q(exception__endswith=f".{exception}"))
    if place is not None:
        events = events.filter(place=place)
    if since is not None:
        events = events.filter(failed_at__gte=since)
    if until is not None:
        events = events.filter(failed_at__lt=until)
    if dead is not None:
        events = events.filter(next_attempt_at__isnull=dead)
    return events


def group_failures(events: FailedEventQuerySet) -> list[FailureGroup]:
    """Return failed events by cause, the largest groups first."""
    rows = (
        events.order_by()
        .values("consumer_group", "exception", "place")
        .annotate(
            count=Count("pk"),
            dead=Count("pk", filter=Q(next_attempt_at=None)),
            first=Min(Coalesce("first_failed_at", "failed_at")),
            last=Max("failed_at"),
            sample=Max("pk"),
        )
        .order_by("-count", "consumer_group", "exception", "place")[:MAX_GROUPS]
    )
    found = list(rows)
    samples = FailedEvent.objects.using(events.db).only("event_id", "error").in_bulk([row["sample"] for row in found])
    return [
        FailureGroup(
            consumer_group=row["consumer_group"],
            exception=row["exception"],
            place=row["place"],
            count=row["count"],
            dead_letters=row["dead"],
            first_at=as_aware(row["first"]),
            last_at=as_aware(row["last"]),
            sample_id=row["sample"],
            sample_event_id=sample.event_id,
            sample_error=sample.error.partition("\n")[0],
        )
        for row in found
        if (sample := samples.get(row["sample"])) is not None  # handled in the meantime
    ]


def find_listener(event: FailedEvent, using: str) -> Listener | None:
    """Return the listener of this service that a failed event belongs to, None if there is none."""
    service_name = format_name(get_settings().service_name)
    for listener in registry:
        database = listener.using or router.db_for_write(ProcessedEvent)
        if database == using and stored_group(listener.group(service_name), using) == event.consumer_group:
            return listener
    return None


def obstacles(event: FailedEvent, using: str) -> Iterator[str]:
    """Yield the reasons why a retry can't succeed with today's code, without running the handler."""
    listener = find_listener(event, using)
    if listener is None:
        yield f"this service has no listener for the consumer group {event.consumer_group}"
        return
    if event.event_name not in listener.events:
        yield f"the listener {listener.listener_name} does not listen to {event.event_name} any more"
    try:
        message = event.message()
    except UnreadableEvent as error:
        yield f"the event can't be read: {error}"
        return
    if not listener.batch:
        try:
            listener.check_arguments(message.payload)
        except UnreadableEvent as error:
            yield str(error)


def warnings(event: FailedEvent, using: str) -> Iterator[str]:
    """Yield what to consider before a retry."""
    listener = find_listener(event, using)
    if listener is not None and not listener.idempotent:
        yield "the listener is not idempotent: effects of earlier attempts stay, and are there twice after a success"
    if event.may_have_effects:
        yield "the handler ended its transaction, so the failed attempt may have left effects"


def as_json(event: FailedEvent) -> str:
    """Return a failed event as JSON; one that can't be read has its fields as text."""
    return json.dumps(_exported(event), indent=2, ensure_ascii=False, default=str)


def as_fixture(event: FailedEvent) -> str:
    """Return a failed event as a pytest fixture."""
    exported = _exported(event)
    name = re.sub(r"\W", "_", event.event_name.rpartition(".")[2])
    if not name.isidentifier():
        name = f"event_{name}"
    content = exported["payload"] if "payload" in exported else exported["fields"]
    payload = pprint.pformat(content, width=100, sort_dicts=False)
    indented = payload.replace("\n", "\n    ")
    what = f"{event.event_name} {event.event_id}, which failed with: {event.error[:80]}"
    summary = re.sub(r'["\\\s]+', " ", what)
    return (
        "import pytest\n\n\n@pytest.fixture\n"
        f"def {name}_payload():\n"
        f'    """The payload of {summary}."""\n'
        f"    return {indented}\n"
    )


def _exported(event: FailedEvent) -> dict[str, Any]:
    exported: dict[str, Any] = {
        "event_id": event.event_id,
        "event_name": event.event_name,
        "consumer_group": event.consumer_group,
        "stream": event.stream,
        "stream_id": event.stream_id,
        "attempts": event.attempts,
        "failed_at": as_aware(event.failed_at).isoformat(),
        "exception": event.exception,
        "place": event.place,
        "error": event.error,
        "history": event.history or [],
    }
    try:
        exported["payload"] = event.message().payload
    except UnreadableEvent:
        exported["fields"] = event.content()
    if event.original_fields is not None:
        original = decode(load_fields(event.original_fields), event.stream_id)  # what can't be read can't be edited
        exported |= {"edited_by": event.edited_by, "payload_as_fired": original.payload}
    return exported
