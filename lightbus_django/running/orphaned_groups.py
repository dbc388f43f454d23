"""Failed events of consumer groups without a listener: they are never retried until someone decides about them."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from django.db import router
from django.db.models import Count, Max, Q
from django.utils import timezone

from lightbus_django.database.errors import transient_errors
from lightbus_django.events.times import as_aware
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent


class OrphanedGroup(NamedTuple):
    """A group without a listener, and how many failed events it has in one database."""

    using: str
    name: str
    retrying: int
    dead_letters: int
    is_ours: bool
    """Whether the database records the group as this service's. Earlier versions kept no such record."""


def find_orphaned_groups(using: str, service_name: str) -> list[OrphanedGroup]:
    """Return the groups with failed events in a database that belong neither to a listener nor to another service.

    Raises:
        DatabaseUnavailable
    """
    groups_of_listeners = {
        listener.group(service_name)
        for listener in registry
        if (listener.using or router.db_for_write(ProcessedEvent)) == using
    }
    with transient_errors(using):
        services = dict(ConsumerGroup.objects.using(using).values_list("consumer_group", "service_name"))
        counts = (
            FailedEvent.objects.using(using)
            .exclude(consumer_group__in=groups_of_listeners)
            .values_list("consumer_group")
            .annotate(retrying=Count("pk", filter=Q(next_attempt_at__isnull=False)), count=Count("pk"))
            .order_by("consumer_group")
        )
        return [
            OrphanedGroup(using, group, retrying, count - retrying, group in services)
            for group, retrying, count in counts
            if services.get(group, service_name) == service_name
        ]


def last_seen(using: str, group: str) -> datetime | None:
    """Return when a process of the group last recorded itself in a database, as an aware time; None if never.

    Raises:
        DatabaseUnavailable
    """
    rows = ConsumerGroup.objects.using(using).filter(consumer_group=group)
    with transient_errors(using):
        seen_at = rows.aggregate(Max("seen_at"))["seen_at__max"]
    return None if seen_at is None else as_aware(seen_at)


def count_retrying(using: str, group: str) -> int:
    """Return how many failed events of a group are waiting for a retry. Raises DatabaseUnavailable."""
    with transient_errors(using):
        return FailedEvent.objects.using(using).filter(consumer_group=group, next_attempt_at__isnull=False).count()


def retire_group(using: str, group: str, streams: Collection[str] | None = None) -> int:
    """Turn a group's retries into dead letters and delete its progress; return the number of retries.

    FAILED_RETENTION starts now for these dead letters.

    Args:
        streams: keys of the streams to retire it from; None for all.

    Raises:
        DatabaseUnavailable
    """
    only = {"consumer_group": group} if streams is None else {"consumer_group": group, "stream__in": streams}
    with transient_errors(using):
        ConsumerGroup.objects.using(using).filter(**only).delete()
        retrying = FailedEvent.objects.using(using).filter(**only, next_attempt_at__isnull=False)
        return retrying.update(next_attempt_at=None, failed_at=timezone.now())
