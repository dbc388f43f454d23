"""The same work on a cluster and on a single server: events of three APIs, whose streams are on different nodes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import transaction
from django.test.utils import override_settings
from redis.crc import key_slot

from benchmarks.clusters import MASTERS, SLOTS, cluster
from benchmarks.models import Price
from lightbus_django import on_commit

from . import ours as lightbus
from .committing import MARKED
from .events import EVENT_NAME, connect, fill, payload, stream_of
from .stopwatch import Stopwatch
from .tally import Tally, check_stream, check_tables

Sample = dict[str, float]


def consume(events: int, *, on_cluster: bool, idempotent: bool) -> Sample:
    """Our loop with a handler that does nothing."""
    with _bus(on_cluster=on_cluster):
        tally, client, apis = Tally(), connect(), _apis()
        names = tuple(f"{api}.{EVENT_NAME}" for api in apis)
        consumer = lightbus.consumer(tally.nothing, events=names, idempotent=idempotent)
        consumer.step(block=0)  # joins the group
        each = -(-events // MASTERS)
        for number, api in enumerate(apis):
            fill(client, min(each, events - number * each), api=api, start=number * each)
        with Stopwatch() as stopwatch:
            lightbus.step_until(consumer, tally, events)
        consumer.stop()
        tally.check(events)
        check_stream(client, events, map(stream_of, apis))
        check_tables(keys=events if idempotent else 0)
    return stopwatch.sample(events)


def commit(events: int, *, on_cluster: bool) -> Sample:
    """`on_commit` for each API in turn; what a worker does to mark the rows is done here as well, and is timed."""
    with _bus(on_cluster=on_cluster):
        keeper, apis = lightbus.housekeeping(), _apis()
        Price.objects.exists()  # connects
        with Stopwatch() as stopwatch:
            for number in range(events):
                with transaction.atomic():
                    Price.objects.create(**payload(number))
                    on_commit(f"{apis[number % MASTERS]}.{EVENT_NAME}", **payload(number))
                if number % MARKED == MARKED - 1:
                    keeper.relay()
            lightbus.relay_all(keeper)
        check_stream(connect(), events, map(stream_of, apis))
        check_tables(prices=events, published=events)
    return stopwatch.sample(events)


@contextmanager
def _bus(*, on_cluster: bool) -> Iterator[None]:
    """Point everything at a cluster of its own for the time of the block, if it is to run on one."""
    if not on_cluster:
        yield
        return
    with cluster() as url, override_settings(LIGHTBUS={**settings.LIGHTBUS, "URL": url}):
        os.environ["LIGHTBUS_URL"] = url
        yield


def _apis() -> list[str]:
    """Return names of APIs whose streams are on different nodes."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < MASTERS:
        api = f"prices{number}"
        found.setdefault(key_slot(stream_of(api).encode()) * MASTERS // SLOTS, api)
        number += 1
    return list(found.values())
