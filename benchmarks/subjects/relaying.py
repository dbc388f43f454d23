"""Publishing what was left in the outbox: our relay, and one by hand."""

from collections.abc import Callable
from datetime import timedelta

import msgspec
from django.utils import timezone

from lightbus_django.models import OutboxEvent

from .events import API_NAME, EVENT, EVENT_NAME, STREAM, connect, encode_value, payload
from .ours import housekeeping, relay_all
from .settling import settle
from .stopwatch import Stopwatch
from .tally import check_stream, check_tables

Sample = dict[str, float]

SIZE = 1000

_decode_payload = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def ours(events: int) -> Sample:
    keeper = housekeeping()
    return _measure(lambda: relay_all(keeper), events)


def by_hand(events: int) -> Sample:
    """1,000 rows at a time: read, published in a pipeline, marked in bulk."""
    client = connect()
    waiting = OutboxEvent.objects.exclude(due_at=None).order_by("pk")

    def relay() -> None:
        while rows := waiting.values_list("pk", "payload")[:SIZE]:
            pipeline = client.pipeline(transaction=False)
            for key, text in rows:
                fields: dict[str, str | bytes] = {"id": str(key), "api_name": API_NAME, "event_name": EVENT_NAME}
                fields["version"] = "1"
                fields |= {f":{name}": bytes(value) for name, value in _decode_payload(text).items()}
                pipeline.xadd(STREAM, fields)
            pipeline.execute()
            published = OutboxEvent.objects.filter(pk__in=[key for key, _ in rows])
            published.update(due_at=None, published_at=timezone.now())

    return _measure(relay, events)


def _measure(relay: Callable[[], None], events: int) -> Sample:
    left_at = timezone.now() - timedelta(minutes=1)
    text = encode_value(payload(0)).decode()
    for first in range(0, events, SIZE):
        OutboxEvent.objects.bulk_create(
            OutboxEvent(event_name=EVENT, payload=text, created_at=left_at - timedelta(seconds=10), due_at=left_at)
            for _ in range(first, min(first + SIZE, events))
        )
    settle()
    with Stopwatch() as stopwatch:
        relay()
    check_stream(connect(), events)
    check_tables(published=events)
    return stopwatch.sample(events)
