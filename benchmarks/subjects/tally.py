"""Counting: the handlers of all subjects, and whether what they did is what was to be measured."""

import random
import time
from collections.abc import Callable, Iterable

from django.db import connection
from django.db.models import F, Sum

from benchmarks.models import Price, Stock
from lightbus_django import EventMessage
from lightbus_django.models import FailedEvent, OutboxEvent, ProcessedEvent

from . import Miscounted
from .events import STREAM, Client

PATIENCE = 120.0
"""Seconds until what other processes or threads handle is given up."""


STOCKS = 200
"""How many rows there are that handlers and views update."""


class Tally:
    """Counts events in its handlers, and tells whether each of them came once."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0

    def nothing(self, event: object, sku: str, price: str, number: int, at: str) -> None:
        self.count += 1
        self.sum += number

    def insert(self, event: object, sku: str, price: str, number: int, at: str) -> None:
        Price.objects.create(sku=sku, price=price, number=number, at=at)
        self.count += 1
        self.sum += number

    def insert_all(self, events: list[EventMessage]) -> None:
        Price.objects.bulk_create([Price(**event.payload) for event in events])
        self.count += len(events)
        self.sum += sum(event.payload["number"] for event in events)

    def update(self, event: object, sku: str, price: str, number: int, at: str) -> None:
        Stock.objects.filter(pk=random.Random(number).randrange(STOCKS)).update(amount=F("amount") + 1)
        self.count += 1
        self.sum += number

    def check(self, events: int) -> None:
        """Raise Miscounted unless the events were those numbered from 0, each once."""
        if (self.count, self.sum) != (events, events * (events - 1) // 2):
            raise Miscounted(f"{self.count} events were handled, not {events}, or not each of them once")


def check_stream(client: Client, events: int, streams: Iterable[str] = (STREAM,)) -> None:
    """Raise Miscounted unless so many are in the streams, and all groups are done with them."""
    streams = list(streams)
    if (length := sum(map(client.xlen, streams))) != events:
        raise Miscounted(f"{length} events are in the stream, not {events}")
    if events and (behind := groups_behind(client, streams)):
        raise Miscounted(f"not all is handled and acknowledged: {behind}")


def groups_behind(client: Client, streams: Iterable[str] = (STREAM,)) -> list[str]:
    """Return what the groups have not read, or not acknowledged."""
    return [
        f"{group['name'].decode()}: {group.get('lag')} not read, {group['pending']} pending"
        for stream in streams
        for group in client.xinfo_groups(stream)
        if group["pending"] or group.get("lag")
    ]


def await_groups(client: Client) -> None:
    """Wait until all groups are done with all."""
    _await(lambda: groups_behind(client))


def await_outbox() -> None:
    """Wait until nothing waits in the outbox."""
    _await(OutboxEvent.objects.exclude(due_at=None).count)


def _await(left: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while what := left():
        if time.monotonic() > deadline:
            raise Miscounted(f"left after {PATIENCE:g} s: {what}")
        time.sleep(0.1)


def stock_up() -> None:
    """Make the rows that are updated."""
    Stock.objects.bulk_create([Stock(pk=number) for number in range(STOCKS)])
    connection.close()  # a subject may fork


def check_stocks(updates: int) -> None:
    """Raise Miscounted unless there were so many updates."""
    if (amount := Stock.objects.aggregate(amount=Sum("amount"))["amount"]) != updates:
        raise Miscounted(f"{amount} updates are in the rows, not {updates}")


def check_tables(*, prices: int = 0, keys: int = 0, published: int = 0) -> None:
    """Raise Miscounted unless the tables have so many rows, and nothing failed or waits."""
    found = {
        "prices": (Price.objects.count(), prices),
        "keys": (ProcessedEvent.objects.count(), keys),
        "published events": (OutboxEvent.objects.filter(due_at=None).count(), published),
        "waiting events": (OutboxEvent.objects.exclude(due_at=None).count(), 0),
        "failed events": (FailedEvent.objects.count(), 0),
    }
    wrong = [f"{count} {what}, not {expected}" for what, (count, expected) in found.items() if count != expected]
    if wrong:
        raise Miscounted(", ".join(wrong))
