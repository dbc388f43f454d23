"""Failed events of consumer groups whose listeners are gone: nobody retries them, and only people can tell what for."""

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import NamedTuple

from django.db import connections, router
from django.db.models import Count, Max, Q
from django.utils import timezone

from lightbus_django.database.errors import transient_errors
from lightbus_django.events.times import as_aware
from lightbus_django.firing.databases import has_outbox
from lightbus_django.listening.registry import registry
from lightbus_django.models import ConsumerGroup, FailedEvent, ProcessedEvent


class Abandoned(NamedTuple):
    """The failed events of one group in one database."""

    using: str
    group: str
    retrying: int
    dead_letters: int
    is_ours: bool
    """Whether the group is known to be this service's; groups of previous versions are not known."""


def databases() -> Iterator[str]:
    """Yield the aliases of the databases that have our tables; raises DatabaseUnavailable."""
    for alias in connections:
        with transient_errors(alias):
            if has_outbox(alias):
                yield alias


def find_abandoned(using: str, service_name: str) -> list[Abandoned]:
    """Return the failed events of groups that no listener of this service has, nor another service, by group.

    Raises:
        DatabaseUnavailable
    """
    claimed = {
        listener.group(service_name)
        for listener in registry
        if (listener.using or router.db_for_write(ProcessedEvent)) == using
    }
    with transient_errors(using):
        services = dict(ConsumerGroup.objects.using(using).values_list("consumer_group", "service_name"))
        counts = (
            FailedEvent.objects.using(using)
            .exclude(consumer_group__in=claimed)
            .values_list("consumer_group")
            .annotate(retrying=Count("pk", filter=Q(next_attempt_at__isnull=False)), count=Count("pk"))
            .order_by("consumer_group")
        )
        return [
            Abandoned(using, group, retrying, count - retrying, group in services)
            for group, retrying, count in counts
            if services.get(group, service_name) == service_name
        ]


def last_seen(using: str, group: str) -> datetime | None:
    """Return when a process of the group was last seen, an aware time; None if nobody knows.

    Raises:
        DatabaseUnavailable
    """
    rows = ConsumerGroup.objects.using(using).filter(consumer_group=group)
    with transient_errors(using):
        seen_at = rows.aggregate(Max("seen_at"))["seen_at__max"]
    return None if seen_at is None else as_aware(seen_at)


def retries(using: str, group: str) -> int:
    """Return how many failed events of a group are retried. Raises DatabaseUnavailable."""
    with transient_errors(using):
        return FailedEvent.objects.using(using).filter(consumer_group=group, next_attempt_at__isnull=False).count()


def forget(using: str, group: str, streams: Collection[str] | None = None) -> int:
    """Make the retries of a group dead letters, and forget where it was; return how many retries there were.

    They count as failed now, so they are kept for FAILED_RETENTION from now on.

    Args:
        streams: only in these streams; in all if None.

    Raises:
        DatabaseUnavailable
    """
    only = {"consumer_group": group} if streams is None else {"consumer_group": group, "stream__in": streams}
    with transient_errors(using):
        ConsumerGroup.objects.using(using).filter(**only).delete()
        retrying = FailedEvent.objects.using(using).filter(**only, next_attempt_at__isnull=False)
        return retrying.update(next_attempt_at=None, failed_at=timezone.now())
