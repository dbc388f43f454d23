"""Whole workers, with their threads and their housekeeping: many listeners, idle ones, a slow one."""

import threading
import time
from collections.abc import Callable

from lightbus_django import listens_to
from lightbus_django.running.worker import Worker

from . import Miscounted
from . import ours as lightbus
from .events import EVENT, connect, fill
from .memory import resident
from .tally import Tally, check_stream

Sample = dict[str, float]

NAP = 0.01
"""Seconds that a slow handler takes for each event."""


class Race:
    """Listeners on their way from the first event that one of them gets to the last one of all."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.tallies: list[Tally] = []
        self.worker: Worker | None = None
        self._marks: list[tuple[float, float]] = []
        self._arrived: list[Tally] = []

    def enter(self) -> Callable[..., None]:
        """Return a handler for one more listener."""
        tally = Tally()
        self.tallies.append(tally)

        def handle(event: object, sku: str, price: str, number: int, at: str) -> None:
            if not tally.count:
                self._mark()
            tally.nothing(event, sku, price, number, at)
            if tally.count == self.each:
                self._mark()
                self._arrived.append(tally)
                if len(self._arrived) == len(self.tallies) and self.worker:
                    self.worker.stop()

        return handle

    def run(self) -> Sample:
        """Run a worker until all have arrived. All of them have joined their groups before there are events."""
        self.worker = lightbus.worker()
        for consumer in self.worker.consumers:
            consumer.step(block=0)
        fill(connect(), self.each)
        lightbus.run(self.worker)
        for tally in self.tallies:
            tally.check(self.each)
        (start, cpu_start), (end, cpu_end) = min(self._marks), max(self._marks)
        return {"events": self.each * len(self.tallies), "seconds": end - start, "cpu_seconds": cpu_end - cpu_start}

    def _mark(self) -> None:
        self._marks.append((time.perf_counter(), time.process_time()))


def listeners(events: int, *, listeners: int) -> Sample:
    """Deliver so many events in all, to so many listeners that each get the same ones."""
    race = Race(each=events // listeners)
    for number in range(listeners):
        listens_to(EVENT, listener_name=f"listener-{number}", idempotent=False, start="beginning")(race.enter())
    sample = race.run()
    check_stream(connect(), race.each)
    return sample


def beside(events: int, *, slow: bool, listeners: int = 1) -> Sample:
    """Deliver so many events in all to listeners that do nothing, alone or beside one that takes its time for each."""
    race = Race(each=events // listeners)
    naps = 0

    def nap(event: object) -> None:
        nonlocal naps
        naps += 1
        time.sleep(NAP)

    for number in range(listeners):
        listens_to(EVENT, listener_name=f"fast-{number}", idempotent=False, start="beginning")(race.enter())
    if slow:
        listens_to(EVENT, listener_name="slow", idempotent=False, start="beginning")(nap)
    sample = race.run()
    if bool(naps) != slow:
        raise Miscounted(f"the slow listener handled {naps} events")
    return sample


def idle(events: int, *, listeners: int, settle: float, seconds: float) -> Sample:
    """What listeners need, over some seconds, that handled a few events in the seconds before and wait for more."""
    tallies = [Tally() for _ in range(listeners)]
    for number, tally in enumerate(tallies):
        listens_to(EVENT, listener_name=f"listener-{number}", idempotent=False, start="beginning")(tally.nothing)
    fill(connect(), events)
    worker = lightbus.worker()
    sample: Sample = {}

    def watch() -> None:
        time.sleep(settle)
        started, cpu_started = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        cpu = (time.process_time() - cpu_started) / (time.perf_counter() - started)
        sample.update(events=events, rss=resident(), cpu=100 * cpu)
        worker.stop()

    threading.Thread(target=watch).start()
    lightbus.run(worker)
    for tally in tallies:
        tally.check(events)
    return sample
