"""From `fire` to the first line of the handler, on a bus that is idle but for one event every few milliseconds.

Another process fires, on the servers' core. The clock that both read is the machine's.
"""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

from benchmarks.cores import on_core_of
from lightbus_django import fire, listens_to
from lightbus_django.events.ids import uuid7

from . import Miscounted
from . import ours as lightbus
from .bare import CONSUMER, GROUP, payload_of
from .events import EVENT, EVENT_NAME, STREAM, connect, encode_value, fields_of, payload
from .tally import check_stream

WARM_UP = 100
"""So many events come first, and are not counted."""

PAUSE = (0.002, 0.006)
"""Seconds between two events: between these, drawn."""

PERCENTILES = 100


class Latencies:
    """What the handlers measure, in milliseconds."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def handle(self, event: object, fired_at: int, **payload: Any) -> None:
        self.all.append((time.monotonic_ns() - fired_at) / 1e6)

    def sample(self, events: int, streams: Sequence[str] = (STREAM,)) -> dict[str, Any]:
        if len(self.all) != events + WARM_UP:
            raise Miscounted(f"{len(self.all)} events were handled, not {events + WARM_UP}")
        check_stream(connect(), events + WARM_UP, streams)
        counted = sorted(self.all[WARM_UP:])
        percentiles = [counted[min(events * part // PERCENTILES, events - 1)] for part in range(PERCENTILES)]
        return {"events": events, "p50": percentiles[50], "p99": percentiles[99], "percentiles": percentiles}


def ours(events: int) -> dict[str, Any]:
    latencies = Latencies()
    with _fired(partial(_fire, EVENT), events) as begin:
        consumer = lightbus.consumer(latencies.handle, idempotent=False)
        consumer.step(block=0)
        begin.set()
        in_vain = 0
        while len(latencies.all) < events + WARM_UP and in_vain < lightbus.PATIENCE:
            in_vain = 0 if consumer.step() else in_vain + 1
        consumer.stop()
    return latencies.sample(events)


def worker(events: int, *, listeners: int) -> dict[str, Any]:
    """A whole worker with so many listeners, each of an API of its own; each event is for one of them."""
    latencies = Latencies()
    apis = [f"prices{number}" for number in range(listeners)]

    def handle(event: object, **payload: Any) -> None:
        latencies.handle(event, **payload)
        if len(latencies.all) == events + WARM_UP:
            running.stop()

    for api in apis:
        listens_to(f"{api}.{EVENT_NAME}", listener_name=api, idempotent=False)(handle)
    running = lightbus.worker()
    with _fired(partial(_fire, *(f"{api}.{EVENT_NAME}" for api in apis)), events) as begin:
        for consumer in running.consumers:
            consumer.step(block=0)
        begin.set()
        lightbus.run(running)
    return latencies.sample(events, [f"{api}.*:stream" for api in apis])


def bare(events: int) -> dict[str, Any]:
    """An XADD, and a blocking XREADGROUP."""
    latencies = Latencies()
    with _fired(_xadd, events) as begin:
        client = connect()
        client.xgroup_create(STREAM, GROUP, mkstream=True)
        begin.set()
        while len(latencies.all) < events + WARM_UP:
            for _, entries in client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=100, block=5000):
                for stream_id, fields in entries:
                    latencies.handle(stream_id, **payload_of(fields))
                client.xack(STREAM, GROUP, *[stream_id for stream_id, _ in entries])
    return latencies.sample(events)


def _fire(*events: str) -> Callable[[int], object]:
    draw = random.Random(len(events))
    return lambda number: fire(draw.choice(events), **payload(number), fired_at=time.monotonic_ns())


def _xadd() -> Callable[[int], object]:
    client = connect()
    return lambda number: client.xadd(
        STREAM, {**fields_of(uuid7(), number), b":fired_at": encode_value(time.monotonic_ns())}
    )


@contextmanager
def _fired(make: Callable[[], Callable[[int], object]], events: int) -> Iterator[Event]:
    """Start a process that fires as soon as what this yields is set."""
    forking = multiprocessing.get_context("fork")
    begin = forking.Event()
    process = forking.Process(target=_fire_all, args=[make, events + WARM_UP, begin], daemon=True)
    with on_core_of("servers"):
        process.start()
    try:
        yield begin
    finally:
        process.join(60)


def _fire_all(make: Callable[[], Callable[[int], object]], events: int, begin: Event) -> None:
    fire_one = make()
    pauses = random.Random(events)
    begin.wait()
    for number in range(events):
        time.sleep(pauses.uniform(*PAUSE))
        fire_one(number)
