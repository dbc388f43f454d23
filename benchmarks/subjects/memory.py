"""The memory of a worker, and of a process that fires, under a load that goes on."""

import multiprocessing
import os
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import linear_regression
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.test.utils import override_settings

from benchmarks.cores import on_core_of
from benchmarks.models import Price
from lightbus_django import fire_many, listens_to, on_commit

from . import ours as lightbus
from .events import EVENT, connect, payload
from .tally import Tally, await_groups, await_outbox, check_tables

BEAT = 0.1
"""Seconds between two bursts of events."""

COMMITTED = 0.1
"""What share of a burst is fired with `on_commit`, each in a transaction of its own; the others with `fire_many`."""

SAMPLES = 600
"""How often memory is looked at, over the time of a run."""

RETENTION = 60.0
"""Seconds for which the stream is kept, so that it is trimmed all the time."""

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int | None = None) -> float:
    """Return the resident memory of a process, by default this one, in MB."""
    return int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]) * PAGE / 1e6


@override_settings(LIGHTBUS={**settings.LIGHTBUS, "STREAM_RETENTION": RETENTION})
def under_load(events: int, *, minutes: float) -> dict[str, Any]:
    """Handle `events` a second that another process fires: one listener with the inbox, one without."""
    forking = multiprocessing.get_context("fork")
    stop, fired = forking.Event(), forking.Value("q", 0)
    firing = forking.Process(target=_fire, args=[events, stop, fired], daemon=True)
    with on_core_of("servers"):
        firing.start()
    tallies = [Tally(), Tally()]
    listens_to(EVENT, listener_name="measured", start="beginning")(tallies[0].insert)
    listens_to(EVENT, listener_name="other", start="beginning", idempotent=False)(tallies[1].nothing)
    worker = lightbus.worker()
    looks: list[tuple[float, float, float]] = []

    def watch() -> None:
        started = time.monotonic()
        try:
            for number in range(SAMPLES):
                time.sleep(max(0.0, started + 60 * minutes * (number + 1) / SAMPLES - time.monotonic()))
                looks.append((time.monotonic() - started, resident(), resident(firing.pid)))
            stop.set()
            firing.join()
            await_outbox()
            await_groups(connect())
        finally:
            connection.close()
            worker.stop()

    threading.Thread(target=watch).start()
    lightbus.run(worker)
    for tally in tallies:
        tally.check(fired.value)
    count, committed = _burst(events)
    published = fired.value // count * committed
    check_tables(prices=fired.value + published, keys=fired.value, published=published)
    return {
        "events": fired.value,
        "growth": _growth([(at, worker) for at, worker, _ in looks]),
        "firing_growth": _growth([(at, firing) for at, _, firing in looks]),
        "looks": looks,
    }


def _burst(events: int) -> tuple[int, int]:
    """Return how many events a burst has, and how many of them are fired with `on_commit`."""
    count = max(2, round(events * BEAT))
    return count, max(1, round(count * COMMITTED))


def _growth(looks: list[tuple[float, float]]) -> float:
    """Return the slope of what was seen after the first quarter, in MB an hour."""
    times, sizes = zip(*looks[len(looks) // 4 :], strict=True)
    return 3600 * linear_regression(times, sizes).slope


def _fire(events: int, stop: Event, fired: Any) -> None:
    beat = time.monotonic()
    count, committed = _burst(events)
    while not stop.is_set():
        first, last = fired.value, fired.value + count
        fire_many([(EVENT, payload(number)) for number in range(first, last - committed)])
        for number in range(last - committed, last):
            with transaction.atomic():
                Price.objects.create(**payload(number))
                on_commit(EVENT, **payload(number))
        fired.value = last
        beat += BEAT
        stop.wait(max(0.0, beat - time.monotonic()))
