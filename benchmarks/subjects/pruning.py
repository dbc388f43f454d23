"""Deleting old rows, as the workers do every hour."""

from datetime import timedelta

from django.utils import timezone

from lightbus_django.models import ProcessedEvent
from lightbus_django.running.pruning import Cutoffs, prune

from . import Miscounted
from .events import EVENT
from .ours import GROUP
from .settling import settle
from .stopwatch import Stopwatch


def ours(events: int) -> dict[str, float]:
    now = timezone.now()
    ProcessedEvent.objects.bulk_create(
        (
            ProcessedEvent(event_id=f"{number:036}", consumer_group=GROUP, event_name=EVENT, processed_at=now)
            for number in range(events)
        ),
        batch_size=1000,
    )
    settle()
    later = now + timedelta(days=1)
    with Stopwatch() as stopwatch:
        deleted = sum(count for _, count in prune("default", Cutoffs(inbox=later, outbox=later, failed=later)))
        settle()  # as autovacuum will
    if deleted != events:
        raise Miscounted(f"{deleted} rows were deleted, not {events}")
    return stopwatch.sample(events)
