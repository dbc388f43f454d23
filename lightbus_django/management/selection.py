"""Which failed events the arguments of `lightbus_failed` select."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from lightbus_django.conf import format_name, get_settings
from lightbus_django.listening.registry import registry
from lightbus_django.models import FailedEvent, FailedEventQuerySet
from lightbus_django.operating import failures

from .output import confirm, point_in_time, positive

FILTERS = "listener", "event", "exception", "since", "until", "dead", "limit"

CHUNK = 1000
"""How many events are changed in one transaction."""


def add_filters(parser: ArgumentParser) -> None:
    """Add the arguments that select events, except for `--listener`."""
    parser.add_argument("--event", metavar="NAME", help="only this event")
    parser.add_argument("--exception", metavar="TYPE", help="only this type of error, with or without its module")
    parser.add_argument("--since", metavar="TIME", help="only what failed since then, or in the last 12h, 7d")
    parser.add_argument("--until", metavar="TIME", help="only what failed last before then")
    parser.add_argument("--dead", action="store_true", help="only dead letters")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many events")


def select(options: dict[str, Any]) -> FailedEventQuerySet:
    """Return the events that fit the filters, except for `--limit`. Raises CommandError without such a listener."""
    name, using = options["listener"], options["database"]
    if name and not _is_known(name, using):
        known = ", ".join(sorted(each.listener_name for each in registry)) or "none"
        raise CommandError(f"No listener and no failed event has the name or group {name!r}; known: {known}.")
    return failures.select(
        using,
        listener=name,
        event_name=options["event"],
        exception=options["exception"],
        since=options["since"] and point_in_time(options["since"]),
        until=options["until"] and point_in_time(options["until"]),
        dead=True if options["dead"] else None,
    )


def _is_known(name: str, using: str) -> bool:
    service_name = format_name(get_settings().service_name)
    names = {text for each in registry for text in (each.listener_name, each.group(service_name))}
    return name in names or failures.select(using, listener=name).exists()


def find(event_id: str, options: dict[str, Any]) -> FailedEventQuerySet:
    """Return the failed events with an id, or its beginning, one for each listener. Raises CommandError without any."""
    selected = failures.select(options["database"], listener=options["listener"])
    events = selected.filter(event_id__startswith=event_id).order_by("pk")
    if not events.exists():
        raise CommandError(f"There is no failed event {event_id!r} in database {options['database']!r}.")
    return events


def choose(options: dict[str, Any], verb: str) -> FailedEventQuerySet:
    """Return the events to change, once that is confirmed.

    Raises:
        CommandError: nothing selects them, there are none with an id, or it was not confirmed.
    """
    events = select(options)
    has_filter = any(options[name] for name in FILTERS)
    if options["id"]:
        for event_id in options["id"]:
            find(event_id, options)
        events = events.filter(pk__in=[key for event_id in options["id"] for key in _keys(events, event_id)])
    elif not has_filter and not options["all"]:
        raise CommandError("Name events by their ids, use a filter such as --exception, or --all.")
    if options["limit"]:
        keys = list(events.order_by("pk").values_list("pk", flat=True)[: options["limit"]])
        events = FailedEvent.objects.using(options["database"]).filter(pk__in=keys)
    count = events.count()
    if count and not options["no_input"] and not confirm(f"{verb} {count} failed events?"):
        raise CommandError("Cancelled; nothing was changed.")
    return events


def _keys(events: FailedEventQuerySet, event_id: str) -> list[int]:
    return list(events.filter(event_id__startswith=event_id).values_list("pk", flat=True))


def groups_without_listener(events: FailedEventQuerySet) -> list[str]:
    """Return the consumer groups of some events that have no listener in this service."""
    groups = events.order_by().values_list("consumer_group", flat=True).distinct()
    return [group for group in groups if failures.find_listener(FailedEvent(consumer_group=group), events.db) is None]


def in_chunks(events: FailedEventQuerySet, change: Callable[[FailedEventQuerySet], int]) -> int:
    """Change events in transactions of limited size; return how many."""
    last, count = 0, 0
    while keys := list(events.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:CHUNK]):
        last = keys[-1]
        count += change(FailedEvent.objects.using(events.db).filter(pk__in=keys))
    return count
