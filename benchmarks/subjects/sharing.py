"""Worker processes that share the events of one listener."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import Any, NamedTuple

from django.db import transaction

from benchmarks.cores import Role, on_core_of
from lightbus_django import listens_to

from . import ours as lightbus
from .bare import GROUP as BARE_GROUP
from .bare import batches
from .events import EVENT, STREAM, connect, fill
from .handling import key
from .tally import Tally, await_groups, check_stocks, check_stream, check_tables, stock_up

CORES: tuple[Role, ...] = ("measured", "servers")
"""Where the first process runs, and the second, which shares its core with the servers."""

START_TIMEOUT = 60.0


class Part(NamedTuple):
    """What one process did, from its first event to its last, on the clock that all of them read."""

    handled: int
    sum_of_numbers: int
    first: float
    last: float
    cpu_seconds: float


def processes(events: int, *, processes: int, handler: str, **options: Any) -> dict[str, float]:
    """Handle events in so many worker processes, with the handler of this name and options of `@listens_to`."""
    prices = events if handler == "insert" else 0
    if handler == "update":
        stock_up()
    sample = _share(events, processes, lightbus.GROUP, _work, handler, options)
    check_tables(prices=prices, keys=events if options.get("idempotent", True) else 0)
    if handler == "update":
        check_stocks(events)
    return sample


def by_hand(events: int, *, processes: int) -> dict[str, float]:
    """Update a row for each event in so many processes, in a transaction an event with its key."""
    stock_up()
    sample = _share(events, processes, BARE_GROUP, _work_by_hand)
    check_tables(keys=events)
    check_stocks(events)
    return sample


def bare(events: int, *, processes: int) -> dict[str, float]:
    """Handle events in so many processes that have redis-py's XREADGROUP, and one XACK a batch."""
    return _share(events, processes, BARE_GROUP, _work_bare)


def _share(events: int, processes: int, group: str, work: Callable[..., None], *arguments: Any) -> dict[str, float]:
    forking = multiprocessing.get_context("fork")
    begin, end, parts = forking.Barrier(processes + 1), forking.Event(), forking.Queue()
    for number in range(processes):
        with on_core_of(CORES[number % len(CORES)]):
            args = [f"measured-{number}", *arguments, begin, end, parts]
            forking.Process(target=work, args=args, daemon=True).start()
    client = connect()
    client.xgroup_create(STREAM, group, id="0", mkstream=True)
    fill(client, events)
    begin.wait(START_TIMEOUT)
    await_groups(client)
    end.set()
    done: list[Part] = [parts.get(timeout=START_TIMEOUT) for _ in range(processes)]
    total = Tally()
    total.count, total.sum = sum(part.handled for part in done), sum(part.sum_of_numbers for part in done)
    total.check(events)
    check_stream(client, events)
    busy = [part for part in done if part.handled]
    seconds = max(part.last for part in busy) - min(part.first for part in busy)
    return {"events": events, "seconds": seconds, "cpu_seconds": sum(part.cpu_seconds for part in done)}


def _work(
    process_name: str, handler: str, options: dict[str, Any], begin: Barrier, end: Event, parts: "Queue[Part]"
) -> None:
    tally = Tally()
    handle = getattr(tally, handler)
    first = last = 0.0

    def timed(event: object, sku: str, price: str, number: int, at: str) -> None:
        nonlocal first, last
        first = first or time.monotonic()
        handle(event, sku, price, number, at)
        last = time.monotonic()

    listens_to(EVENT, listener_name="measured", **options)(timed)
    worker = lightbus.worker(process_name)

    def stop() -> None:
        end.wait()
        worker.stop()

    threading.Thread(target=stop).start()
    begin.wait(START_TIMEOUT)
    cpu_started = time.process_time()
    lightbus.run(worker)
    parts.put(Part(tally.count, tally.sum, first, last, time.process_time() - cpu_started))


def _work_bare(process_name: str, begin: Barrier, end: Event, parts: "Queue[Part]") -> None:
    _loop(process_name, Tally.nothing, begin, end, parts)


def _work_by_hand(process_name: str, begin: Barrier, end: Event, parts: "Queue[Part]") -> None:
    def handle(tally: Tally, event_id: str, **arguments: Any) -> None:
        with transaction.atomic():
            key(event_id).save(force_insert=True)
            tally.update(event_id, **arguments)

    _loop(process_name, handle, begin, end, parts)


def _loop(process_name: str, handle: Callable[..., None], begin: Barrier, end: Event, parts: "Queue[Part]") -> None:
    tally, client = Tally(), connect()
    begin.wait(START_TIMEOUT)
    first, cpu_started = time.monotonic(), time.process_time()
    for batch in batches(client, process_name):
        for event_id, arguments in batch:
            handle(tally, event_id, **arguments)
    last, cpu_ended = time.monotonic(), time.process_time()
    end.wait()
    parts.put(Part(tally.count, tally.sum, first, last, cpu_ended - cpu_started))
