"""What a request does that writes a row of its business and fires an event: ours, and by hand."""

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from benchmarks.models import Price
from lightbus_django import on_commit
from lightbus_django.events.ids import uuid7
from lightbus_django.models import OutboxEvent

from .events import EVENT, STREAM, connect, encode_value, fields_of, payload
from .ours import housekeeping, relay_all
from .stopwatch import Stopwatch
from .tally import check_stream, check_tables

Sample = dict[str, float]

MARKED = 1000
"""How many published rows are marked at a time."""


def ours(events: int) -> Sample:
    """`on_commit`; what a worker does to mark the rows is done here as well, and is timed."""
    keeper = housekeeping()

    def request(number: int) -> None:
        with transaction.atomic():
            Price.objects.create(**payload(number))
            on_commit(EVENT, **payload(number))
        if number % MARKED == MARKED - 1:
            keeper.relay()

    return _measure(request, events, at_last=lambda: relay_all(keeper), published=events)


def row_alone(events: int) -> Sample:
    """(f) The row of the business, and no event."""

    def request(number: int) -> None:
        with transaction.atomic():
            Price.objects.create(**payload(number))

    return _measure(request, events, fired=0)


def xadd_after_commit(events: int) -> Sample:
    """(f') An XADD after the commit, which is lost if the process dies between the two."""
    client = connect()

    def request(number: int) -> None:
        with transaction.atomic():
            Price.objects.create(**payload(number))
        client.xadd(STREAM, fields_of(uuid7(), number))

    return _measure(request, events)


def row_deleted(events: int) -> Sample:
    """(g) An outbox row in the transaction, an XADD, and the row deleted in a second transaction."""
    client = connect()

    def request(number: int) -> None:
        row, fields = _staged(number)
        client.xadd(STREAM, fields)
        row.delete()

    return _measure(request, events)


def marked_in_bulk(events: int) -> Sample:
    """(h) An outbox row in the transaction, an XADD, and rows marked in bulk later."""
    client = connect()
    published: list[UUID] = []

    def mark() -> None:
        OutboxEvent.objects.filter(pk__in=published).update(due_at=None, published_at=timezone.now())
        published.clear()

    def request(number: int) -> None:
        row, fields = _staged(number)
        client.xadd(STREAM, fields)
        published.append(row.pk)
        if len(published) == MARKED:
            mark()

    return _measure(request, events, at_last=mark, published=events)


def _staged(number: int) -> tuple[OutboxEvent, dict[bytes, bytes]]:
    """Commit a row of the business with one of the outbox; return this and what is to be published."""
    due_at = timezone.now() + timedelta(seconds=10)
    with transaction.atomic():
        Price.objects.create(**payload(number))
        text = encode_value(payload(number)).decode()
        row = OutboxEvent.objects.create(event_name=EVENT, payload=text, due_at=due_at)
    return row, fields_of(row.pk, number)


def _measure(
    request: Callable[[int], None],
    events: int,
    *,
    at_last: Callable[[], None] = lambda: None,
    fired: int | None = None,
    published: int = 0,
) -> Sample:
    Price.objects.exists()  # connects
    with Stopwatch() as stopwatch:
        for number in range(events):
            request(number)
        at_last()
    check_stream(connect(), events if fired is None else fired)
    check_tables(prices=events, published=published)
    return stopwatch.sample(events)
