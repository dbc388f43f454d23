"""A web process beside a worker: requests that lock some of the rows that the worker's handlers update."""

import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

from django.db import DatabaseError, transaction

from benchmarks.cores import on_core_of
from benchmarks.models import Stock
from lightbus_django import listens_to
from lightbus_django.models import ProcessedEvent

from . import Miscounted
from . import ours as lightbus
from .bare import GROUP as BARE_GROUP
from .bare import batches
from .events import EVENT, STREAM, connect, fill
from .handling import key
from .tally import STOCKS, Tally, check_stocks, stock_up

SLOW = 0.5
"""Seconds that make a request slow."""

START_TIMEOUT = 60.0


def web(events: int, *, worker: str, seconds: float) -> dict[str, float]:
    """Serve requests for some seconds; `worker` is "ours", "by_hand" or "none".

    Each request locks three rows, in the order of their keys, as a careful team does.
    """
    stock_up()
    forking = multiprocessing.get_context("fork")
    ready, end = forking.Event(), forking.Event()
    process = None
    client = connect()
    client.xgroup_create(STREAM, lightbus.GROUP if worker == "ours" else BARE_GROUP, id="0", mkstream=True)
    fill(client, events)
    if worker != "none":
        with on_core_of("servers"):
            process = forking.Process(target=WORKERS[worker], args=[ready, end], daemon=True)
            process.start()
        if not ready.wait(START_TIMEOUT):
            raise Miscounted("the worker did not begin")
    sample = _serve(seconds)
    sample["handled"] = handled = ProcessedEvent.objects.count()
    end.set()
    if process is not None:
        process.join(START_TIMEOUT)
        if handled == events:
            raise Miscounted(f"the worker was done with {events} events before the requests were: take more")
    check_stocks(ProcessedEvent.objects.count())
    return sample


def _serve(seconds: float) -> dict[str, float]:
    draw = random.Random(1)
    served = died = slow = 0
    started, cpu_started = time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        began = time.monotonic()
        try:
            with transaction.atomic():
                for pk in sorted(draw.sample(range(STOCKS), 3)):
                    Stock.objects.select_for_update().get(pk=pk)
            served += 1
        except DatabaseError:
            died += 1
        slow += time.monotonic() - began > SLOW
    took, cpu = time.monotonic() - started, time.process_time() - cpu_started
    return {"events": served, "seconds": took, "cpu_seconds": cpu, "died": died, "slow": slow}


def _ours(ready: Event, end: Event) -> None:
    tally = Tally()

    def update(event: object, sku: str, price: str, number: int, at: str) -> None:
        tally.update(event, sku, price, number, at)
        ready.set()

    listens_to(EVENT, listener_name="measured")(update)
    worker = lightbus.worker()

    def stop() -> None:
        end.wait()
        worker.stop()

    threading.Thread(target=stop).start()
    lightbus.run(worker)


def _by_hand(ready: Event, end: Event) -> None:
    tally = Tally()
    for batch in batches(connect()):
        for event_id, arguments in batch:
            with transaction.atomic():
                key(event_id).save(force_insert=True)
                tally.update(event_id, **arguments)
            ready.set()
            if end.is_set():
                return


WORKERS: dict[str, Callable[[Event, Event], None]] = {"ours": _ours, "by_hand": _by_hand}
